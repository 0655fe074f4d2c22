"""The worker's end of the hop, against a ROUTER in agentd's place and a segment made by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from proxy.dispatch import Dispatch
from proxy.plan_view import PlanView
from shared.clock import MS
from shared.decision import ALLOW, ChunkAction, ChunkVerdict, Decision, Outcome, Verb, block
from shared.defaults import (
    AUDIT_WORKER_QUEUE,
    HOP_BODIES_BYTES,
    HOP_GRACE_MS,
    HOP_MAX_MESSAGE_BYTES,
    HOP_OUTSTANDING_BYTES,
    HOP_PENDING_MAX,
)
from shared.events import EventKind
from shared.metrics import (
    W_AUDIT_DROPPED,
    W_DECISIONS_LOCAL,
    W_EVENTS_SKIPPED,
    W_HOP_MALFORMED,
    W_LATE_DECISIONS,
    W_OBSERVED_DROPPED,
)
from shared.plan import Ask, Plan
from shared.wire.envelope import (
    UNKNOWN_RECORD,
    CancelReason,
    RecordType,
    Register,
    Registered,
    pack_decision,
    pack_decision_body,
    pack_registered,
    records,
    unpack_cancel,
    unpack_end,
    unpack_event,
    unpack_register,
)
from shared.wire.segment import AgentRow, BreakerState
from tests.support import Clock, until

HEADERS = EventKind.REQUEST_HEADERS


def plan(number: int, *asks: Ask, kind: EventKind = HEADERS, route: str = "r") -> Plan:
    return Plan(number, f"{route}{number}", kind, False, False, asks)


CLOSED = Ask("waf", "closed", False, 200)
OPEN = Ask("extra", "open", False, 50)
WATCH = Ask("watch", "closed", True, 50)
DYNAMIC = Ask("dyn", "closed", False, 100, True)
PLANS = (plan(0, CLOSED), plan(1, OPEN), plan(2, WATCH), plan(3, DYNAMIC), plan(4, CLOSED, OPEN, WATCH))


class Segment:
    """A view of agentd.seg whose contents the test sets."""

    def __init__(self) -> None:
        self.generation = 1
        self.alive = True
        self.rows: dict[str, AgentRow] = {}

    def is_alive(self, now: int) -> bool:
        return self.alive

    def agents(self) -> dict[str, AgentRow]:
        return self.rows

    def check(self) -> bool:
        return True

    def put(self, name: str, breaker: BreakerState = BreakerState.CLOSED, retry_at: int = 0, mask: int = 0) -> None:
        self.rows[name] = AgentRow(name, mask, 1, breaker, retry_at)
        self.generation += 1


class Waiting:
    """Who waits for a decision."""

    def __init__(self, exchange_id: int = 7) -> None:
        self.exchange_id = exchange_id
        self.decisions: list[Decision] = []

    def decided(self, decision: Decision) -> None:
        self.decisions.append(decision)


class Hop:
    """A Dispatch and the ROUTER that it talks to."""

    def __init__(self, dir: Path, clock: Clock) -> None:
        self.path = f"{dir}/w.sock"
        self.clock = clock
        self.segment = Segment()
        self.cells = [0] * 128
        self.context: zmq.Context[Any] = zmq.Context()
        self.router: zmq.Socket[bytes] | None = None
        self.records: list[tuple[int, bytes]] = []
        self.messages: list[list[int]] = []
        self.bodies: list[list[bytes]] = []
        self.peer = b""
        self.bind()
        register = Register(1, 0, "digest", "c-", PLANS)
        loop = asyncio.get_running_loop()
        self.dispatch = Dispatch(loop, self.path, self.segment, register, self.cells, clock)  # type: ignore[arg-type]

    def bind(self) -> None:
        self.router = self.context.socket(zmq.ROUTER)
        self.router.linger = 0
        self.router.maxmsgsize = HOP_MAX_MESSAGE_BYTES  # as agentd's
        self.router.bind(f"ipc://{self.path}")

    def view(self, number: int) -> PlanView:
        return self.dispatch.views[number]

    def pull(self) -> list[tuple[int, bytes]]:
        """Everything received so far, as (record type, rest)."""
        assert self.router is not None
        while self.router.poll(0):
            self.peer, frame, *bodies = self.router.recv_multipart()
            self.bodies.append(bodies)
            got = [(kind, bytes(rest)) for kind, rest in records(frame)]
            self.messages.append([kind for kind, _ in got])
            self.records += got
        return self.records

    async def got(self, kind: RecordType, count: int = 1) -> list[bytes]:
        """Wait for `count` records of a kind."""
        await until(lambda: sum(k == kind for k, _ in self.pull()) >= count, what=f"{count} {kind.name}")
        return [rest for k, rest in self.records if k == kind]

    def reply(self, data: bytes, *bodies: bytes) -> None:
        assert self.router is not None
        self.router.send_multipart([self.peer, data, *bodies])

    async def up(self) -> None:
        await self.got(RecordType.REGISTER)
        self.reply(pack_registered(Registered("n", "digest")))
        await until(lambda: self.dispatch.is_registered and self.dispatch.is_up)

    def kill(self) -> None:
        assert self.router is not None
        self.router.close(0)
        self.router = None

    def ask(self, number: int, exchange: int = 7, event: bytes = b'{"e":1}') -> "tuple[Waiting, int | Decision]":
        waiting = Waiting(exchange)
        now = self.clock()
        view = self.view(number)
        self.dispatch.sweep(now)  # takes up what the segment says by now
        local = self.dispatch.decide_now(view, now)
        assert view.may_decide_now or local is None
        if local is not None:
            return waiting, local
        return waiting, self.dispatch.send(waiting, view, exchange, event, now, view.flags)

    def close(self) -> None:
        self.dispatch.close()
        if self.router is not None:
            self.router.close(0)
        self.context.term()


@pytest.fixture
async def hop(short_tmp_dir: Path, clock: Clock) -> AsyncIterator[Hop]:
    made = Hop(short_tmp_dir, clock)
    yield made
    made.close()


async def test_registers_on_connect_and_when_asked_to(hop: Hop) -> None:
    """The plan table goes first on every connection, and again after UNKNOWN."""
    await hop.up()
    register = unpack_register(memoryview((await hop.got(RecordType.REGISTER))[0]))
    assert register.plans == PLANS
    hop.clock.ms(1000)
    hop.reply(UNKNOWN_RECORD)
    await hop.got(RecordType.REGISTER, 2)


async def test_event_and_decision(hop: Hop) -> None:
    """The event's bytes travel untouched; the decision comes back to who asked."""
    await hop.up()
    waiting, event_id = hop.ask(0)
    event = unpack_event(memoryview((await hop.got(RecordType.EVENT))[0]))
    assert (event.event_id, event.exchange_id, event.plan, event.mask, event.kind) == (event_id, 7, 0, 1, HEADERS)
    assert bytes(event.event) == b'{"e":1}'
    assert event.deadline_ns == hop.clock() + 200 * MS
    assert event.is_final
    assert isinstance(event_id, int)
    hop.reply(pack_decision(event_id, block(403, b"no", (), (), "waf")))
    await until(lambda: waiting.decisions)
    assert (waiting.decisions[0].verb, waiting.decisions[0].status) == (Verb.BLOCK, 403)


async def test_one_message_per_tick(hop: Hop) -> None:
    """All events, ends and cancels of one turn of the loop leave together."""
    await hop.up()
    for _ in range(5):
        hop.ask(0)
    hop.dispatch.end(9)
    hop.dispatch.audit(b'{"a":1}')
    await hop.got(RecordType.AUDIT)
    assert hop.messages[-1] == [RecordType.EVENT] * 5 + [RecordType.END, RecordType.AUDIT]
    assert unpack_end(memoryview((await hop.got(RecordType.END))[0])) == 9


async def test_timeout_is_answered_by_the_sweep(hop: Hop) -> None:
    """Not at the deadline (agentd's own answer may be on its way) but the grace after it; a late one is counted."""
    await hop.up()
    waiting, event_id = hop.ask(0)
    await hop.got(RecordType.EVENT)
    hop.dispatch.sweep(hop.clock.ms(200 + HOP_GRACE_MS - 1))
    assert not waiting.decisions
    hop.dispatch.sweep(hop.clock.ms(1))
    assert (waiting.decisions[0].verb, waiting.decisions[0].status) == (Verb.FAIL, 504)
    assert isinstance(event_id, int)
    hop.reply(pack_decision(event_id, ALLOW))
    await until(lambda: hop.cells[W_LATE_DECISIONS] == 1)
    assert len(waiting.decisions) == 1


async def test_death_of_agentd_answers_all_at_once(hop: Hop) -> None:
    """DISCONNECTED: what is pending fails now by its failure mode, what comes is decided without asking."""
    await hop.up()
    closed, _ = hop.ask(0)
    opened, _ = hop.ask(1)
    await hop.got(RecordType.EVENT, 2)
    hop.kill()
    await until(lambda: closed.decisions)
    await until(lambda: opened.decisions)
    assert closed.decisions[0].status == 503
    assert opened.decisions[0].verb is Verb.ALLOW
    assert isinstance(hop.ask(0)[1], Decision)
    assert hop.cells[W_DECISIONS_LOCAL + Outcome.DISCONNECTED] >= 3


async def test_agentd_comes_back(hop: Hop) -> None:
    """A new agentd on the same path: connected and registered again without anybody's doing."""
    await hop.up()
    hop.kill()
    await until(lambda: not hop.dispatch.is_up)
    hop.records.clear()
    hop.bind()
    await hop.up()
    hop.ask(0)
    await hop.got(RecordType.EVENT)


async def test_stale_heartbeat_is_death(hop: Hop) -> None:
    """A frozen agentd keeps its socket: the segment's heartbeat tells, and its thaw too."""
    await hop.up()
    waiting, _ = hop.ask(0)
    hop.segment.alive = False
    hop.dispatch.sweep(hop.clock())
    assert waiting.decisions[0].status == 503
    assert isinstance(hop.ask(0)[1], Decision)
    hop.segment.alive = True
    hop.dispatch.sweep(hop.clock())
    assert isinstance(hop.ask(0)[1], int)


async def test_what_a_frozen_agentd_was_asked_is_taken_back(hop: Hop) -> None:
    """It still has the events: when it goes on it must not wait for agents whose answers nobody wants."""
    await hop.up()
    for exchange in (11, 12):
        hop.ask(0, exchange)
    await hop.got(RecordType.EVENT, 2)
    hop.segment.alive = False
    hop.dispatch.sweep(hop.clock())
    rests = await hop.got(RecordType.CANCEL, 2)
    assert [unpack_cancel(memoryview(rest)) for rest in rests] == [(n, CancelReason.TIMEOUT, False) for n in (11, 12)]


async def test_nothing_is_taken_back_from_a_dead_agentd(hop: Hop) -> None:
    """Its successor was never asked."""
    await hop.up()
    waiting, _ = hop.ask(0)
    await hop.got(RecordType.EVENT)
    hop.kill()
    await until(lambda: waiting.decisions)
    hop.bind()
    hop.records.clear()
    await hop.up()
    hop.dispatch.end(1)
    await hop.got(RecordType.END)
    assert [kind for kind, _ in hop.records if kind != RecordType.REGISTER] == [RecordType.END]


async def test_what_one_turn_brings_may_be_more_than_one_message_may_be(hop: Hop) -> None:
    """agentd's socket would cut the connection, and all that is pending would fail: many clients could see to it."""
    await hop.up()
    count = HOP_MAX_MESSAGE_BYTES // 65_536 + 10
    asked = [hop.ask(0, number, b"%05d" % number + bytes(65_536)) for number in range(count)]
    hop.dispatch.end(99)
    events = [unpack_event(memoryview(rest)) for rest in await hop.got(RecordType.EVENT, count)]
    assert [bytes(event.event[:5]) for event in events] == [b"%05d" % number for number in range(count)]
    await hop.got(RecordType.END)
    assert hop.dispatch.is_up
    assert not any(waiting.decisions for waiting, _ in asked)
    assert [len(kinds) for kinds in hop.messages[-2:]] == [255, count + 1 - 255]


async def test_before_agentd_was_ever_there(short_tmp_dir: Path, clock: Clock) -> None:
    """No agentd yet: decided at once, and nothing waits."""
    hop = Hop(short_tmp_dir, clock)
    hop.kill()
    _, decision = hop.ask(0)
    assert isinstance(decision, Decision)
    assert decision.status == 503
    hop.close()


async def test_open_breaker_decides_here_until_its_retry(hop: Hop) -> None:
    """Every enforcing agent refused and no retry due: decided in the worker; then the event goes, to be the probe."""
    await hop.up()
    hop.segment.put("waf", BreakerState.OPEN, hop.clock() + 30 * MS)
    _, decision = hop.ask(0)
    assert isinstance(decision, Decision)
    assert (decision.status, decision.reason) == (503, "breaker_open")
    hop.clock.ms(30)
    assert isinstance(hop.ask(0)[1], int)
    hop.segment.put("waf", BreakerState.FORCED_OPEN)
    hop.clock.ms(1_000_000)
    assert isinstance(hop.ask(0)[1], Decision)


async def test_one_closed_breaker_is_enough_to_ask(hop: Hop) -> None:
    await hop.up()
    hop.segment.put("waf", BreakerState.OPEN, hop.clock() + 30 * MS)
    hop.segment.put("extra")
    hop.segment.put("watch")
    assert isinstance(hop.ask(4)[1], int)


async def test_observers_hear_what_was_decided_without_them(hop: Hop) -> None:
    """Both enforcing breakers open: decided here, and the event still goes to the observer alone."""
    await hop.up()
    for name in ("waf", "extra"):
        hop.segment.put(name, BreakerState.OPEN, hop.clock() + 30 * MS)
    _, decision = hop.ask(4)
    assert isinstance(decision, Decision)
    assert decision.status == 503
    event = unpack_event(memoryview((await hop.got(RecordType.EVENT))[0]))
    assert event.mask == 0b100


async def test_plan_of_observers_is_not_waited_for(hop: Hop) -> None:
    await hop.up()
    assert hop.ask(2)[1] is ALLOW
    await hop.got(RecordType.EVENT)


async def test_hello_decides_where_config_does_not(hop: Hop) -> None:
    """Unknown = asked; a HELLO without the event = skipped, no message; one with it = asked."""
    await hop.up()
    assert isinstance(hop.ask(3)[1], int)
    hop.segment.put("dyn", mask=EventKind.RESPONSE_HEADERS.bit)
    assert hop.ask(3)[1] is ALLOW
    assert hop.cells[W_EVENTS_SKIPPED] == 1
    hop.segment.put("dyn", mask=HEADERS.bit)
    assert isinstance(hop.ask(3)[1], int)


async def test_cancel(hop: Hop) -> None:
    """A cancelled event is forgotten here and cancelled there."""
    await hop.up()
    waiting, event_id = hop.ask(0, exchange=11)
    assert isinstance(event_id, int)
    hop.dispatch.forget(hop.view(0), event_id)
    hop.dispatch.cancel_exchange(11, CancelReason.CLIENT_GONE)
    rest = (await hop.got(RecordType.CANCEL))[0]
    assert unpack_cancel(memoryview(rest)) == (11, CancelReason.CLIENT_GONE, False)
    hop.dispatch.sweep(hop.clock.ms(10_000))
    assert not waiting.decisions


async def test_pending_is_bounded(hop: Hop) -> None:
    await hop.up()
    hop.dispatch._waiting = HOP_PENDING_MAX
    _, decision = hop.ask(0)
    hop.dispatch._waiting = 0
    assert isinstance(decision, Decision)
    assert decision.reason == "queue_full"


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"\x02\x00\x00\x00\x83\x01"])
async def test_garbage_is_counted_and_survived(hop: Hop, data: bytes) -> None:
    await hop.up()
    hop.reply(data)
    waiting, event_id = hop.ask(0)
    await hop.got(RecordType.EVENT)
    assert isinstance(event_id, int)
    hop.reply(pack_decision(event_id, ALLOW))
    await until(lambda: waiting.decisions)
    assert hop.cells[W_HOP_MALFORMED] == (1 if data else 0)


async def test_another_wire_version_is_never_asked(hop: Hop) -> None:
    """agentd answers with a version that is not ours: failure modes decide until it is replaced."""
    await hop.got(RecordType.REGISTER)
    hop.reply(b"\x05\x00\x00\x00\x81\xff\x7f{}")
    await until(lambda: hop.cells[W_HOP_MALFORMED])
    assert not hop.dispatch.is_up
    assert isinstance(hop.ask(0)[1], Decision)


async def test_audit_waits_bounded_for_agentd(short_tmp_dir: Path, clock: Clock) -> None:
    """Records of a time without agentd are sent when it is there; the oldest give way."""
    hop = Hop(short_tmp_dir, clock)
    hop.kill()
    for number in range(AUDIT_WORKER_QUEUE + 5):
        hop.dispatch.audit(b"%d" % number)
    hop.bind()
    await hop.got(RecordType.REGISTER)
    hop.dispatch.sweep(hop.clock.ms(10))
    assert hop.records[-1][0] == RecordType.REGISTER, "an agentd that does not know the worker yet would drop them"
    hop.reply(pack_registered(Registered("n", "digest")))
    got = await hop.got(RecordType.AUDIT, AUDIT_WORKER_QUEUE)
    hop.dispatch.audit(b"last")
    got = await hop.got(RecordType.AUDIT, AUDIT_WORKER_QUEUE + 1)
    assert (got[0], got[-1]) == (b"5", b"last")
    assert hop.cells[W_AUDIT_DROPPED] == 5
    hop.close()


async def test_audit_waits_bounded_for_an_agentd_that_stands_still(hop: Hop) -> None:
    """Not in its connection, where a flood of refusals would pile up: what it never takes is counted, too."""
    await hop.up()
    hop.segment.alive = False
    hop.dispatch.sweep(hop.clock())
    for number in range(AUDIT_WORKER_QUEUE + 2):
        hop.dispatch.audit(b"%d" % number)
    hop.dispatch.end(1)
    await hop.got(RecordType.END)
    assert not [kind for kind, _ in hop.records if kind == RecordType.AUDIT]
    assert hop.cells[W_AUDIT_DROPPED] == 2
    hop.segment.alive = True
    hop.dispatch.sweep(hop.clock())
    got = await hop.got(RecordType.AUDIT, AUDIT_WORKER_QUEUE)
    assert (got[0], got[-1]) == (b"2", b"%d" % (AUDIT_WORKER_QUEUE + 1))
    hop.segment.alive = False
    hop.dispatch.sweep(hop.clock())
    hop.dispatch.audit(b"never")
    hop.dispatch.close()
    assert hop.cells[W_AUDIT_DROPPED] == 3


async def test_a_full_socket_fails_several_questions_of_one_exchange(hop: Hop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first failure ends the exchange, which forgets the others: they are gone then, once."""
    await hop.up()
    monkeypatch.setattr(hop.dispatch, "_transmit", lambda frames: False)

    class Ending(Waiting):
        def decided(self, decision: Decision) -> None:
            super().decided(decision)
            for event_id in others:
                hop.dispatch.forget(view, event_id)

    view, waiting, others = hop.view(0), Ending(), []
    for _ in range(3):
        event_id = hop.dispatch.send(waiting, view, 7, b"{}", hop.clock())
        assert isinstance(event_id, int)
        others.append(event_id)
    await until(lambda: waiting.decisions)
    assert ([decision.reason for decision in waiting.decisions], hop.dispatch._waiting) == (["queue_full"], 0)


async def test_what_does_not_leave_early_fails_nobody_who_is_still_sending(
    hop: Hop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure ends exchanges, perhaps the one whose next question makes room for itself: that one is asked first."""
    await hop.up()
    monkeypatch.setattr(hop.dispatch, "_transmit", lambda frames: False)
    view, waiting, body = hop.view(0), Waiting(), bytes(HOP_BODIES_BYTES // 2 + 1)
    for index in range(3):
        asked = hop.dispatch.send_body(waiting, view, view.mask, b"{}", body, index, False, hop.clock())
        assert isinstance(asked, int)
        assert not waiting.decisions
    await until(lambda: len(waiting.decisions) == 3)
    assert {decision.reason for decision in waiting.decisions} == {"queue_full"}
    assert (hop.dispatch._waiting, hop.dispatch._outstanding) == (0, 0)


async def test_ends_that_a_full_socket_does_not_take_are_told_later(hop: Hop, monkeypatch: pytest.MonkeyPatch) -> None:
    """agentd keeps what is pinned for an exchange until it hears of its end: that is not lost with an event."""
    await hop.up()
    refused: list[bytes] = []

    def refuse(frames: Sequence[bytes]) -> bool:
        refused.append(frames[0])
        return False

    with monkeypatch.context() as full:
        full.setattr(hop.dispatch, "_transmit", refuse)
        hop.dispatch.end(1)
        hop.dispatch.cancel_exchange(2, CancelReason.CLIENT_GONE, more_follows=True)
        hop.dispatch.tell(hop.view(0), 2, b"{}", hop.clock())
        hop.dispatch.tell(hop.view(0), 3, b"{}", hop.clock())
        await until(lambda: refused)
        hop.dispatch.sweep(hop.clock())
        await until(lambda: len(refused) == 2)
    hop.dispatch.sweep(hop.clock())
    ends = await hop.got(RecordType.END, 3)
    assert [unpack_end(rest) for rest in ends] == [1, 2, 3]
    cancels = await hop.got(RecordType.CANCEL)
    assert [unpack_cancel(rest) for rest in cancels] == [(2, CancelReason.CLIENT_GONE, False)]
    assert not [kind for kind, _ in hop.records if kind == RecordType.EVENT]


async def test_observers_leave_room_for_those_who_decide(hop: Hop) -> None:
    """Half of what may be on its way is not theirs: a decision never fails for what was shown to observers."""
    await hop.up()
    half = HOP_OUTSTANDING_BYTES // 2
    assert hop.dispatch.has_room(half)
    hop.dispatch._outstanding = 1
    assert not hop.dispatch.has_room(half)
    hop.dispatch._outstanding, hop.dispatch._waiting = 0, HOP_PENDING_MAX // 2
    assert not hop.dispatch.has_room(1)
    hop.dispatch._waiting = 0
    assert hop.cells[W_OBSERVED_DROPPED] == 2


async def test_audit_that_a_full_socket_does_not_take_is_counted(hop: Hop, monkeypatch: pytest.MonkeyPatch) -> None:
    """agentd reads nothing, and as much as may be waits for it: gone, but not in silence."""
    await hop.up()
    monkeypatch.setattr(hop.dispatch, "_transmit", lambda frames: False)
    hop.dispatch.audit(b"1")
    hop.dispatch.audit(b"2")
    await until(lambda: hop.cells[W_AUDIT_DROPPED] == 2)


async def test_long_decisions_come_whole(hop: Hop) -> None:
    """Records that together are a long frame, and a replacement that is a frame of its own."""
    await hop.up()
    asked = [hop.ask(0, number) for number in range(40)]
    await hop.got(RecordType.EVENT, 40)
    pages = [b"%d" % number * 2_000 for number in range(39)]
    whole = b""
    for (_, event_id), page in zip(asked, pages, strict=False):
        assert isinstance(event_id, int)
        whole += pack_decision(event_id, block(403, page, (("X-A", "1"),), (), "waf"))
    last, last_id = asked[39]
    assert isinstance(last_id, int)
    replaced = Decision(Verb.ALLOW, chunk=ChunkVerdict(ChunkAction.REPLACE))
    hop.reply(whole + pack_decision_body(last_id, replaced, 0), b"z" * 100_000)
    await until(lambda: last.decisions)
    assert [bytes(waiting.decisions[0].body) for waiting, _ in asked[:39]] == pages
    assert all(("X-A", "1") in waiting.decisions[0].headers for waiting, _ in asked[:39])
    assert last.decisions[0].body == b"z" * 100_000


def test_frozen_names() -> None:
    """The cancel words are those of the agent protocol."""
    make: Callable[[CancelReason], str] = lambda reason: reason.word  # noqa: E731
    assert [make(reason) for reason in CancelReason] == ["client_gone", "timeout", "decided", "shutdown"]


async def test_a_defect_in_one_exchange_costs_no_other(hop: Hop, caplog: pytest.LogCaptureFixture) -> None:
    """Both decisions come in one message; the second is heard although the first one's waiter fails."""
    await hop.up()
    broken, first = hop.ask(0, 11)
    waiting, second = hop.ask(0, 12)
    assert isinstance(first, int)
    assert isinstance(second, int)

    def fail(decision: Decision) -> None:
        raise RuntimeError("defect")

    broken.decided = fail  # type: ignore[method-assign]
    hop.reply(pack_decision(first, ALLOW) + pack_decision(second, ALLOW))
    await until(lambda: waiting.decisions)
    assert "a decision could not be applied" in caplog.text
