"""shared/wire/session.py: sentences of events, what is said, and when an agent counts as dead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clock import MS
from shared.defaults import AGENT_CHATTER_PER_S, FLOOD_MESSAGES
from shared.errors import IllegalTransition
from shared.wire.agent_messages import (
    Bye,
    Challenge,
    ConfigResult,
    Configuration,
    Drain,
    Hello,
    Ping,
    Proof,
    Refusal,
    Verdicts,
    Welcome,
)
from shared.wire.session import ACCEPTS, MAY_HAVE_CALLS, TRANSITIONS, Due, Event, Sent, Session, State
from tests.support import Clock

C, R, W, A, D, N, F, L = (
    Event.CHALLENGE,
    Event.REPEAT,
    Event.WELCOME,
    Event.ACCEPT,
    Event.DRAIN,
    Event.DONE,
    Event.REFUSE,
    Event.LOST,
)


def say(session: Session, *events: Event, now: int = 0) -> list[Sent]:
    return [session.feed(event, now) for event in events]


class TestSentences:
    def test_without_a_secret(self) -> None:
        session = Session(0)
        assert say(session, W, A) == [(Welcome, Configuration), ()]
        assert session.state is State.READY

    def test_with_a_secret(self) -> None:
        session = Session(0)
        assert say(session, C, W, A) == [(Challenge,), (Welcome, Configuration), ()]
        assert session.state is State.READY

    def test_repeated_hello_gets_the_challenge_again_and_no_second_welcome(self) -> None:
        session = Session(0)
        assert say(session, C, R, R, W, R, A, R) == [
            (Challenge,), (Challenge,), (Challenge,), (Welcome, Configuration), (), (), (),
        ]  # fmt: skip

    def test_reload(self) -> None:
        session = Session(0)
        say(session, W, A)
        assert session.feed(Event.RECONFIGURE, 0) == (Configuration,)
        assert session.state is State.RECONFIGURING
        assert session.feed(Event.RECONFIGURE, 0) == (Configuration,)
        assert session.feed(A, 0) == ()
        assert session.state is State.READY

    def test_we_drain_it(self) -> None:
        session = Session(0)
        assert say(session, W, A, D, N) == [(Welcome, Configuration), (), (Drain,), (Bye,)]
        assert session.state is State.DEAD

    def test_it_drains(self) -> None:
        session = Session(0)
        say(session, W, A)
        assert say(session, Event.AGENT_DRAINS, N) == [(), (Bye,)]

    def test_drained_before_it_was_ready(self) -> None:
        session = Session(0)
        assert say(session, W, Event.AGENT_DRAINS, A, Event.RECONFIGURE, N)[-1] == (Bye,)

    @pytest.mark.parametrize("events", [(), (C,), (W,), (W, A), (W, A, Event.RECONFIGURE), (W, A, D)], ids=str)
    def test_refused_in_every_state(self, events: tuple[Event, ...]) -> None:
        session = Session(0)
        say(session, *events)
        assert session.feed(F, 5) == (Refusal,)
        assert session.feed(L, 6) == ()
        assert session.state is State.DEAD

    def test_illegal_pair_names_both(self) -> None:
        session = Session(0)
        with pytest.raises(IllegalTransition, match="no accept in state hello"):
            session.feed(A, 0)
        assert session.state is State.HELLO

    def test_nothing_follows_death(self) -> None:
        session = Session(0)
        session.feed(L, 0)
        for event in Event:
            with pytest.raises(IllegalTransition):
                session.feed(event, 0)

    @given(st.lists(st.sampled_from(Event), max_size=30))
    def test_every_walk_stays_inside_the_table(self, events: list[Event]) -> None:
        """DEAD is final, WELCOME is said at most once, and events may flow only after ACCEPT."""
        session = Session(0)
        welcomed = accepted = 0
        for event in events:
            before = session.state
            try:
                sent = session.feed(event, 0)
            except IllegalTransition:
                assert session.state is before
                continue
            assert before is not State.DEAD
            welcomed += Welcome in sent
            accepted += event is A
            assert welcomed <= 1
            if session.state in (State.READY, State.RECONFIGURING):
                assert accepted
                assert welcomed

    def test_every_state_is_reached_and_has_a_row(self) -> None:
        assert {state for state, _ in TRANSITIONS.values()} | {State.HELLO} == set(State)
        assert set(ACCEPTS) == set(State)


class TestAccepts:
    def test_only_hello_from_a_stranger(self) -> None:
        assert ACCEPTS[State.HELLO] == {Hello}

    def test_verdicts_only_where_calls_can_be(self) -> None:
        assert {state for state in State if Verdicts in ACCEPTS[state]} == MAY_HAVE_CALLS

    def test_nothing_of_the_refused(self) -> None:
        assert not ACCEPTS[State.REFUSED]
        assert not ACCEPTS[State.DEAD]

    def test_challenged(self) -> None:
        session = Session(0)
        session.feed(C, 0)
        assert session.accepts(Proof)
        assert session.accepts(Ping)
        assert not session.accepts(ConfigResult)


class TestTime:
    def test_strangers_have_two_seconds(self, clock: Clock) -> None:
        session = Session(clock.now)
        assert session.due(clock.ms(1_999)) is Due.NOTHING
        assert session.due(clock.ms(1)) is Due.NO_HELLO

    def test_messages_without_hello_do_not_help(self, clock: Clock) -> None:
        session = Session(clock.now)
        for _ in range(5):
            session.heard(clock.ms(400))
        assert session.due(clock.now) is Due.NO_HELLO

    def test_the_challenged_have_two_seconds_more(self, clock: Clock) -> None:
        session = Session(clock.now)
        session.feed(C, clock.ms(1_900))
        session.feed(R, clock.ms(1_900))
        assert session.due(clock.now) is Due.NOTHING
        assert session.due(clock.ms(100)) is Due.NO_HELLO

    def test_ping_once_per_heartbeat_of_silence_then_dead(self, clock: Clock) -> None:
        session = Session(clock.now, 1_000)
        say(session, W, A, now=clock.now)
        said = [session.due(clock.ms(100)) for _ in range(30)]
        pings = [i for i, due in enumerate(said, 1) if due is Due.PING]
        assert pings == [10, 20]
        assert said[29] is Due.SILENT

    def test_any_message_is_a_sign_of_life(self, clock: Clock) -> None:
        session = Session(clock.now, 1_000)
        say(session, W, A, now=clock.now)
        for _ in range(10):
            clock.ms(900)
            assert session.due(clock.now) is Due.NOTHING
            session.heard(clock.now)
        assert session.due(clock.ms(1_000)) is Due.PING
        session.heard(clock.now)
        assert session.due(clock.ms(1_000)) is Due.PING

    def test_forgiven_when_we_stood_still(self, clock: Clock) -> None:
        """agentd was stopped for ten seconds: its agents get a ping and two heartbeats, not the blame."""
        session = Session(clock.now, 1_000)
        say(session, W, A, now=clock.now)
        session.forgive(clock.s(10))
        assert session.due(clock.now) is Due.PING
        assert session.due(clock.ms(999)) is Due.NOTHING
        assert session.due(clock.ms(1)) is Due.PING
        assert session.due(clock.ms(1_000)) is Due.SILENT

    def test_forgiving_makes_nobody_older(self, clock: Clock) -> None:
        session = Session(clock.now, 1_000)
        say(session, W, A, now=clock.now)
        session.forgive(clock.ms(500))
        assert session.due(clock.ms(499)) is Due.NOTHING

    def test_the_refused_leave_when_told(self, clock: Clock) -> None:
        session = Session(clock.now)
        session.feed(F, clock.now)
        session.leaves_ns = clock.now + 700 * MS
        assert session.due(clock.ms(699)) is Due.NOTHING
        assert session.due(clock.ms(1)) is Due.REFUSED

    def test_repeats_that_crossed_our_answer(self, clock: Clock) -> None:
        session = Session(clock.now)
        session.feed(W, clock.now)
        assert session.is_crossed_repeat(clock.ms(999))
        assert not session.is_crossed_repeat(clock.ms(1))

    def test_a_challenge_is_repeated_however_late(self, clock: Clock) -> None:
        session = Session(clock.now)
        session.feed(C, clock.now)
        assert session.is_crossed_repeat(clock.s(1.5))


class TestBlame:
    def test_three_bad_messages_within_a_minute(self, clock: Clock) -> None:
        session = Session(clock.now)
        assert not session.is_bad(clock.now)
        assert not session.is_bad(clock.s(30))
        assert session.is_bad(clock.s(30))

    def test_three_in_more_than_a_minute(self, clock: Clock) -> None:
        session = Session(clock.now)
        assert not any(session.is_bad(clock.s(31)) for _ in range(10))

    def test_chatter(self, clock: Clock) -> None:
        session = Session(clock.now)
        assert not any(session.is_chatter(clock.now) for _ in range(AGENT_CHATTER_PER_S))
        assert session.is_chatter(clock.ms(999))
        assert not session.is_chatter(clock.ms(1))

    def test_flood(self, clock: Clock) -> None:
        """A refused one has not read so yet, for a few hundred messages in a second."""
        session = Session(clock.now)
        assert not any(session.is_flood(clock.now) for _ in range(FLOOD_MESSAGES))
        assert session.is_flood(clock.ms(999))
        assert not session.is_flood(clock.ms(1))
