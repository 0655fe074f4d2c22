"""One timer: armed for the earliest deadline, left alone by later ones."""

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from agentd.alarm import Alarm, ReadFirst
from agentd.daemon import Daemon
from shared.defaults import ALARM_LATE_MS, READ_FIRST_MS, READ_FIRST_TIMES
from shared.wire.segment import NEVER_NS
from tests.support import Clock


def test_armed_for_earlier_deadlines_only() -> None:
    """Each time an earlier one appears, and not otherwise."""
    armed: list[int] = []
    alarm = Alarm(armed.append)
    for deadline in (100, 200, 100, 50, 70):
        alarm.by(deadline)
    assert armed == [100, 50]
    assert alarm.at_ns == 50


def test_rung() -> None:
    """Whoever rings it sets it back; the next deadline arms it again."""
    armed: list[int] = []
    alarm = Alarm(armed.append)
    alarm.by(100)
    alarm.at_ns = NEVER_NS
    alarm.by(500)
    assert armed == [100, 500]


def test_a_late_alarm_rings_once_more(clock: Clock) -> None:
    """agentd stood still: what arrived meanwhile is read before anybody is blamed; then it is acted on."""
    read_first = ReadFirst()
    due = clock.now
    assert read_first.wait_ms(due, clock.ms(ALARM_LATE_MS)) == 0
    assert read_first.wait_ms(due, clock.ms(1)) == READ_FIRST_MS
    assert read_first.wait_ms(due - 1, clock.ms(5)) == READ_FIRST_MS - 5, "an earlier deadline was read meanwhile"
    assert read_first.wait_ms(due, clock.ms(READ_FIRST_MS - 5)) == 0


def test_a_loop_that_is_always_late_still_acts(clock: Clock) -> None:
    read_first = ReadFirst()
    put_off = 0
    for _ in range(100):
        put_off += bool(read_first.wait_ms(clock.now - 10**9, clock.ms(READ_FIRST_MS)))
    assert put_off <= 100 * READ_FIRST_MS / ALARM_LATE_MS + 1


def test_a_defect_in_what_is_read_first_leaves_an_alarm(clock: Clock) -> None:
    """A handler raises each time agentd looks what came while it stood still: deadlines are acted on all the same."""

    class Timers:
        """A loop's; `pending` as (delay, callback)."""

        def __init__(self) -> None:
            self.pending: list[tuple[float, Callable[[], None]]] = []

        def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
            self.pending.append((delay_s, callback))
            return SimpleNamespace(cancel=lambda: None)

    def fails() -> bool:
        raise RuntimeError("a defect")

    nobody: Any = None
    daemon: Any = Daemon(nobody, nobody, "", nobody, nobody, clock)
    timers = daemon._loop = Timers()
    expired: list[int] = []
    daemon._v2, daemon._dispatcher = SimpleNamespace(read_arrived=fails), SimpleNamespace(expire=expired.append)
    daemon._arm(clock.now)
    clock.ms(ALARM_LATE_MS + 1)
    for _ in range(2 * READ_FIRST_TIMES):
        ((delay_s, ring),) = timers.pending
        timers.pending.clear()
        clock.ms(int(delay_s * 1000))
        with suppress(RuntimeError):
            ring()
        if expired:
            break
    assert expired == [clock.now]
    assert not timers.pending
