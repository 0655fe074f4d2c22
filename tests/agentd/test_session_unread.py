"""What a session counts as unread: never less than the agent has not read, and nothing for ever."""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.alarm import Alarm
from agentd.call import Asked, Call
from agentd.lane import Lane
from agentd.registry import Seat
from agentd.transport.zmq_session import V2Session
from shared.clock import MS
from shared.events import EventKind
from shared.wire.agent_messages import Hello
from shared.wire.session import Event, Session
from tests.agentd.fakes import FakeWaiter, agent, peer
from tests.support import Clock

CHUNK, COMPLETE = EventKind.REQUEST_BODY_CHUNK, EventKind.REQUEST_COMPLETE


class Agent:
    """Reads in order, answers what it has read; it is the session's way out as well."""

    def __init__(self, batch: int) -> None:
        self.clock = Clock()
        self.lane = Lane(agent(max_outstanding_bytes=100_000), self.clock, Alarm(lambda ns: None))
        self.waiter = FakeWaiter()
        wire = Session(0, 1_000)
        self.session = V2Session(self, peer(0), wire, "s")
        hello = Hello(2, "waf", "i1", ["request_body_chunk"], max_batch=batch)
        self.session.introduce(hello, Seat(self.lane.settings, self.lane, 0, 1_000))
        for event in (Event.WELCOME, Event.ACCEPT):
            wire.feed(event, 0)
        self.lane.instance_up(self.session)
        self.unread: deque[Sequence[Any]] = deque()
        self.read: deque[str] = deque()
        self.made = 0

    # --- the session's transport

    def mark(self, session: V2Session) -> None:
        session.is_marked = True

    def transmit(self, session: V2Session, frames: Sequence[Any]) -> bool:
        self.unread.append(frames)
        return True

    def finish(self, session: V2Session) -> None: ...
    def drop(self, session: V2Session, reason: str) -> None: ...

    # --- steps

    def ask(self, kind: EventKind, size: int) -> None:
        self.made += 1
        now = self.clock()
        asked = Asked("waf", self.lane, 0, kind, "closed", kind is COMPLETE, False, 60_000 * MS)
        body = bytes(size) if kind is CHUNK and size else None
        event = b'{"e":"' + b"x" * (size if kind is COMPLETE else 0) + b'"}'
        call = Call(self.made, f"n{self.made:x}", event, asked, self.waiter, now, now + 60_000 * MS, body=body)
        self.lane.submit(call, now, True)

    def flush(self) -> None:
        if self.session.is_marked:
            self.session.flush(self.clock())

    def take(self) -> None:
        """The agent reads a message."""
        if self.unread:
            verb, *frames = self.unread.popleft()
            if verb == b"EVENTS":
                self.read += [entry[0] for entry in json.loads(frames[0])]
            elif verb == b"PING":
                self.session.pong(frames)

    def answer(self, count: int) -> None:
        """Some of what it has read, in any grouping; also of request_complete."""
        ids = [self.read.popleft() for _ in range(min(count, len(self.read)))]
        if ids:
            verdicts = json.dumps([[one, {"decision": "allow"}] for one in ids]).encode()
            assert self.session.take_verdicts([verdicts], self.clock()) == ""

    def ping(self) -> None:
        self.unread.append(self.session.ping())

    def check(self) -> None:
        truly = sum(len(frame) for frames in self.unread if frames[0] == b"EVENTS" for frame in frames[1:])
        assert self.session.unread_bytes >= truly
        assert self.session.unread_bytes <= 100_000


_STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([CHUNK, COMPLETE]), st.integers(0, 40_000)),
    st.tuples(st.sampled_from(["flush", "take", "take", "pass", "ping"])),
    st.tuples(st.just("answer"), st.integers(1, 5)),
)


@settings(max_examples=200)
@given(st.lists(_STEPS, max_size=60), st.integers(1, 4))
def test_any_course(steps: list[tuple[Any, ...]], batch: int) -> None:
    """Whatever is asked, read and answered in which order; at the end a PONG clears it all."""
    one = Agent(batch)
    for name, *given_ in steps:
        if name == "pass":
            one.clock.ms(1)
        else:
            getattr(one, name)(*given_)
            if name == "ask":
                one.clock.ms(0.001)
        one.check()
    one.flush()
    one.ping()
    while one.unread:
        one.take()
    assert one.session.unread_bytes == 0
    while one.read:
        one.answer(3)
    assert one.lane.in_flight == 0
    assert one.session.strays == 0


def test_a_stream_of_long_bodies(clock: Clock) -> None:
    """Each half of the bound: the answer shows that its own message was read, or the third would find no room."""
    one = Agent(1)
    for _ in range(10):
        one.ask(CHUNK, 49_000)
        one.clock.ms(0.1)
        one.flush()
        one.clock.ms(0.1)
        one.take()
        one.answer(1)
        assert one.session.unread_bytes == 0
    assert len(one.waiter.heard) == 10
    assert one.session.sends_refused == 0
