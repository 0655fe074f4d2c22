"""Workers' events become calls, calls become one decision in time; nothing is left over, whatever happens."""

from collections import Counter

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentd.call import CallState
from agentd.dispatcher import Worker
from agentd.group import EventGroup
from shared.clock import MS
from shared.config.schema import CircuitBreaker
from shared.decision import ALLOW, Outcome
from shared.errors import WireError
from shared.events import EventKind
from shared.plan import Plan
from shared.wire.envelope import CancelReason, EventRecord
from shared.wire.segment import NEVER_NS, BreakerState
from shared.wire.verdict import Screened
from tests.agentd.fakes import ALLOWED, BLOCKED, WITH_OPS, Core, agent, ask, plan
from tests.support import Clock

ERROR = Screened(error="oops")


class TestEvents:
    def test_one_agent_allows(self, clock: Clock) -> None:
        """The event's bytes reach the instance untouched; the plain allow comes back as the shared one."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        event = core.event()
        (call,) = core.instances["waf"].sent
        assert bytes(call.event) == b'{"event_type":"request_headers"}'
        core.answer("waf")
        assert core.replies == [(event, ALLOW)]
        assert core.replies[0][1] is ALLOW
        assert core.audit == []
        core.assert_idle()

    def test_call_ids_are_ours(self, clock: Clock) -> None:
        """They begin with the nonce of this start, differ for every call, and fit the protocol's limit."""
        core = Core(clock, [plan(ask("waf"), ask("dlp"))], [agent(), agent("dlp")])
        for _ in range(20):
            core.event()
        ids = [call.call_id for instance in core.instances.values() for call in instance.sent]
        assert len(set(ids)) == 40
        assert all(call_id.startswith("n0nce-") and len(call_id) <= 32 for call_id in ids)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"plan": 3}, "event of plan 3, the table has 1"),
            ({"kind": 3}, "event of kind 3 with mask 1 does not fit plan 0"),
            ({"mask": 2}, "event of kind 1 with mask 2 does not fit plan 0"),
            ({"event_id": 1}, "event 1 is under way already"),
        ],
    )
    def test_records_that_fit_nothing(self, clock: Clock, change: dict[str, int], text: str) -> None:
        """An unknown plan, a foreign kind, a bit beyond the plan, a second event of the same id: dropped."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        core.event()
        fields = {"event_id": 9, "exchange_id": 1, "mask": 1, "deadline_ns": clock() + 5, "plan": 0, "kind": 1}
        record = EventRecord(**{**fields, **change}, is_final=True, body_frame=0, event=memoryview(b""))
        with pytest.raises(WireError, match=text):
            core.dispatcher.event(core.worker, record)
        core.answer("waf")
        core.assert_idle()
        assert len(core.replies) == 1

    def test_too_late_on_arrival(self, clock: Clock) -> None:
        """Nobody is asked; the failure modes answer at once, also in sequence; observers are dropped."""
        agents = [agent(), agent("dlp")]
        plans = [
            plan(ask("waf"), ask("dlp", "open")),
            plan(ask("waf", "open"), ask("dlp"), sequential=True, number=1),
            plan(ask("waf", observe=True), number=2),
        ]
        core = Core(clock, plans, agents)
        for number in range(3):
            core.event(number, in_ms=0)
        assert core.decided == [("fail", 504, "waf", "timeout"), ("fail", 504, "dlp", "timeout")]
        assert core.instances["waf"].sent == []
        assert core.dispatcher.expired_total == 3
        assert [entry.message for entry in core.audit[1].agents] == ["no time left to ask"] * 2
        core.assert_idle()

    def test_a_deadline_beyond_reason_is_cut(self, clock: Clock) -> None:
        """A worker whose clock errs cannot hold up the events behind it."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        core.event(in_ms=10**9)
        core.event()
        core.pass_ms(200)
        assert [verb for verb, *_ in core.decided] == ["fail", "fail"]


class TestDeadlines:
    def test_answers_at_the_deadline(self, clock: Clock) -> None:
        """The alarm is armed for it; then the call is cancelled, the failure mode applied, the worker told."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        core.event(in_ms=150)
        assert core.armed == [clock() + 150 * MS]
        core.pass_ms(149)
        assert core.replies == []
        core.pass_ms(1)
        assert core.decided == [("fail", 504, "waf", "timeout")]
        assert [reason for _, reason in core.instances["waf"].cancelled] == [CancelReason.TIMEOUT]
        core.assert_idle()

    def test_alarm_is_armed_for_earlier_ones_only(self, clock: Clock) -> None:
        """One timer: later deadlines do not touch it; when it rings it is armed for what is left."""
        core = Core(clock, [plan(ask("waf", timeout_ms=200)), plan(ask("waf", timeout_ms=50), number=1)], [agent()])
        start = clock()
        core.event(0)
        core.event(0)
        core.event(1)
        assert core.armed == [start + 200 * MS, start + 50 * MS]
        core.pass_ms(50)
        assert core.armed[2:] == [start + 200 * MS]
        core.pass_ms(150)
        assert core.armed[3:] == []
        assert core.dispatcher._alarm.at_ns == NEVER_NS

    def test_each_call_has_its_own_timeout_too(self, clock: Clock) -> None:
        """The faster agent's timeout ends its call; the phase goes on until the event's deadline."""
        core = Core(clock, [plan(ask("waf", "open", timeout_ms=50), ask("dlp"))], [agent(), agent("dlp")])
        core.event()
        core.pass_ms(50)
        assert core.instances["waf"].calls == {}
        assert core.replies == []
        core.answer("dlp")
        assert core.decided == [("allow", 0, "", "")]
        assert [(entry.agent, entry.outcome) for entry in core.audit[0].agents] == [
            ("waf", "timeout"),
            ("dlp", "decision"),
        ]

    def test_workers_with_different_clocks_ends(self, clock: Clock) -> None:
        """A late event of one worker does not wait behind an earlier arrival of another."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        other = core.register(b"w2", [plan(ask("waf"))])
        core.event(in_ms=200)
        core.event(in_ms=20, worker=other)
        core.pass_ms(20)
        assert len(core.replies) == 1


class TestWorkers:
    def test_gone_cancels_everything(self, clock: Clock) -> None:
        """Enforcing and observing calls, queued ones too; pins go; nothing is replied."""
        plans = [plan(ask("waf"), ask("dlp", observe=True))]
        core = Core(clock, plans, [agent(max_concurrent_calls=1), agent("dlp")])
        core.event(exchange=1, final=False)
        core.event(exchange=2, final=False)
        core.dispatcher.worker_gone(core.worker)
        assert [reason for _, reason in core.instances["waf"].cancelled] == [CancelReason.CLIENT_GONE]
        assert len(core.instances["dlp"].cancelled) == 2
        assert core.replies == []
        assert core.dispatcher.workers == {}
        core.assert_idle()

    def test_registering_again_begins_anew(self, clock: Clock) -> None:
        """What the earlier registration waited for is cancelled; the new table counts."""
        core = Core(clock, [plan(ask("waf"))], [agent(), agent("dlp")])
        core.event()
        again = core.register(b"w1", [plan(ask("dlp"))])
        assert len(core.instances["waf"].cancelled) == 1
        core.event(worker=again)
        assert len(core.instances["dlp"].sent) == 1
        assert core.dispatcher.workers == {b"w1": again}
        core.dispatcher.worker_gone(core.worker)  # a late word about the old one
        assert core.dispatcher.workers == {b"w1": again}

    @pytest.mark.parametrize(
        "bad",
        [
            plan(number=0),
            plan(ask("waf"), number=1),
            plan(ask("waf", timeout_ms=0)),
            plan(*[ask("waf")] * 65),
        ],
    )
    def test_a_table_that_cannot_be_run(self, clock: Clock, bad: Plan) -> None:
        """No agents, a wrong number, no time, more agents than a mask has bits: refused, the old table stays."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        with pytest.raises(WireError, match="cannot be run"):
            core.register(b"w1", [bad])
        assert core.dispatcher.workers == {b"w1": core.worker}

    def test_tables_of_different_age_do_not_meet(self, clock: Clock) -> None:
        """Each worker's events are asked and failed by its own table."""
        core = Core(clock, [plan(ask("waf", "closed"))], [agent()])
        young = core.register(b"w2", [plan(ask("waf", "open"))])
        core.event(in_ms=50)
        core.event(in_ms=50, worker=young)
        core.pass_ms(50)
        assert [verb for verb, *_ in core.decided] == ["fail", "allow"]

    def test_same_ids_of_two_workers(self, clock: Clock) -> None:
        """Event and exchange ids are each worker's own."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        other = core.register(b"w2", [plan(ask("waf"))])
        core.event(exchange=1, final=False)
        core.last_event = 0
        core.event(exchange=1, final=False, worker=other)
        core.dispatcher.cancel(other, 1, CancelReason.CLIENT_GONE)
        core.answer("waf")
        assert core.replies == [(1, ALLOW)]
        core.dispatcher.end(core.worker, 1)
        core.assert_idle()


class TestLanes:
    def test_unknown_agent_is_disconnected(self, clock: Clock) -> None:
        """A name that agentd does not know fails like an agent that is not there."""
        core = Core(clock, [plan(ask("new"))], [agent()])
        core.event()
        assert core.decided == [("fail", 503, "new", "disconnected")]
        assert core.audit[0].agents[0].message == "no agent of this name"
        core.assert_idle()

    def test_reload_makes_it_known(self, clock: Clock) -> None:
        """Tables are resolved again when the configuration changes; events under way keep what they have."""
        core = Core(clock, [plan(ask("new", timeout_ms=500), ask("waf"))], [agent()])
        core.event()
        core.dispatcher.configure([agent(), agent("new")])
        core.event()
        assert core.dispatcher.lanes["new"].ledger.outcomes[Outcome.DISCONNECTED] == 1  # there, but without an instance
        assert core.dispatcher.awaited == 2
        core.pass_ms(200)
        core.assert_idle()

    def test_a_lane_is_kept_while_it_is_named(self, clock: Clock) -> None:
        """Gone from the configuration: it goes on for workers that name it, and ends with the last of them."""
        told: list[bool] = []
        core = Core(clock, [plan(ask("old"))], [agent("old"), agent("waf")], on_lanes=lambda: told.append(True))
        core.dispatcher.configure([agent("waf")])
        assert core.dispatcher.lanes["old"].is_configured is False
        core.event()
        core.answer("old")
        assert core.decided == [("allow", 0, "", "")]
        assert len(told) == 2
        core.dispatcher.worker_gone(core.worker)
        assert len(told) == 3
        assert list(core.dispatcher.lanes) == ["waf"]
        assert core.instances["old"].is_draining
        assert not core.instances["waf"].is_draining

    def test_a_lane_nobody_names_goes_at_once(self, clock: Clock) -> None:
        """And comes back new when it is configured again."""
        core = Core(clock, [plan(ask("waf"))], [agent(), agent("idle")])
        core.dispatcher.configure([agent()])
        assert list(core.dispatcher.lanes) == ["waf"]
        core.dispatcher.configure([agent(), agent("idle")])
        assert core.dispatcher.lanes["idle"].live_instances == 0

    def test_a_retained_lane_is_configured_again(self, clock: Clock) -> None:
        """The same lane with its instances, under the new settings."""
        core = Core(clock, [plan(ask("waf"))], [agent()])
        core.dispatcher.configure([])
        core.dispatcher.configure([agent(max_concurrent_calls=9)])
        lane = core.dispatcher.lanes["waf"]
        assert (lane.is_configured, lane.live_instances, lane.settings.max_concurrent_calls) == (True, 1, 9)

    def test_breaker_changes_are_told(self, clock: Clock) -> None:
        """With the agent's name, for the mirror and the log."""
        seen: list[tuple[str, BreakerState, BreakerState]] = []
        agents = [agent(circuit_breaker=CircuitBreaker(failure_threshold=1))]
        core = Core(clock, [plan(ask("waf"))], agents, on_breaker=lambda *change: seen.append(change))
        core.event()
        core.answer("waf", ERROR)
        assert seen == [("waf", BreakerState.CLOSED, BreakerState.OPEN)]


class TestPins:
    def phases(self) -> list:  # type: ignore[type-arg]
        return [plan(ask("waf")), plan(ask("waf"), kind=EventKind.RESPONSE_HEADERS, number=1)]

    def test_until_the_final_event(self, clock: Clock) -> None:
        """The final event goes to the same instance and frees it."""
        core = Core(clock, self.phases(), [agent()])
        core.event(0, final=False)
        core.answer("waf")
        assert core.instances["waf"].pins == 1
        core.event(1)
        assert core.instances["waf"].pins == 1
        core.answer("waf")
        core.assert_idle()

    def test_until_the_last_open_event(self, clock: Clock) -> None:
        """A final event that is decided before an earlier one leaves the pin to that one."""
        core = Core(clock, self.phases(), [agent(max_concurrent_calls=1)])
        core.event(0, final=False)
        core.event(0, final=False)  # waits, pinned
        core.event(1, mask=0)
        assert core.instances["waf"].pins == 1
        core.answer("waf")
        core.answer("waf")
        assert len(core.replies) == 2
        core.assert_idle()

    @pytest.mark.parametrize("how", ["end", "cancel"])
    def test_until_end_or_cancel(self, clock: Clock, how: str) -> None:
        """Both free the instance; twice is harmless, as is an exchange never heard of."""
        core = Core(clock, self.phases(), [agent()])
        core.event(0, final=False)
        core.answer("waf")
        for exchange in (7, 7, 99):
            if how == "end":
                core.dispatcher.end(core.worker, exchange)
            else:
                core.dispatcher.cancel(core.worker, exchange, CancelReason.CLIENT_GONE)
        core.assert_idle()

    def test_a_single_final_event_pins_nothing(self, clock: Clock) -> None:
        """The usual request of one phase costs no pin."""
        core = Core(clock, self.phases(), [agent()])
        core.event(0, final=True)
        assert core.instances["waf"].pins == 0
        assert core.worker.pins == {}

    def test_many_events_of_one_exchange(self, clock: Clock) -> None:
        """A long exchange remembers each lane once."""
        core = Core(clock, self.phases(), [agent()])
        for _ in range(50):
            core.event(0, final=False)
            core.answer("waf")
        assert len(core.worker.pins[7]) == 1
        core.dispatcher.end(core.worker, 7)
        core.assert_idle()


class TestCancel:
    def test_client_gone(self, clock: Clock) -> None:
        """Every agent still working gets CANCEL, observers too; no decision is sent, nobody is blamed."""
        core = Core(clock, [plan(ask("waf"), ask("dlp", observe=True))], [agent(), agent("dlp")])
        core.event()
        core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE)
        for name in ("waf", "dlp"):
            assert [reason for _, reason in core.instances[name].cancelled] == [CancelReason.CLIENT_GONE]
        assert core.replies == []
        assert core.audit == []
        core.assert_idle()

    def test_one_that_ends_while_another_is_cancelled(self, clock: Clock) -> None:
        """Cancelling gives a permit back, the next call finds a full socket: its event is over before its turn."""
        core = Core(
            clock, [plan(ask("waf")), plan(ask("dlp"), number=1)], [agent(max_concurrent_calls=1), agent("dlp")]
        )
        core.event(0, exchange=1, final=False)
        core.event(0, exchange=2, final=False)
        core.event(1, exchange=1, final=False)
        core.event(0, exchange=1, final=False)
        core.instances["waf"].is_full = True
        core.dispatcher.cancel(core.worker, 1, CancelReason.CLIENT_GONE)
        assert core.decided == [("fail", 503, "waf", "queue_full")]
        core.dispatcher.worker_gone(core.worker)
        core.assert_idle()

    @pytest.mark.parametrize("how", ["end", "decided"])
    def test_over_by_a_decision(self, clock: Clock, how: str) -> None:
        """Observers finish and are audited; the rest is cancelled."""
        core = Core(clock, [plan(ask("waf"), ask("dlp", observe=True))], [agent(), agent("dlp")])
        core.event(final=False)
        if how == "end":
            core.dispatcher.end(core.worker, 7)
        else:
            core.dispatcher.cancel(core.worker, 7, CancelReason.DECIDED)
        assert core.instances["dlp"].cancelled == []
        assert len(core.instances["waf"].cancelled) == 1
        core.answer("dlp", BLOCKED)
        assert core.audit[0].decision == "cancelled"
        assert core.audit[0].agents[1].would_have == {"decision": "block", "status": 403}
        core.assert_idle()

    def test_all_events_of_the_exchange(self, clock: Clock) -> None:
        """Also those whose decision is out already but whose observers still work."""
        core = Core(clock, [plan(ask("waf"), ask("dlp", observe=True))], [agent(), agent("dlp")])
        core.event(final=False)
        core.answer("waf")
        core.event(final=False)
        core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE)
        assert len(core.instances["dlp"].cancelled) == 2
        assert len(core.replies) == 1
        core.assert_idle()


class EverythingInAnyOrder(RuleBasedStateMachine):
    """Any interleaving of events, answers, deaths, timeouts, cancels, reloads and workers: every awaited
    event is answered exactly once and in time unless it was cancelled, and nothing is left in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.agents = [
            agent(name, max_concurrent_calls=2, max_queue=2, circuit_breaker=CircuitBreaker(failure_threshold=5))
            for name in ("a", "b", "c")
        ]
        asks = [ask("a", timeout_ms=100), ask("b", "open", timeout_ms=50), ask("c", timeout_ms=200)]
        self.plans = [
            plan(*asks),
            plan(*asks, sequential=True, number=1),
            plan(asks[0], ask("b", observe=True, timeout_ms=300), ask("ghost", "open"), number=2),
            plan(ask("c", observe=True), ask("ghost", observe=True), number=3),
            plan(asks[1], kind=EventKind.RESPONSE_HEADERS, number=4),
        ]
        self.core = Core(self.clock, self.plans, self.agents)
        self.dispatcher = self.core.dispatcher
        self.awaited: dict[int, tuple[Worker, int, int]] = {}  # event: worker, exchange, deadline
        self.made: dict[bytes, int] = {}  # when a worker made its last event
        self.answered = 0

    def workers(self) -> list[Worker]:
        return list(self.dispatcher.workers.values())

    def see_replies(self, late: bool = False) -> None:
        for event, _ in self.core.replies[self.answered :]:
            assert event in self.awaited, "answered twice, or nobody waited"
            _, _, deadline = self.awaited.pop(event)
            assert late or self.clock() <= deadline
        self.answered = len(self.core.replies)

    def forget(self, worker: Worker, exchange: int | None = None) -> None:
        self.see_replies()
        for event, (whose, its_exchange, _) in list(self.awaited.items()):
            if whose is worker and exchange in (None, its_exchange):
                del self.awaited[event]

    @rule(
        number=st.integers(0, 4),
        exchange=st.integers(0, 2),
        final=st.booleans(),
        mask=st.integers(0, 7),
        delay_ms=st.sampled_from([0, 0, 0, 10, 49, 99, 300]),
        data=st.data(),
    )
    @precondition(lambda self: self.workers())
    def event(self, number: int, exchange: int, final: bool, mask: int, delay_ms: int, data: st.DataObject) -> None:
        """A worker's events arrive in the order in which it made them, however late."""
        worker = data.draw(st.sampled_from(self.workers()))
        resolved = worker.plans[number]
        mask &= resolved.full_mask
        made = self.made[worker.identity] = max(self.made.get(worker.identity, 0), self.clock() - delay_ms * MS)
        deadline = made + resolved.timeout_ns
        if mask & resolved.enforcing_mask:
            self.awaited[self.core.last_event + 1] = (worker, exchange, deadline)
        in_ms = (deadline - self.clock()) / MS
        self.core.event(number, exchange=exchange, mask=mask, final=final, in_ms=in_ms, worker=worker)
        if deadline <= self.clock():  # answered at once all the same
            self.see_replies(late=True)

    @rule(data=st.data(), screened=st.sampled_from([ALLOWED, ALLOWED, WITH_OPS, BLOCKED, ERROR]))
    @precondition(lambda self: any(i.calls for i in self.core.instances.values()))
    def answer(self, data: st.DataObject, screened: Screened) -> None:
        instance = data.draw(st.sampled_from([i for i in self.core.instances.values() if i.calls]))
        instance.answer(screened, data.draw(st.integers(0, len(instance.calls) - 1)))

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def bounce(self, name: str) -> None:
        instance = self.core.instances[name]
        if instance.is_live:
            instance.lane.instance_down(instance, "gone")
        else:
            instance.up()

    @rule(name=st.sampled_from(["a", "b", "c"]), how=st.sampled_from(["is_paused", "is_full", "lockstep"]))
    def toggle(self, name: str, how: str) -> None:
        instance = self.core.instances[name]
        setattr(instance, how, not getattr(instance, how))
        instance.lane.woken()

    @rule(exchange=st.integers(0, 2), reason=st.sampled_from(list(CancelReason)), data=st.data())
    @precondition(lambda self: self.workers())
    def cancel(self, exchange: int, reason: CancelReason, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers()))
        self.forget(worker, exchange)
        self.dispatcher.cancel(worker, exchange, reason)

    @rule(exchange=st.integers(0, 2), data=st.data())
    @precondition(lambda self: self.workers())
    def end(self, exchange: int, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers()))
        self.forget(worker, exchange)
        self.dispatcher.end(worker, exchange)

    @rule(identity=st.sampled_from([b"w1", b"w2"]))
    def register(self, identity: bytes) -> None:
        before = self.dispatcher.workers.get(identity)
        if before is not None:
            self.forget(before)
        self.core.register(identity, self.plans)

    @rule(data=st.data())
    @precondition(lambda self: self.workers())
    def worker_dies(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers()))
        self.forget(worker)
        self.dispatcher.worker_gone(worker)

    @rule()
    def reload(self) -> None:
        self.dispatcher.configure(self.agents)

    @rule(ms=st.sampled_from([1, 20, 50, 100]))
    def time_passes(self, ms: int) -> None:
        """The alarm rings when it was armed, as the daemon's timer does."""
        end = self.clock() + ms * MS
        while (at := self.dispatcher._alarm.at_ns) <= end:
            self.clock.now = max(at, self.clock())
            self.dispatcher.expire(self.clock())
            self.see_replies()
        self.clock.now = end
        self.see_replies()

    @invariant()
    def answered_once_and_in_time(self) -> None:
        self.see_replies()
        assert all(deadline > self.clock() for _, _, deadline in self.awaited.values())
        assert self.dispatcher.awaited == len(self.awaited)

    @invariant()
    def no_group_is_forgotten(self) -> None:
        """Whatever is still open is waited for, or has an observer out."""
        for worker in self.workers():
            for groups in worker.exchanges.values():
                for group in groups:
                    is_decided = isinstance(group, EventGroup) and group.is_decided  # else it would be closed
                    assert group.observing if is_decided else group.event_id in self.awaited

    @invariant()
    def alarm_is_never_later_than_the_next_deadline(self) -> None:
        following = self.dispatcher.next_deadline()
        assert following is None or self.dispatcher._alarm.at_ns <= following

    @invariant()
    def permits_are_calls_out_there(self) -> None:
        for name, instance in self.core.instances.items():
            lane = self.dispatcher.lanes[name]
            assert lane.in_flight == len(instance.calls) <= 2
            assert lane.queued <= 2
            states = Counter(call.state for call in instance.calls.values())
            assert set(states) <= {CallState.SENT, CallState.HELD}

    def teardown(self) -> None:
        self.time_passes(2000)
        assert self.awaited == {}
        for worker in self.workers():
            for exchange in range(3):
                self.dispatcher.end(worker, exchange)
        self.core.assert_idle()


EverythingInAnyOrder.TestCase.settings = hypothesis_settings(max_examples=120, stateful_step_count=50, deadline=None)
TestEverythingInAnyOrder = EverythingInAnyOrder.TestCase


def test_plans_that_merge_alike_share_their_memory(clock: Clock) -> None:
    """It would be one for each route of each worker else; after a reload nothing is left of chains that are gone."""
    alike = [plan(ask("a"), ask("b"), number=number) for number in range(2)]
    others = [
        plan(ask("a"), ask("b", "open"), number=2),
        plan(ask("b"), ask("a"), number=3),
        plan(ask("a"), ask("b"), number=4, kind=EventKind.RESPONSE_HEADERS),
    ]
    core = Core(clock, [*alike, *others], [agent("a"), agent("b")])
    second = core.register(b"w2", alike)
    first = core.worker.plans
    assert first[0].merges is first[1].merges
    assert first[0].merges is second.plans[0].merges
    assert len({id(one.merges) for one in first}) == 4
    before = first[0].merges
    core.dispatcher.configure([agent("a"), agent("b")])
    assert core.worker.plans[0].merges is second.plans[1].merges
    assert core.worker.plans[0].merges is not before
