"""One call to one agent, and what a transport must be able to do.

    worker's event --dispatcher--> Call --lane--> Instance.send --agent--> lane.answered / lane.failed

A `LoneCall` (agentd/lone.py) is one, and the event that asks as well.

The shapes only: no policy, no state machine. The lane alone changes `state`, `permit`, `instance`,
`instance.calls`, `instance.pins` and `instance.is_live`; a transport reads them and reports back.

    QUEUED --> SENT --> ENDED            answer, failure, timeout, cancel, death
       |         +----> HELD --> ENDED   cancelled on a lockstep connection: the permit stays taken
       +------> ENDED                    refused, expired in the queue, cancelled

Kind: table.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from shared.decision import FailureMode, Outcome
from shared.events import CHUNKED, EventKind
from shared.wire.envelope import CancelReason
from shared.wire.verdict import HEAD, Question, Screened

if TYPE_CHECKING:
    from agentd.lane import Lane
    from shared.breaker import Permit


class CallState(IntEnum):
    """Where a call is; see the drawing above."""

    QUEUED = 0  # also: just made
    SENT = 1
    HELD = 2
    ENDED = 3


class Asked:
    """One agent of one plan of one worker, resolved when the worker's table arrived.

    `lane` is None for a name that this agentd does not know: every call is Disconnected. `is_told`: of
    request_complete, to which nobody waits for an answer. `has_body`: bytes belong to the event, none is empty ones.
    """

    __slots__ = (
        "agent",
        "event",
        "failure_mode",
        "has_body",
        "index",
        "is_observer",
        "is_told",
        "kind",
        "lane",
        "may_set_host",
        "timeout_ns",
    )

    def __init__(
        self,
        agent: str,
        lane: "Lane | None",
        index: int,
        kind: EventKind,
        failure_mode: FailureMode,
        is_observer: bool,
        may_set_host: bool,
        timeout_ns: int,
    ) -> None:
        self.agent = agent
        self.lane = lane
        self.index = index
        self.kind = kind
        self.event = kind.wire_name
        self.is_told = kind is EventKind.REQUEST_COMPLETE
        self.has_body = kind in CHUNKED
        self.failure_mode: FailureMode = failure_mode
        self.is_observer = is_observer
        self.may_set_host = may_set_host
        self.timeout_ns = timeout_ns


class Waiter(Protocol):
    """Who asked: told exactly once how each of its calls ended, except for those it cancelled itself."""

    def ended(self, call: "Call", now: int) -> None:
        """`call.outcome`, `.screened`, `.message`, `.ended_ns` are set."""


class Call(msgspec.Struct, eq=False):
    """One question to one agent. Times are CLOCK_MONOTONIC ns.

    call_id       opaque ASCII for the agent: agentd's start nonce and a counter
    event         the event's JSON as the worker encoded it: forward it, do not decode it
    deadline_ns   when the answer is of no use any more (own start + timeout_ms, the event's deadline)
    exchange_key  (worker identity, exchange id) when the exchange is or may become pinned, else None
    question      what its answer is screened against
    body          the event's bytes, until they were handed to ZeroMQ; empty ones are None
    """

    number: int
    call_id: str
    event: bytes | memoryview
    asked: Asked
    group: "Waiter | None"
    started_ns: int
    deadline_ns: int
    exchange_key: tuple[bytes, int] | None = None
    state: CallState = CallState.QUEUED
    instance: "Instance | None" = None
    permit: "Permit | None" = None  # None for observers: they do not move the breaker
    row: "dict[int, tuple[int, Call]] | None" = None  # the lane's deadline row it stands in
    sent_ns: int = 0
    ended_ns: int = 0
    outcome: Outcome = Outcome.CANCELLED
    screened: Screened | None = None
    message: str = ""
    question: Question = HEAD
    body: bytes | memoryview | None = None

    @property
    def kind(self) -> EventKind:
        """Which event it asks about."""
        return self.asked.kind

    @property
    def is_observer(self) -> bool:
        """Its answer has no effect on the request."""
        return self.asked.is_observer

    @property
    def index(self) -> int:
        """Place in the plan's chain."""
        return self.asked.index


class Instance(Protocol):
    """One live connection of an agent, as its transport offers it to the lane.

    name          instance id, for people
    limit         calls at a time: HELLO's max_concurrency; 1 for a lockstep connection
    calls         in flight here by call id, HELD ones included. Kept by the lane; start with {}
    pins          exchanges pinned here. Kept by the lane; start with 0
    is_live       between lane.instance_up and lane.instance_down. Kept by the lane; start with False
    is_paused, is_draining   no new exchanges; pinned ones go on. The transport sets them, then lane.woken()
    owes          0: trusted; else it let a call time out: 1 = it may have one call at a time, more = so many signs
                  of life before it may. Set by the pool, eased by the transport (Pool.let_down); start with 0
    debt          what it owes after its next failed trial, half of it. Kept by the pool; start with 0
    health        healthy, degraded, draining or unhealthy; load 0..1: both weigh in the choice of instance
    max_body_bytes   of a call's body; a longer one is not sent
    is_lockstep   one call at a time, each answered: it cannot be told anything
    """

    name: str
    limit: int
    calls: dict[str, Call]
    pins: int
    is_live: bool
    is_paused: bool
    is_draining: bool
    health: str
    load: float
    owes: int
    debt: int
    max_body_bytes: int
    is_lockstep: bool

    def send(self, call: Call) -> bool:
        """Hand the call over; False = its socket or byte budget is full (nothing was sent)."""

    def tell(self, call: Call) -> bool:
        """Hand over an event that needs no answer; False = dropped, there is no room. Not for lockstep ones."""

    def cancel(self, call: Call, reason: CancelReason) -> bool:
        """Nobody waits for the call any more, or (TIMEOUT) its time is over; tell the agent.

        True = free for the next call at once. False = lockstep: the call stays in `calls` and keeps its
        permit until lane.released(call), or until its deadline, when cancel(call, TIMEOUT) is called once
        more. After TIMEOUT the call is no longer in `calls` and the answer is not looked at: a lockstep
        transport then starts its connection anew.
        """

    def drained(self) -> None:
        """is_draining is set and its last call or its last pinned exchange has ended: nothing of ours is left.

        Said at each end, so look at begin_drain whether there was anything at all.
        """

    def begin_drain(self, deadline_ns: int) -> None:
        """No new exchanges from now on; say DRAIN to the agent where the protocol has it."""

    def close(self, reason: str) -> None:
        """End the connection; the transport calls lane.instance_down."""
