"""bench/soak.py as `make soak` runs it, for seconds: it passes, says what it saw, and leaves nothing behind."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from shared import metrics_agentd as ma
from tests.support import ROOT, Child, wait_until

SOAK = str(ROOT / "bench" / "soak.py")


@pytest.mark.slow
def test_a_few_seconds_pass(tmp_path: Path) -> None:
    """Kills and reloads included; every kind of traffic is answered, all tables are empty afterwards."""
    samples = tmp_path / "samples.json"
    with Child(
        [sys.executable, SOAK, "--minutes", "0.07", "--disturb", "0.8", "--json", str(samples)], tmp_path / "out"
    ) as soak:
        assert soak.ended(90) == 0, soak.output()
        text = soak.output()
    assert text.endswith("passed\n")
    for word in ("kill fast", "reload proxy", "kill tag", "KiB/h", "events_pending 0", "traffic is over"):
        assert word in text
    told = json.loads(samples.read_text())
    assert set(told["lives"]) == {"agentd", "proxy", "worker", "fast", "hung", "scan", "tag"}
    assert set(told["left"]) <= {metric.name for metric in ma.families()}
    assert not any(told["left"].values())


def test_a_daemon_that_ends_fails_the_soak(tmp_path: Path) -> None:
    """Exit code 1 and its name; the logs are kept and named."""
    with Child([sys.executable, SOAK, "--minutes", "1"], tmp_path / "out") as soak:
        soak.wait_for("traffic begins", 60)
        children = Path(f"/proc/{soak.pid}/task/{soak.pid}/children")

        def agentd() -> int:
            for pid in map(int, children.read_text().split()):
                if b"agentd" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return pid
            return 0

        os.kill(wait_until(agentd), signal.SIGKILL)
        assert soak.ended(60) == 1, soak.output()
        text = soak.output()
    assert "FAILED: agentd ended with -9" in text
    kept = Path(text.partition("logs are in ")[2].split()[0])
    assert (kept / "agentd.log").exists()
    shutil.rmtree(kept)


@pytest.mark.parametrize("arguments", [["--hours", "-1"], ["--minutes", "x"], ["--days", "1"]])
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    with Child([sys.executable, SOAK, *arguments], tmp_path / "out") as soak:
        assert soak.ended(20) == 2
