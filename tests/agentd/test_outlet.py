"""agentd/audit/outlet.py: another sink takes over, and no count goes down."""

from typing import Literal

from agentd.audit.outlet import Outlet


class Sink:
    def __init__(self, path: str, numbers: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.path = path
        self.rows: list[bytes] = []
        self.said = numbers
        self.reopened = 0

    def put(self, record: "bytes | memoryview") -> bool:
        self.rows.append(bytes(record))
        return True

    def reopen(self) -> None:
        self.reopened += 1

    def stop(self, timeout_s: float) -> int:
        return 0

    def status(self, now: int) -> tuple[Literal["healthy", "degraded"], str]:
        return "degraded", self.path

    def numbers(self) -> tuple[int, int, int]:
        return self.said

    def room(self) -> tuple[int, int, int]:
        return 1, 2, 3


def test_the_new_one_gets_the_records_and_the_old_one_counts_on() -> None:
    old, new = Sink("/a", (5, 1, 2)), Sink("/b", (0, 0, 0))
    outlet = Outlet(old)
    outlet.put(b"1")
    assert outlet.replace(new) is old
    outlet.put(b"2")
    assert (old.rows, new.rows) == ([b"1"], [b"2"])
    assert outlet.numbers() == (5, 1, 2), "it still writes"
    old.said = (7, 1, 0)
    new.said = (1, 0, 3)
    outlet.left(old, 4)
    assert outlet.numbers() == (8, 5, 3), "what was lost at its end is dropped"
    assert (outlet.status(0), outlet.room(), outlet.reopen(), new.reopened) == (("degraded", "/b"), (1, 2, 3), "/b", 1)


def test_no_sink_takes_everything_and_keeps_nothing() -> None:
    outlet = Outlet(None)
    assert outlet.put(b"1")
    assert (outlet.numbers(), outlet.room(), outlet.reopen()) == ((0, 0, 0), (0, 0, 0), "")
    assert outlet.status(0) == ("healthy", "no sink is configured")
    new = Sink("/b")
    assert outlet.replace(new) is None
    outlet.put(b"2")
    assert new.rows == [b"2"]
