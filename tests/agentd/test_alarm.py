"""One timer: armed for the earliest deadline, left alone by later ones."""

from agentd.alarm import Alarm, ReadFirst
from shared.defaults import ALARM_LATE_MS, READ_FIRST_MS
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
