"""Bodies on the hop: frames beside the records in, long replacements as frames of their own out."""

import gc
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentd.ingress import _body
from shared.clock import S, now_ns
from shared.decision import ALLOW, ChunkAction, ChunkVerdict, Decision, HeaderOp, OpAction, Verb
from shared.defaults import HOP_BODIES_BYTES, HOP_BODY_FRAME_BYTES, HOP_BODY_MAX_BYTES, HOP_MAX_MESSAGE_BYTES
from shared.errors import WireError
from shared.events import EventKind
from shared.wire.envelope import (
    FLAG_LAST,
    NO_BODY,
    CancelReason,
    RecordType,
    pack_cancel,
    pack_end,
    pack_event_fields,
    records,
    unpack_decision,
    unpack_decision_body,
)
from shared.wire.verdict import Question, Screened
from tests.agentd.fakes import ALLOWED, ask, plan
from tests.agentd.test_ingress import Hop, WorkerEnd
from tests.support import until

CHUNK = EventKind.REQUEST_BODY_CHUNK
EVENT = b'{"event_type":"request_body_chunk"}'
PLANS = (plan(ask("waf")), plan(ask("waf"), kind=CHUNK, number=1))


def chunk(number: int, frame: int = NO_BODY, *, exchange: int = 1, index: int = 0, last: bool = False) -> bytes:
    """An EVENT record of plan 1."""
    flags = FLAG_LAST if last else 0
    deadline = now_ns() + S
    return pack_event_fields(number, exchange, 1, deadline, 1, CHUNK, flags, len(EVENT), frame, index) + EVENT


def replaced(data: bytes, **more: Any) -> Screened:
    return Screened(Decision(body=data, chunk=ChunkVerdict(ChunkAction.REPLACE, 0), **more))


@pytest.fixture
async def hop(short_tmp_dir: Path) -> AsyncIterator[Hop]:
    made = Hop(short_tmp_dir)
    made.instance.max_body_bytes = HOP_BODY_MAX_BYTES
    yield made
    made.close()


async def registered(hop: Hop) -> WorkerEnd:
    return await hop.registered(*PLANS)


def read(worker: WorkerEnd) -> list[list[bytes]]:
    """The messages that have come since, with their frames."""
    found = []
    while worker.socket.poll(0):
        found.append(worker.socket.recv_multipart())
    return found


def decisions(messages: list[list[bytes]]) -> dict[int, Decision]:
    """By event, put together as a worker does."""
    found = {}
    for frames in messages:
        for kind, rest in records(frames[0]):
            if kind == RecordType.DECISION_BODY:
                event_id, frame, decision = unpack_decision_body(rest)
                assert decision.body == b""
                found[event_id] = Decision(body=frames[1 + frame], chunk=decision.chunk)
            else:
                assert kind == RecordType.DECISION
                event_id, decision = unpack_decision(rest)
                found[event_id] = decision
    return found


class TestIn:
    async def test_each_event_gets_its_frame(self, hop: Hop) -> None:
        """By number, not by order; one without a body gets none, nor does an empty frame make one."""
        worker = await registered(hop)
        message = chunk(1, 1, last=True) + chunk(2, exchange=2) + chunk(3, 0, exchange=3, index=7) + chunk(4, 2)
        worker.send(message, b"for three", b"for one", b"")
        await until(lambda: len(hop.instance.sent) == 4)
        bodies = [None if call.body is None else bytes(call.body) for call in hop.instance.sent]
        assert bodies == [b"for one", None, b"for three", None]
        assert hop.instance.sent[0].question == Question(CHUNK, False, 0, True)
        assert hop.instance.sent[2].question == Question(CHUNK, False, 7, False)

    async def test_the_frame_is_passed_on_and_freed(self, hop: Hop) -> None:
        """When its event is over nobody holds it."""
        worker = await registered(hop)
        worker.send(chunk(1, 0), bytes(300_000))
        await until(lambda: hop.instance.sent)
        (call,) = hop.instance.sent
        body = call.body
        assert type(body) is bytes
        gc.disable()
        try:
            hop.instance.answer(replaced(b"x"))
            call.body = None  # as a transport does that has sent it
            hop.instance.sent.clear()
            del call
            assert sys.getrefcount(body) == 2  # ours, and the call's of getrefcount
        finally:
            gc.enable()

    @pytest.mark.parametrize(("first", "second", "bodies"), [(0, 0, 2), (2, 0, 2), (0, 0xFFFE, 1), (0, 0, 0)], ids=str)
    async def test_a_frame_that_is_not_there_or_used_twice(
        self, hop: Hop, first: int, second: int, bodies: int
    ) -> None:
        """The record is dropped alone; the others of the message are served."""
        worker = await registered(hop)
        bad = [first >= bodies, second >= bodies or second == first]
        worker.send(chunk(1, first) + chunk(2, second, exchange=2) + chunk(3, exchange=3), *[b"b"] * bodies)
        await until(lambda: len(hop.instance.sent) == 3 - sum(bad))
        assert hop.ingress.malformed == sum(bad)
        assert hop.instance.sent[-1].exchange_key == (worker.identity, 3)

    async def test_a_body_beside_a_head(self, hop: Hop) -> None:
        """Heads have none: the record is wrong."""
        worker = await registered(hop)
        worker.send(pack_event_fields(1, 1, 1, now_ns() + S, 0, 1, 0, 2, 0) + b"{}", b"body")
        await until(lambda: hop.ingress.malformed == 1)
        assert hop.instance.sent == []

    async def test_one_body_as_long_as_they_may_be(self, hop: Hop) -> None:
        """It fits a message with its event."""
        worker = await registered(hop)
        worker.send(chunk(1, 0), bytes(HOP_BODY_MAX_BYTES))
        await until(lambda: hop.instance.sent)
        assert hop.ingress.malformed == 0

    async def test_cancel_with_more_to_follow(self, hop: Hop) -> None:
        """The pins stay for the exchange's last event."""
        worker = await registered(hop)
        worker.send(chunk(1) + chunk(2))
        await until(lambda: len(hop.instance.calls) == 2)
        worker.send(pack_cancel(1, CancelReason.CLIENT_GONE, more_follows=True))
        await until(lambda: len(hop.instance.cancelled) == 2)
        assert hop.instance.pins == 1
        worker.send(pack_end(1))
        await until(lambda: hop.instance.pins == 0)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 5), max_size=8), st.integers(0, 4))
def test_any_numbers_of_frames(numbers: list[int], bodies: int) -> None:
    """Each frame once, none beyond the message; nothing else is raised."""

    frames = [b"", *(bytes([number]) for number in range(bodies))]
    used: set[int] = set()
    seen = []
    for number in numbers:
        try:
            found = _body(number, frames, used)
        except WireError:
            assert number >= bodies or number in seen
            continue
        assert found == bytes([number])
        seen.append(number)
    assert len(seen) == len(set(seen))


class TestOut:
    async def test_long_replacements_are_frames(self, hop: Hop) -> None:
        """From HOP_BODY_FRAME_BYTES on; shorter ones and pages of refusals stay in the record. Two messages a tick."""
        worker = await registered(hop)
        page = Decision(Verb.BLOCK, 403, body=b"p" * 10_000, agent="waf", reason="block")
        said = [
            replaced(b"a" * HOP_BODY_FRAME_BYTES),
            replaced(b"b" * (HOP_BODY_FRAME_BYTES - 1)),
            ALLOWED,
            Screened(page),
            replaced(b"c" * 300_000),
        ]
        worker.send(b"".join(chunk(number, exchange=number) for number in range(len(said))))
        await until(lambda: len(hop.instance.calls) == len(said))
        for screened in said:
            hop.instance.answer(screened)
        await until(lambda: worker.socket.poll(0))
        await until(lambda: not hop.ingress._dirty)
        messages: list[list[bytes]] = []
        await until(lambda: messages.extend(read(worker)) or len(messages) == 2)
        assert [len(frames) for frames in messages] == [1, 3]
        found = decisions(messages)
        assert [found[number] for number in range(len(said))] == [screened.decision for screened in said]
        assert found[2] is ALLOW
        assert hop.ingress.replies_dropped == 0

    async def test_a_message_is_full(self, hop: Hop) -> None:
        """It leaves early, and the next begins at frame 0; one that is alone may be longer."""
        worker = await registered(hop)
        link = hop.link(worker)
        sizes = [HOP_BODIES_BYTES // 3] * 4 + [HOP_BODY_MAX_BYTES, 5_000, 6_000]
        for number, size in enumerate(sizes):
            link.reply(number, replaced(bytes([number]) * size).decision or ALLOW)
        assert not link.out
        messages: list[list[bytes]] = []
        await until(lambda: messages.extend(read(worker)) or len(decisions(messages)) == len(sizes))
        assert [[len(frame) for frame in frames[1:]] for frames in messages] == [
            sizes[:2],
            sizes[2:4],
            sizes[4:5],
            sizes[5:],
        ]
        assert all(sum(map(len, frames)) <= HOP_MAX_MESSAGE_BYTES for frames in messages)
        found = decisions(messages)
        assert all(found[number].body == bytes([number]) * size for number, size in enumerate(sizes))

    async def test_what_fits_no_message_is_refused_and_never_lost(self, hop: Hop) -> None:
        """An allow that cannot be told must not become another one; a refusal loses its page, then its headers."""
        worker = await registered(hop)
        link = hop.link(worker)
        ops = tuple(HeaderOp(OpAction.ADD, "x-long", "v" * 1_000) for _ in range(20_000))
        over = bytes(HOP_MAX_MESSAGE_BYTES)
        link.reply(1, Decision(body=over, chunk=ChunkVerdict(ChunkAction.REPLACE, 0)))
        link.reply(2, Decision(request_ops=ops))
        link.reply(3, Decision(Verb.BLOCK, 451, body=over, agent="waf", reason="block"))
        link.reply(4, Decision(Verb.BLOCK, 452, response_ops=ops, body=over, agent="waf", reason="block"))
        link.reply(5, Decision(body=bytes(5_000), request_ops=ops, chunk=ChunkVerdict(ChunkAction.REPLACE, 0)))
        messages: list[list[bytes]] = []
        await until(lambda: messages.extend(read(worker)) or len(decisions(messages)) == 5)
        found = decisions(messages)
        for number in (1, 2, 5):
            assert (found[number].verb, found[number].status, found[number].reason) == (Verb.FAIL, 503, "malformed")
        assert (found[3].status, found[3].body) == (451, b"")
        assert (found[4].status, found[4].body, found[4].response_ops) == (452, b"", ())

    async def test_a_worker_that_does_not_read(self, short_tmp_dir: Path) -> None:
        """Dropped at the bound, each decision counted."""
        hop = Hop(short_tmp_dir, max_unsent=1_000_000)
        try:
            deaf = await hop.registered(*PLANS, RCVHWM=1)
            link = hop.link(deaf)
            body = replaced(bytes(10_000)).decision or ALLOW
            for number in range(1_200):
                link.reply(2 * number, body)
                link.reply(2 * number + 1, body)
                hop.ingress._flush()
                if hop.ingress.replies_dropped:
                    break
            assert hop.ingress.replies_dropped == 2
            assert (link.bodies, link.body_out, link.body_out_bytes) == ([], [], 0)
        finally:
            hop.close()
