"""One timer: armed for the earliest deadline, left alone by later ones."""

from agentd.alarm import Alarm
from shared.wire.segment import NEVER_NS


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
