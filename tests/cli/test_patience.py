"""proxy/cli/patience.py: it says what it waits for when that takes long, and ends in time."""

import pytest

from proxy.cli.patience import Patience


class Time:
    """Passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_progress_comes_every_two_seconds_and_then_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    patience = Patience(5.0, lambda seconds: f"{seconds:.0f} s", clock=time, sleep=time.sleep)
    while patience.has_more():
        pass
    assert time.now == pytest.approx(105, abs=0.1)
    out, err = capsys.readouterr()
    assert (out, err.split("\n")) == ("", ["2 s", "4 s", ""])


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    patience = Patience(5.0, lambda seconds: "long", clock=time, sleep=time.sleep)
    assert all(patience.has_more() for _ in range(20))
    assert capsys.readouterr() == ("", "")
