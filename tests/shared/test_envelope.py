"""The hop's records: they survive the wire, and bytes that are none are refused before they are believed."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision import (
    ALLOW,
    ChunkAction,
    ChunkVerdict,
    Decision,
    Finding,
    HeaderOp,
    Inspection,
    OpAction,
    Verb,
)
from shared.defaults import HOP_MAX_MESSAGE_BYTES, WIRE_VERSION
from shared.errors import WireError
from shared.events import EventKind
from shared.plan import Ask, Plan
from shared.wire.envelope import (
    EVENT_FIELDS,
    FLAG_FINAL,
    FLAG_LAST,
    NO_BODY,
    UNKNOWN_RECORD,
    CancelReason,
    EventRecord,
    RecordType,
    Register,
    Registered,
    messages_with_bodies,
    pack_audit,
    pack_cancel,
    pack_decision,
    pack_decision_body,
    pack_end,
    pack_event_fields,
    pack_register,
    pack_registered,
    records,
    records_of_worker,
    unpack_cancel,
    unpack_decision,
    unpack_decision_body,
    unpack_end,
    unpack_event,
    unpack_register,
    unpack_registered,
)

U16, U32, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
OPS = st.lists(st.builds(HeaderOp, st.sampled_from(list(OpAction)), st.text(), st.text()), max_size=3).map(tuple)
CHUNKS = st.builds(ChunkVerdict, st.sampled_from(list(ChunkAction)), st.integers(-1, 63), U64, U64)
FINDINGS = st.builds(
    Finding, st.text(), st.integers(0, 3), st.text(), st.floats(0, 1), st.integers(-1, 2**32), st.integers(-1, 2**32)
)
INSPECTIONS = st.builds(
    Inspection,
    st.text(),
    st.booleans(),
    st.floats(0, 1),
    st.lists(FINDINGS, max_size=2).map(tuple),
    st.none() | st.text(),
)
DECISIONS = st.builds(
    Decision,
    verb=st.sampled_from(list(Verb)),
    status=st.integers(0, 4999),
    headers=st.lists(st.tuples(st.text(), st.text()), max_size=3).map(tuple),
    body=st.binary(max_size=50),
    request_ops=OPS,
    response_ops=OPS,
    agent=st.text(),
    reason=st.text(),
    identity=st.text(),
    chunk=st.none() | CHUNKS,
    inspections=st.lists(INSPECTIONS, max_size=2).map(tuple),
)
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

    @given(st.tuples(U64, U64, U64, U64), U16, st.integers(0, 255), st.integers(0, 3), U16, U32)
    def test_event_with_a_body(
        self, ids: tuple[int, int, int, int], plan: int, kind: int, flags: int, frame: int, index: int
    ) -> None:
        """Which frame its bytes are, which chunk they are, and whether it is the last."""
        record = pack_event_fields(*ids, plan, kind, flags, 2, frame, index) + b"{}"
        found = unpack_event(only(record, RecordType.EVENT))
        is_final, is_last = bool(flags & FLAG_FINAL), bool(flags & FLAG_LAST)
        assert found == EventRecord(*ids, plan, kind, is_final, frame, b"{}", index, is_last)

    def test_the_layout_of_an_event(self) -> None:
        """Byte for byte: it is spoken between daemons of different age."""
        made = pack_event_fields(1, 2, 4, 8, 16, EventKind.REQUEST_BODY_CHUNK, FLAG_LAST, 2, 3, 5)
        assert made.hex() == (
            "2d000000" "02" "0100000000000000" "0200000000000000" "0400000000000000" "0800000000000000"
            "1000" "02" "02" "0300" "05000000"
        )  # fmt: skip

    @given(U64, st.sampled_from(list(CancelReason)), st.booleans())
    def test_cancel_and_end(self, exchange: int, reason: CancelReason, more_follows: bool) -> None:
        """Exchange, reason, and whether its pins stay."""
        record = pack_cancel(exchange, reason, more_follows=more_follows)
        assert unpack_cancel(only(record, RecordType.CANCEL)) == (exchange, reason, more_follows)
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

    @given(U64, DECISIONS, U16)
    def test_a_decision_whose_body_is_a_frame(self, event: int, decision: Decision, frame: int) -> None:
        """Its body is not in the record; the decision itself is left as it is."""
        body = decision.body
        record = pack_decision_body(event, decision, frame)
        found, place, without = unpack_decision_body(only(record, RecordType.DECISION_BODY))
        assert (found, place, without.body) == (event, frame, b"")
        assert decision.body == body
        assert msgspec.structs.replace(without, body=body) == decision

    def test_the_same_decision_twice(self) -> None:
        """Remembered by identity: one that is equal in all but its body is another."""
        decisions = [Decision(body=bytes([i]), chunk=ChunkVerdict(ChunkAction.REPLACE, 0)) for i in (1, 2, 1)]
        for decision in (*decisions, *decisions):
            assert unpack_decision(only(pack_decision(7, decision), RecordType.DECISION)) == (7, decision)

    @given(U64, DECISIONS)
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


UNPACKERS: dict[RecordType, Callable[[bytes], object]] = {
    RecordType.REGISTER: unpack_register,
    RecordType.REGISTERED: unpack_registered,
    RecordType.EVENT: unpack_event,
    RecordType.CANCEL: unpack_cancel,
    RecordType.END: unpack_end,
    RecordType.DECISION: unpack_decision,
    RecordType.DECISION_BODY: unpack_decision_body,
}


EVENT_RECORDS = st.builds(
    lambda ids, plan, kind, flags, event, frame, index: (
        pack_event_fields(*ids, plan, kind, flags, len(event), frame, index) + event
    ),
    st.tuples(U64, U64, U64, U64), U16, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40), U16, U32,
)  # fmt: skip
PLAIN_EVENTS = st.builds(lambda event: pack_event_fields(1, 2, 3, 4, 5, 6, FLAG_FINAL, len(event)) + event, st.binary())
OTHER_RECORDS = st.builds(
    lambda kind, rest: (1 + len(rest)).to_bytes(4, "little") + bytes((kind,)) + rest,
    st.sampled_from(sorted(RecordType)),  # an event too short for its fields, too
    st.binary(max_size=EVENT_FIELDS - 2),
)


@given(st.lists(st.one_of(EVENT_RECORDS, PLAIN_EVENTS, OTHER_RECORDS)), st.binary(max_size=60), st.booleans())
def test_events_on_the_way_are_what_unpack_event_makes_of_them(whole: list[bytes], tail: bytes, view: bool) -> None:
    """Record by record and error by error, whatever comes last."""
    message = b"".join(whole) + tail
    found: list[list[object]] = []
    for read in (records, records_of_worker):
        found.append([])
        try:
            for kind, rest in read(memoryview(message) if view else message):
                found[-1].append(kind)
                if kind != RecordType.EVENT or isinstance(rest, EventRecord):
                    found[-1].append(rest)
                    continue
                try:
                    found[-1].append(unpack_event(rest))
                except WireError as error:
                    found[-1].append(str(error))
        except WireError as error:
            found[-1].append(str(error))
    assert found[0] == found[1]
    assert sum(isinstance(one, EventRecord) for one in found[1]) >= sum(len(one) >= 4 + EVENT_FIELDS for one in whole)


def test_an_event_under_way_keeps_nothing_of_its_message() -> None:
    """A slow agent has one of a message's events for seconds; the other agents' are long answered."""
    record = pack_event_fields(1, 2, 3, 4, 5, 6, FLAG_FINAL, 20_000) + b"x" * 20_000
    events = [rest.event for _, rest in records_of_worker(record * 3) if isinstance(rest, EventRecord)]
    assert events == [b"x" * 20_000] * 3
    assert [type(event) for event in events] == [bytes] * 3


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
        for read in (records, records_of_worker):
            with pytest.raises(WireError, match="is over"):
                next(read(bytes(HOP_MAX_MESSAGE_BYTES + 1)))

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
            (unpack_cancel, bytes(8) + b"\x84", "unknown reason 132"),
            (unpack_end, bytes(7), "want 8"),
            (unpack_decision, bytes(7), "want at least 8"),
            (unpack_decision, bytes(8) + b"\xc1", "decision: "),
            (unpack_decision, bytes(8) + b"\x91\xcc\xc8", "decision: "),  # no such verb
            (unpack_decision, bytes(8) + b"\x97\x00\x00\x90\xc4\x00\x90\x90\xa1\xff", "decision: "),  # no UTF-8
            (unpack_decision, bytes(8) + b"\x91" * 5_000, "decision: "),
            (unpack_decision_body, bytes(9), "want at least 10"),
            (unpack_decision_body, bytes(10), "decision: "),
            (unpack_decision_body, bytes(10) + b"\xc1", "decision: "),
            (unpack_register, b"\x01", "want 2 and JSON"),
            (unpack_register, WIRE_VERSION.to_bytes(2, "little") + b"{", "register: "),
            (unpack_register, WIRE_VERSION.to_bytes(2, "little") + b'{"pid":1}', "register: .*missing"),
            (unpack_register, WIRE_VERSION.to_bytes(2, "little") + b'{"config_digest":"\xff"}', "register: "),
            (unpack_register, WIRE_VERSION.to_bytes(2, "little") + b"[" * 5_000, "register: "),
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
        total = 0
        try:
            for kind, rest in records(message):
                total += 5 + len(rest)
                unpack = UNPACKERS.get(kind)  # type: ignore[call-overload]
                if unpack is not None:
                    try:
                        unpack(rest)
                    except WireError:
                        pass
        except WireError:
            assert total < len(message)
        else:
            assert total == len(message)

    @given(
        st.sampled_from(sorted(UNPACKERS)),
        st.binary(max_size=40),
        st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4),
        st.integers(0, 500),
        DECISIONS,
    )
    def test_any_damage(
        self, kind: RecordType, noise: bytes, flips: list[tuple[int, int]], keep: int, decision: Decision
    ) -> None:
        """Good records with some bytes changed, cut short or followed by others: read, or WireError."""
        rests = {
            RecordType.REGISTER: pack_register(REGISTER),
            RecordType.REGISTERED: pack_registered(Registered("n0", "d0")),
            RecordType.EVENT: pack_event_fields(1, 2, 3, 4, 5, 6, 3, 2, 7, 8) + b"{}",
            RecordType.CANCEL: pack_cancel(1, CancelReason.DECIDED, more_follows=True),
            RecordType.END: pack_end(1),
            RecordType.DECISION: pack_decision(1, decision),
            RecordType.DECISION_BODY: pack_decision_body(1, decision, 2),
        }
        rest = bytearray(rests[kind][5:] + noise)
        for place, value in flips:
            if place < len(rest):
                rest[place] = value
        for length in (len(rest), keep):
            try:
                UNPACKERS[kind](bytes(rest[:length]))
            except WireError:
                pass


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
        "TOKENS": 6,
        "REGISTERED": 129,
        "UNKNOWN": 130,
        "DECISION": 131,
        "DECISION_BODY": 132,
    }


class TestMessagesWithBodies:
    @staticmethod
    def told(messages: list[tuple[bytes, ...]]) -> list[list[tuple[int, bytes]]]:
        """Of each message: its events' ids with their bodies; a record of another kind as (-its type, b"")."""
        found = []
        for whole, *bodies in messages:
            rows: list[tuple[int, bytes]] = []
            for kind, rest in records(whole):
                if kind != RecordType.EVENT:
                    rows.append((-kind, b""))
                    continue
                event = unpack_event(memoryview(rest))
                rows.append((event.event_id, b"" if event.body_frame == NO_BODY else bodies[event.body_frame]))
            found.append(rows)
        return found

    @staticmethod
    def event(number: int, size: int, frame: int = NO_BODY) -> bytes:
        return pack_event_fields(number, 1, 1, 1, 0, 1, 0, size, frame) + bytes(size)

    def test_each_has_the_bodies_of_its_own_events(self) -> None:
        """In their order, none over the limit, every body with its event."""
        third = HOP_MAX_MESSAGE_BYTES // 3
        bodies = [b"a", bytes(third), b"c", b"d" * third]
        whole = b"".join(
            (
                self.event(1, 100, 0),
                self.event(2, third, 1),
                self.event(3, third),
                pack_cancel(9, CancelReason.DECIDED),
                self.event(4, 10, 2),
                self.event(5, 10, 3),
                pack_end(9),
            )
        )
        messages = messages_with_bodies(whole, bodies)
        assert self.told(messages) == [
            [(1, b"a"), (2, bodies[1])],
            [(3, b""), (-RecordType.CANCEL, b""), (4, b"c"), (5, bodies[3]), (-RecordType.END, b"")],
        ]
        assert all(sum(map(len, frames)) <= HOP_MAX_MESSAGE_BYTES for frames in messages)

    def test_what_fits_stays_one_message(self) -> None:
        whole = self.event(1, 10, 0) + self.event(2, 10, 1)
        bodies = [bytes(HOP_MAX_MESSAGE_BYTES - len(whole) - 1), b"x"]
        assert messages_with_bodies(whole, bodies) == [(whole, *bodies)]
        bodies[1] = b"xy"
        assert self.told(messages_with_bodies(whole, bodies)) == [[(1, bodies[0])], [(2, b"xy")]]
