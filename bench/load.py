"""One load: Debian's wrk for so many seconds over so many connections, and what it found; h2load for a fixed rate.

Kind: IO.
"""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent / "report.lua"
NO_WRK = "wrk is not installed: the bench measures with Debian's (apt-get install wrk)"


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


@dataclass(frozen=True, slots=True)
class Load:
    """`errors` counts connect, read, write and timeout errors and responses that are no 2xx or 3xx."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


def drive(url: str, connections: int, seconds: float) -> Load:
    """Load a URL. wrk knows whole seconds; less than one is one."""
    return finish(begin(url, connections, seconds))


def begin(url: str, connections: int, seconds: float, *, pace_ms: int = 0) -> "subprocess.Popen[str]":
    """The load as a process, for `finish`. `pace_ms`: pause of each connection before a request, in the mean."""
    whole = max(1, round(seconds))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "5s", "-s", str(SCRIPT), url]
    environment = {**os.environ, "PACE_MS": str(pace_ms)}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process: "subprocess.Popen[str]") -> Load:
    """Wait for its end and read what it found."""
    output, _ = process.communicate(timeout=90)
    for line in output.splitlines():
        if line.startswith("report "):
            found = json.loads(line.removeprefix("report "))
            return Load(
                found["requests"],
                found["duration_us"] / 1e6,
                found["p50_us"] / 1e3,
                found["p99_us"] / 1e3,
                sum(found["errors"].values()),
            )
    raise RuntimeError(f"wrk said nothing that could be read:\n{output}")


# --- a fixed rate -----------------------------------------------------------------------------------


def has_h2load() -> bool:
    return shutil.which("h2load") is not None


def begin_fixed(url: str, connections: int, per_s: int, seconds: float) -> "subprocess.Popen[str]":
    """So many requests a second whatever the answers, by Debian's h2load (nghttp2-client), for `finish_fixed`.

    It costs a quarter of what wrk with pauses does (0.02 of a core at 2,000 a second, 2026-11), and its connections
    all send at once: few of them are steady, many come in bursts.
    """
    count = round(per_s * max(1, round(seconds)))
    command = ["h2load", "--h1", "-t1", f"-c{connections}", f"-n{count}", f"--rps={per_s / connections}", url]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish_fixed(process: "subprocess.Popen[str]") -> float:
    """Wait for its end; requests per second."""
    output, _ = process.communicate(timeout=90)
    found = re.search(r"^finished in .*?, ([0-9.]+) req/s", output, re.M)
    if found is None:
        raise RuntimeError(f"h2load said nothing that could be read:\n{output}")
    return float(found[1])
