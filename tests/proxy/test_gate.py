"""proxy/gate.py: when a worker stops accepting, by the lowest free file descriptor."""

import logging

import pytest

from proxy import gate
from proxy.gate import Gate, Turn
from shared.clock import S
from shared.defaults import ACCEPT_LOG_EVERY_S
from shared.metrics import W_ACCEPT_PAUSES


class Bench:
    """A gate of a process with 100 descriptors; `used` = how many of them are in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted_upstream: int) -> None:
        self.used = 0
        self.cells = memoryview(bytearray(8 * 64)).cast("Q")
        monkeypatch.setattr(gate.resource, "getrlimit", lambda which: (100, 100))
        monkeypatch.setattr(gate, "_lowest_free", lambda limit: self.used)
        self.gate = Gate(self.cells, wanted_upstream)

    def look(self, used: int, now: int = 1_000 * S) -> Turn:
        self.used = used
        return self.gate.look(now, 1)


def test_some_are_kept_for_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the worker may want, at most a quarter of all; a few more must be free before it goes on."""
    bench = Bench(monkeypatch, 20)
    assert [bench.look(used) for used in (0, 79, 80, 81, 80, 76, 75, 74, 79)] == [
        Turn.STAY, Turn.STAY, Turn.PAUSE, Turn.STAY, Turn.STAY, Turn.STAY, Turn.STAY, Turn.RESUME, Turn.STAY,
    ]  # fmt: skip
    many = Bench(monkeypatch, 5_000)
    assert (many.look(74), many.look(75)) == (Turn.STAY, Turn.PAUSE)


def test_each_pause_counts_and_few_are_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A worker that goes to and fro at the mark does not fill the log."""
    bench = Bench(monkeypatch, 20)
    told = []
    monkeypatch.setattr(gate.log, "line", lambda component, level, message, **fields: told.append((level, fields)))
    for number in range(20):
        assert bench.look(90, 1_000 * S + number * S) is Turn.PAUSE
        assert bench.look(10) is Turn.RESUME
    assert bench.cells[W_ACCEPT_PAUSES] == 20
    assert len(told) == 20 / ACCEPT_LOG_EVERY_S
    assert told[0] == (logging.WARNING, {"limit": 100, "left": 10, "connections": 1})


def test_the_kernel_is_asked() -> None:
    """A number beyond the standard ones; it is given back."""
    first = gate._lowest_free(1_000)
    assert first > 2
    assert gate._lowest_free(1_000) == first
