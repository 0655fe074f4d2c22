"""Backing off: the wait is capped at a second and has no last attempt, by each policy and in real seconds.

    workers to agentd     proxy/hop.py: shared.backoff.BackOff
    agents to agentd      wardgate_agent/link.py, conversation.py for an agentd that is silent; libzmq's for others
    agentd to v1 agents   agentd/transport/zmq_lockstep.py: shared.backoff.BackOff
    arbiter to workers    proxy/roster.py: respawn_wait_ns

What each of them connects to, and what is done then, is tested elsewhere.
"""

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable
from itertools import accumulate, pairwise, takewhile
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from proxy.roster import respawn_wait_ns
from shared import defaults as d
from shared.backoff import BackOff
from shared.clock import S
from tests.e2e.matrix import PASSED, VERDICT
from tests.e2e.stage import Stage
from tests.e2e.traffic import Traffic
from tests.support import Clock, wait_until
from wardgate_agent import wire
from wardgate_agent.conversation import Conversation
from wardgate_agent.link import Link
from wardgate_agent.session import Session

DAY_S = 86_400
HOUR_S = 3_600
CAP_S = 1.0
AWAY_S = 4.0  # an uncapped wait of 50 or 100 ms, doubled, would try again at 6.3 s, too late for BACK_S
BACK_S = 2.0


@pytest.mark.parametrize(
    ("first_ms", "max_ms"),
    [(d.RECONNECT_MS, d.RECONNECT_MAX_MS), (d.V1_RECONNECT_MS, d.V1_RECONNECT_MAX_MS)],
    ids=["a worker", "to a v1 agent"],
)
def test_dialling_goes_on_for_a_day(first_ms: int, max_ms: int) -> None:
    """Never more than a second between two tries, and no last one."""
    clock = Clock()
    start = clock.now
    back_off = BackOff(first_ms, max_ms, lambda: 0.999_999)
    waits = []
    while clock.now - start < DAY_S * S:
        waits.append(back_off.next_ms())
        clock.ms(waits[-1])
    assert max(waits) <= CAP_S * 1000
    assert len(waits) >= DAY_S
    back_off.reset()
    assert back_off.next_ms() <= first_ms


def test_respawning_goes_on_for_a_day() -> None:
    """However many workers have died young."""
    waits = (respawn_wait_ns(lives) for lives in range(1, 2 * DAY_S))
    taken = list(takewhile(lambda at: at < DAY_S * S, accumulate(waits)))
    gaps = [b - a for a, b in pairwise(taken)]
    assert max(gaps) == CAP_S * S == gaps[-1]
    assert len(taken) >= DAY_S


class Dials:
    """A loop for the SDK's link, whose timers are at once."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.again: Callable[[], None] = lambda: None

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.waits.append(delay_s)
        self.again = callback


def test_an_agent_on_the_sdk_dials_for_an_hour() -> None:
    """Nobody listens: for ever, and never more than a second apart."""
    dials: Any = Dials()
    nobody: Any = None
    link = Link(
        f"ipc:///tmp/wg-nobody-{os.getpid()}", dials, on_message=nobody, on_up=nobody, on_down=nobody, turn=nobody,
        backoff_max_s=wire.BACKOFF_MAX_S,
    )  # fmt: skip
    link.open()
    while sum(dials.waits) < HOUR_S:
        dials.again()
    assert wire.BACKOFF_S / 2 <= dials.waits[0] <= wire.BACKOFF_S
    assert max(dials.waits) <= wire.BACKOFF_MAX_S == CAP_S
    assert len(dials.waits) >= HOUR_S


class Silence:
    """The SDK's port to an agentd that takes connections and says nothing."""

    def __init__(self) -> None:
        self.tries = 0

    def reconnect(self) -> None:
        self.tries += 1

    def send(self, frames: list[bytes]) -> bool:
        return True

    def in_flight(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def test_an_agent_on_the_sdk_gives_up_a_silent_agentd_for_an_hour() -> None:
    """Connected, nothing heard for three heartbeats, connected anew (with the link's back-off): for ever."""
    port = Silence()
    talk = Conversation(
        port,
        Session(),
        hello={"protocol": 2, "agent": "a", "instance": "i"},
        secret=None,
        drain_deadline_s=30,
    )
    begin = now = 1_000.0
    while now < begin + HOUR_S:
        tries = port.tries
        talk.up(now)
        while port.tries == tries:
            now = talk.tick(now)
    assert port.tries >= HOUR_S / 4, "three heartbeats of silence, and what the ticks add"


def test_libzmq_keeps_to_the_cap() -> None:
    """With the numbers that docs/agent-protocol.md gives to agents: its waits grow to the cap, and go on."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    monitor = None
    waits: list[int] = []
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, int(wire.BACKOFF_S * 1000))
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(wire.BACKOFF_MAX_S * 1000))
        monitor = socket.get_monitor_socket(zmq.EVENT_CONNECT_RETRIED)
        socket.connect(f"ipc:///tmp/wg-nobody-{os.getpid()}")
        end = time.monotonic() + 3.3  # the fifth wait, of a second, has begun by then
        while (left := end - time.monotonic()) > 0:
            if monitor.poll(int(left * 1000)):
                waits.append(recv_monitor_message(monitor)["value"])
    finally:
        socket.disable_monitor()
        socket.close(0)
        if monitor is not None:
            monitor.close(0)
        context.term()
    assert wire.BACKOFF_MAX_S * 1000 == d.RECONNECT_MAX_MS == CAP_S * 1000
    assert len(waits) >= 5
    assert max(waits) <= CAP_S * 1000 * 1.2, "with libzmq's jitter"
    assert waits[-1] >= CAP_S * 1000 / 2, "it has grown to the cap"


def test_everybody_is_back_after_long_seconds_away() -> None:
    """agentd and a v1 agent away for seconds, a worker killed whenever it comes up: all are back within two."""
    stage = Stage(is_v1=True)
    traffic = None
    try:
        stage.start("upstream", "agentd", "proxy", "a", "h")
        steady = min(stage.wait_ready_workers())
        traffic = Traffic(stage.address, ("closed", "held", "free"))
        lanes = {"closed": VERDICT, "held": VERDICT, "free": PASSED}

        def is_well(since: float) -> bool:
            return all(
                lane.last is not None and lane.last.sent >= since and lane.last.end == lanes[lane.route]
                for lane in traffic.lanes
            )

        wait_until(lambda: len(traffic.lanes) == 30 and is_well(0), 10, "well before")
        stage.kill("agentd", "a")
        end = time.monotonic() + AWAY_S
        killed = 0
        while time.monotonic() < end:
            for pid in stage.children() - {steady}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.02)
        assert killed >= AWAY_S, "forked again and again, at least once a second"
        began = time.monotonic()
        stage.start("agentd", "a")
        back = time.monotonic()
        stage.wait_ready_workers()
        assert time.monotonic() - began < 5, "a worker was forked, with the arbiter's wait of at most a second"
        wait_until(lambda: is_well(back), 10, "everybody is back")
        first: dict[int, float] = {}
        for sample in traffic.touched(back, time.monotonic()):
            if sample.end == lanes[sample.route]:
                first.setdefault(sample.lane, sample.done - back)
        assert len(first) >= 20
        assert statistics.median(first.values()) < BACK_S
        assert not stage.undecided()
    finally:
        if traffic is not None:
            traffic.close()
        stage.close()
