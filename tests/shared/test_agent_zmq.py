"""shared/wire/agent_zmq.py and agent_messages.py: any bytes are a message or a WireError; limits hold."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.defaults import (
    AGENT_CONTROL_MAX_BYTES,
    AGENT_MAX_FRAMES,
    AGENT_MAX_MESSAGE_BYTES,
    AGENT_METRICS_MAX_BYTES,
    AGENT_PING_MAX_BYTES,
    MAX_BATCH,
)
from shared.errors import WireError
from shared.wire.agent_messages import (
    Bye,
    Cancel,
    Configuration,
    Drain,
    EventEntry,
    Events,
    Health,
    Hello,
    HistogramSeries,
    Metrics,
    Pause,
    Ping,
    Proof,
    Refusal,
    Series,
    Side,
    VerdictEntry,
    Verdicts,
)
from shared.wire.agent_zmq import (
    VERBS,
    pack,
    pack_events,
    pack_v1,
    salvage_verdicts,
    text,
    unpack,
    unpack_v1,
    unpack_verdicts,
    verb_of,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
FRAME = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode())
HELLO: dict[str, Any] = {"protocol": 2, "agent": "waf", "instance": "x", "events": []}


def hello(**fields: Any) -> list[bytes]:
    return [b"HELLO", json.dumps({**HELLO, **fields}).encode()]


class TestFuzz:
    @given(st.lists(FRAME, max_size=4), st.sampled_from(Side))
    def test_any_frames(self, frames: list[bytes], side: Side) -> None:
        try:
            unpack(frames, side)
        except WireError:
            pass

    @given(st.sampled_from(sorted(VERBS)), st.lists(FRAME, max_size=3), st.sampled_from(Side))
    def test_any_frames_after_a_verb(self, verb: bytes, frames: list[bytes], side: Side) -> None:
        try:
            message = unpack([verb, *frames], side)
        except WireError:
            return
        assert verb_of(message) == verb

    @given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
    def test_verdicts_are_salvaged_or_refused(self, data: bytes) -> None:
        try:
            entries, bad, lost = salvage_verdicts(data)
        except WireError:
            return
        assert len(entries) + len(bad) + lost == len(json.loads(data))

    @given(st.lists(FRAME, max_size=3))
    def test_v1_replies(self, frames: list[bytes]) -> None:
        try:
            unpack_v1(frames)
        except WireError:
            pass

    @given(
        st.lists(
            st.tuples(
                st.text("abcdef0123456789-", min_size=1, max_size=32),
                st.integers(-10, 600_000),
                JSON.map(lambda value: json.dumps(value).encode()),
                st.none() | st.integers(0, 9),
            ),
            max_size=5,
        )
    )
    def test_events_are_joined_untouched(self, rows: list[Any]) -> None:
        """The joined bytes decode to what went in; a budget is never negative."""
        verb, data = pack_events(rows)
        assert verb == b"EVENTS"
        events = unpack([verb, data], Side.AGENTD)
        assert isinstance(events, Events)
        got = [(entry.call, entry.budget_ms, bytes(entry.event), entry.n) for entry in events.entries]
        assert got == [(call, max(0, budget), event, n) for call, budget, event, n in rows]

    def test_deep_json_is_a_wire_error(self) -> None:
        """A recursion limit is hit inside the decoder: that is the sender's fault like any other."""
        deep = b'[["a",' + b"[" * 200_000 + b"]" * 200_000 + b"]]"
        for verb in VERBS:
            for side in Side:
                with pytest.raises(WireError):
                    unpack([verb, b"[" * 50_000, b"x"], side)
                try:
                    unpack([verb, deep], side)
                except WireError:
                    pass


class TestHello:
    def test_defaults(self) -> None:
        read = unpack(hello(), Side.AGENT)
        assert isinstance(read, Hello)
        assert (read.calls, read.batch, read.body_bytes) == (100, 1, 1_048_576)

    def test_batch_is_bounded_by_ours(self) -> None:
        read = unpack(hello(max_batch=1_000_000, max_concurrency=7), Side.AGENT)
        assert isinstance(read, Hello)
        assert (read.calls, read.batch) == (7, MAX_BATCH)

    @pytest.mark.parametrize(
        "fields",
        [
            {"instance": ""},
            {"instance": "x" * 65},
            {"instance": "ä"},
            {"agent": "x" * 101},
            {"agent": 1},
            {"events": "request_headers"},
            {"events": ["x"] * 65},
            {"max_concurrency": 0},
            {"max_batch": -1},
            {"version": "v" * 101},
            {"protocol": "2"},
        ],
        ids=str,
    )
    def test_out_of_range(self, fields: dict[str, Any]) -> None:
        with pytest.raises(WireError, match="HELLO: "):
            unpack(hello(**fields), Side.AGENT)

    def test_another_protocol_is_read_whatever_else_it_says(self) -> None:
        """It shall hear REFUSE protocol, not malformed."""
        read = unpack([b"HELLO", b'{"protocol":3,"agent":7}'], Side.AGENT)
        assert isinstance(read, Hello)
        assert read.protocol == 3


class TestLimits:
    def test_control_messages(self) -> None:
        with pytest.raises(WireError, match="at most"):
            unpack([b"HEALTH", b'{"state":"healthy","x":"' + b"x" * AGENT_CONTROL_MAX_BYTES + b'"}'], Side.AGENT)

    def test_metrics_may_be_longer(self) -> None:
        rows = [{"name": "n", "value": 1, "labels": {"a": "x" * 100}}] * 1_000
        frame = json.dumps({"counters": rows}).encode()
        assert AGENT_CONTROL_MAX_BYTES < len(frame) < AGENT_METRICS_MAX_BYTES
        read = unpack([b"METRICS", frame], Side.AGENT)
        assert isinstance(read, Metrics)
        assert len(read.counters) == 1_000

    def test_over_all_frames(self) -> None:
        """No frame is too long, all of them are."""
        third = bytes(AGENT_MAX_MESSAGE_BYTES // 3)
        with pytest.raises(WireError, match="message of"):
            unpack([b"VERDICTS", b"[]", third, third, third], Side.AGENT)

    def test_number_of_frames(self) -> None:
        with pytest.raises(WireError, match="frames"):
            unpack([b"VERDICTS", b"[]", *[b""] * AGENT_MAX_FRAMES], Side.AGENT)

    def test_ping(self) -> None:
        assert unpack([b"PING", bytes(AGENT_PING_MAX_BYTES)], Side.AGENT) == Ping([bytes(AGENT_PING_MAX_BYTES)])
        with pytest.raises(WireError):
            unpack([b"PING", bytes(AGENT_PING_MAX_BYTES), b"x"], Side.AGENT)
        with pytest.raises(WireError):
            unpack([b"PING", *[b""] * 9], Side.AGENT)

    def test_call_ids(self) -> None:
        """An agent refuses a call of more than 32 characters."""
        with pytest.raises(WireError):
            unpack([b"EVENTS", b'[["' + b"x" * 33 + b'",1,{}]]'], Side.AGENTD)


class TestVerdicts:
    def test_entries_keep_their_verdicts_raw(self) -> None:
        one, two = unpack_verdicts(b'[["a", {"decision":"allow"} ],["b",7,3]]')
        assert (one.call, bytes(one.verdict), one.n) == ("a", b'{"decision":"allow"}', None)
        assert (two.call, bytes(two.verdict), two.n) == ("b", b"7", 3)

    def test_one_bad_entry_among_good_ones(self) -> None:
        data = b'[["a",{}],["b"],["c",{},"x"],[1,{}],"d",[],["e",{},0],null,["f",{},-1.5]]'
        with pytest.raises(WireError):
            unpack_verdicts(data)
        good, bad, lost = salvage_verdicts(data)
        assert [entry.call for entry in good] == ["a", "e"]
        assert bad == ["b", "c", "f"]
        assert lost == 4

    def test_more_members_than_are_known_are_ignored(self) -> None:
        (one,) = unpack_verdicts(b'[["a",{},0,"later"]]')
        assert (one.call, one.n) == ("a", 0)


class TestPack:
    @pytest.mark.parametrize(
        "message",
        [
            Hello(2, "waf", "x", ["request_headers"], version="1", max_concurrency=3, max_batch=4, max_body_bytes=5),
            Proof(bytes(32)),
            Refusal("malformed", "why", 5000),
            Configuration({"a": [1, None]}, "v", 1, 2, 3),
            Health("unhealthy", "m", 0.5),
            Metrics([Series("a", 1.0, {"l": "v"})], [], [HistogramSeries("h", 0.5, 2, [(0.1, 1)])]),
            Cancel([("a", "timeout")]),
            Drain(5),
            Drain(),
            Pause(),
            Bye(),
            Events([EventEntry("a", 5, msgspec.Raw(b"{}"), 0)], [b"body"]),
            Verdicts([VerdictEntry("a", msgspec.Raw(b"{}"), None)], []),
        ],
        ids=lambda message: type(message).__name__,
    )
    def test_there_and_back(self, message: Any) -> None:
        frames = pack(message)
        side = VERBS[frames[0]].senders[0]
        again = unpack(frames, side)
        assert pack(again) == frames
        assert type(again) is type(message)

    def test_absent_is_not_written(self) -> None:
        assert pack(Refusal("c", "r")) == [b"REFUSE", b'{"code":"c","reason":"r"}']
        assert pack(Refusal("c", "r", 0)) == [b"REFUSE", b'{"code":"c","reason":"r","retry_after_ms":0}']

    def test_a_view_of_the_workers_message_is_joined(self) -> None:
        view = memoryview(b'xx{"event_type":"e"}yy')[2:-2]
        assert pack_events([("a", 1, view, None)]) == [b"EVENTS", b'[["a",1,{"event_type":"e"}]]']
        assert pack_v1("e", view) == b'{"version":1,"event_type":"e","payload":{"event_type":"e"}}'

    def test_v1_reply_has_one_frame(self) -> None:
        with pytest.raises(WireError, match="2 frames"):
            unpack_v1([b'{"decision":"allow"}', b""])
        with pytest.raises(WireError, match="0 frames"):
            unpack_v1([])


def test_text_is_for_people() -> None:
    """Long and binary frames are shortened, nothing reaches a terminal that it would act on."""
    assert text([b"PROOF", bytes(32)]) == "PROOF | <32 bytes>"
    assert text([b"EVENTS", b"[]", "ä".encode()]) == "EVENTS | [] | ä"
    shown = text([b"EVENTS", b"x" * 300, b"\x1b[2J"])
    assert shown == f"EVENTS | {'x' * 200}... (300 bytes) | <4 bytes>"
