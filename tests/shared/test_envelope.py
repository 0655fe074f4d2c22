"""The hop's records: they survive the wire, and bytes that are none are refused before they are believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision import ALLOW, Decision, HeaderOp, OpAction, Verb
from shared.defaults import HOP_MAX_MESSAGE_BYTES, WIRE_VERSION
from shared.errors import WireError
from shared.events import EventKind
from shared.plan import Ask, Plan
from shared.wire.envelope import (
    EVENT_FIELDS,
    FLAG_FINAL,
    NO_BODY,
    UNKNOWN_RECORD,
    CancelReason,
    EventRecord,
    RecordType,
    Register,
    Registered,
    pack_audit,
    pack_cancel,
    pack_decision,
    pack_end,
    pack_event_fields,
    pack_register,
    pack_registered,
    records,
    unpack_cancel,
    unpack_decision,
    unpack_end,
    unpack_event,
    unpack_register,
    unpack_registered,
)

U64 = st.integers(0, 2**64 - 1)
PLAN = Plan(0, "r", EventKind.REQUEST_HEADERS, False, True, (Ask("waf", "closed", False, 200, True),))
REGISTER = Register(42, 3, "digest", "ab12-", (PLAN,))


def only(record: bytes | memoryview, kind: RecordType) -> bytes | memoryview:
    """The rest of the one record in this message."""
    ((found, rest),) = records(record)
    assert found == kind
    return rest


class TestRoundTrip:
    @given(U64, U64, U64, U64, st.integers(0, 2**16 - 1), st.integers(0, 255), st.booleans(), st.binary(max_size=200))
    def test_event(
        self, event: int, exchange: int, mask: int, deadline: int, plan: int, kind: int, final: bool, data: bytes
    ) -> None:
        """Every field; of a view of the message the event is a view, not a copy."""
        record = pack_event_fields(event, exchange, mask, deadline, plan, kind, FLAG_FINAL * final, len(data)) + data
        assert len(record) == 4 + EVENT_FIELDS + len(data)
        found = unpack_event(only(memoryview(record), RecordType.EVENT))
        assert found == EventRecord(event, exchange, mask, deadline, plan, kind, final, NO_BODY, found.event)
        assert bytes(found.event) == data
        assert isinstance(found.event, memoryview)
        assert found.event.obj is record

    @given(U64, st.sampled_from(list(CancelReason)))
    def test_cancel_and_end(self, exchange: int, reason: CancelReason) -> None:
        """Exchange and reason."""
        assert unpack_cancel(only(pack_cancel(exchange, reason), RecordType.CANCEL)) == (exchange, reason)
        assert unpack_end(only(pack_end(exchange), RecordType.END)) == exchange

    def test_register_and_registered(self) -> None:
        """The plan table and the names of both starts."""
        assert unpack_register(only(pack_register(REGISTER), RecordType.REGISTER)) == REGISTER
        registered = Registered("n0", "d0")
        assert unpack_registered(only(pack_registered(registered), RecordType.REGISTERED)) == registered

    def test_audit_and_unknown(self) -> None:
        """Bytes as they are; nothing at all."""
        assert bytes(only(pack_audit(b'{"a":1}'), RecordType.AUDIT)) == b'{"a":1}'
        assert bytes(only(UNKNOWN_RECORD, RecordType.UNKNOWN)) == b""

    def test_plain_allow_has_no_rest(self) -> None:
        """Thirteen bytes there, the shared object back."""
        record = pack_decision(7, ALLOW)
        assert len(record) == 13
        event, decision = unpack_decision(only(record, RecordType.DECISION))
        assert event == 7
        assert decision is ALLOW

    @given(
        U64,
        st.builds(
            Decision,
            verb=st.sampled_from(list(Verb)),
            status=st.integers(0, 599),
            headers=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
            body=st.binary(max_size=50),
            request_ops=st.lists(
                st.builds(HeaderOp, st.sampled_from(list(OpAction)), st.text(), st.text()), max_size=3
            ).map(tuple),
            response_ops=st.lists(st.builds(HeaderOp, st.sampled_from(list(OpAction)), st.text()), max_size=2).map(
                tuple
            ),
            agent=st.text(),
            reason=st.text(),
        ),
    )
    def test_decision(self, event: int, decision: Decision) -> None:
        """Whatever was decided arrives as it was decided."""
        assert unpack_decision(only(pack_decision(event, decision), RecordType.DECISION)) == (event, decision)

    def test_a_tick_in_one_message(self) -> None:
        """Records follow each other without gaps, in order; unknown types are handed on, their length is known."""
        message = pack_end(1) + b"\x04\x00\x00\x00\x63abc" + pack_cancel(2, CancelReason.DECIDED) + UNKNOWN_RECORD
        assert [(kind, bytes(rest)) for kind, rest in records(message)] == [
            (RecordType.END, (1).to_bytes(8, "little")),
            (0x63, b"abc"),
            (RecordType.CANCEL, (2).to_bytes(8, "little") + b"\x02"),
            (RecordType.UNKNOWN, b""),
        ]
        assert list(records(b"")) == []


class TestRefused:
    @pytest.mark.parametrize(
        ("message", "text"),
        [
            (b"\x01", "1 bytes left at 0"),
            (pack_end(1) + b"\x01\x00\x00\x00", "4 bytes left at 13"),
            (b"\x00\x00\x00\x00\x04", "claims 0 bytes"),
            (b"\x02\x00\x00\x00\x04", "claims 2 bytes, 1 are left"),
            (b"\xff\xff\xff\xff\x02", "claims 4294967295 bytes"),
        ],
    )
    def test_framing(self, message: bytes, text: str) -> None:
        """Short, empty or overlong records, with the place."""
        with pytest.raises(WireError, match=text):
            list(records(message))

    def test_oversized_message(self) -> None:
        """Looked at by its length alone."""
        with pytest.raises(WireError, match="is over"):
            next(records(bytes(HOP_MAX_MESSAGE_BYTES + 1)))

    def test_good_records_before_a_bad_one(self) -> None:
        """They are given out before the error."""
        found = []
        with pytest.raises(WireError):
            for kind, _ in records(pack_end(1) + pack_end(2) + b"\x00"):
                found.append(kind)
        assert found == [RecordType.END, RecordType.END]

    @pytest.mark.parametrize(
        ("unpack", "rest", "text"),
        [
            (unpack_event, bytes(EVENT_FIELDS - 2), "shorter than"),
            (unpack_cancel, bytes(8), "want 9"),
            (unpack_cancel, bytes(8) + b"\x09", "unknown reason 9"),
            (unpack_end, bytes(7), "want 8"),
            (unpack_decision, bytes(7), "want at least 8"),
            (unpack_decision, bytes(8) + b"\xc1", "decision: "),
            (unpack_decision, bytes(8) + b"\x91\xcc\xc8", "decision: "),  # no such verb
            (unpack_register, b"\x01", "want 2 and JSON"),
            (unpack_register, WIRE_VERSION.to_bytes(2, "little") + b"{", "register: "),
            (unpack_register, WIRE_VERSION.to_bytes(2, "little") + b'{"pid":1}', "register: .*missing"),
            (unpack_registered, WIRE_VERSION.to_bytes(2, "little") + b"[]", "registered: "),
        ],
    )
    def test_fields(self, unpack: object, rest: bytes, text: str) -> None:
        """Short or unreadable records of every type."""
        with pytest.raises(WireError, match=text):
            unpack(memoryview(rest))  # type: ignore[operator]

    @pytest.mark.parametrize("unpack", [unpack_register, unpack_registered])
    def test_another_wire_version(self, unpack: object) -> None:
        """Both versions are named."""
        with pytest.raises(WireError, match=f"wire version 999, this is version {WIRE_VERSION}"):
            unpack(memoryview((999).to_bytes(2, "little") + b"{}"))  # type: ignore[operator]

    @given(st.binary(max_size=300))
    def test_any_bytes(self, message: bytes) -> None:
        """Nothing but WireError, whatever comes; what comes out adds up to what went in."""
        unpackers = {
            RecordType.EVENT: unpack_event,
            RecordType.CANCEL: unpack_cancel,
            RecordType.END: unpack_end,
            RecordType.REGISTER: unpack_register,
            RecordType.DECISION: unpack_decision,
        }
        total = 0
        try:
            for kind, rest in records(message):
                total += 5 + len(rest)
                unpack = unpackers.get(kind)  # type: ignore[call-overload]
                if unpack is not None:
                    try:
                        unpack(rest)
                    except WireError:
                        pass
        except WireError:
            assert total < len(message)
        else:
            assert total == len(message)


def test_words_of_cancel() -> None:
    """Those of the agent protocol."""
    assert [reason.word for reason in CancelReason] == ["client_gone", "timeout", "decided", "shutdown"]


def test_numbers_are_for_ever() -> None:
    """They are on the wire between processes of different age."""
    assert {kind.name: kind.value for kind in RecordType} == {
        "REGISTER": 1,
        "EVENT": 2,
        "CANCEL": 3,
        "END": 4,
        "AUDIT": 5,
        "REGISTERED": 129,
        "UNKNOWN": 130,
        "DECISION": 131,
    }
