"""How a fast route fares beside a route whose agent is hung or hostile: requests/s and p99, alone and beside it.

    bench/run.py --isolation [--cases NAME,...] [--rounds N] [--dur SECONDS]

Route B (/b) has the bench's fast agent and 32 connections that never pause. Route A (/a) has one agent of
bench/agents/hostile.py, or none, and 200 connections. A round is B alone, B beside A, B alone again; the ratios
are those of `beside` to the mean of both `alone`, the median over the rounds counts. "alone" keeps A's agent away
and its route idle.

Controls tell what A's requests cost from what a hostile agent costs: `honest` has 2,000 requests a second and a
good agent on A, `absent` as many and nobody; `elsewhere` (and `elsewhere-few`, as many as the other cases have) sends
them to the upstream itself, past the proxy: what only their client takes from the cores.

Kind: IO.
"""

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load import Load, begin, begin_fixed, drive, finish, finish_fixed, has_h2load
from stack import HERE, OUT_OF_REACH, Role, Route, Stack, agent_argv, running, secret_file

HOSTILE = HERE / "agents" / "hostile.py"
ROUTES = (Route("/a", ("a",)), Route("/b", ("b",)))
A_CONNECTIONS, B_CONNECTIONS = 200, 32
FIXED_PER_S = 2_000
FIXED_CONNECTIONS = 20  # h2load's send all at once: more would be bursts
FIXED_MS = 100  # without h2load: wrk's pause between an answer and the next request of each of A's connections
PACE_MS = 1_000  # 200 a second, as many as the calls of a hung agent
SETTLE_S = 1.3  # A's first calls have timed out by then
WARM_S = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """`mode`: of hostile.py, or honest, absent or elsewhere. `pace_ms` 0: A's connections hammer without a pause."""

    name: str
    mode: str
    pace_ms: int = PACE_MS
    failure_threshold: int = OUT_OF_REACH


# Instant answers would turn a closed loop into load: only what ends by timeout is hammered. Elsewhere A has as many
# requests as its timeouts would let through.
CASES = (
    Case("hung", "mute", 0),
    Case("hung-breaker", "mute", FIXED_MS, failure_threshold=5),
    Case("late", "late", 0),
    Case("oversized", "oversized"),
    Case("endless", "endless"),
    Case("crumbs", "crumbs"),
    Case("garbage", "garbage"),
    Case("heavy", "heavy"),
    Case("stranger", "stranger"),
    Case("impostor", "impostor"),
    Case("flood", "flood"),
    Case("deaf", "deaf"),
    Case("honest", "honest", FIXED_MS),
    Case("absent", "absent", FIXED_MS),
    Case("elsewhere", "elsewhere", FIXED_MS),
    Case("elsewhere-few", "elsewhere"),
)
NAMES = ",".join(case.name for case in CASES)


@dataclass(slots=True)
class Figures:
    """What the rounds of one case found."""

    per_s: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    b_per_s: list[float] = field(default_factory=list)
    b_p99_ms: list[float] = field(default_factory=list)
    a_per_s: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    counters: Counter[str] = field(default_factory=Counter)
    rss_mib: list[float] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)  # shares of a core while beside
    errors: int = 0


def run(arguments: argparse.Namespace) -> int:
    """The table; the exit code."""
    wanted = set(arguments.cases.split(",")) if arguments.cases else {case.name for case in CASES}
    unknown = wanted - {case.name for case in CASES}
    if unknown:
        print(f"bench: no case {', '.join(sorted(unknown))}; there are {NAMES}", file=sys.stderr)
        return 2
    print(
        f"B: {B_CONNECTIONS} connections on a fast agent; A: {A_CONNECTIONS} on the agent of the case, a fixed "
        f"{FIXED_PER_S} requests a second by {'h2load' if has_h2load() else 'wrk with pauses'}; x: beside A / alone\n"
        "CPU x: of worker and agentd for each of B's requests, what A costs them included; "
        "it does not depend on who shares the cores\n"
        "RSS: agentd's peak beside A, MiB; CPU: shares of a core beside A, hostile = A's agent itself\n"
    )
    print(HEAD, flush=True)
    errors = 0
    for case in CASES:
        if case.name in wanted:
            figures = measure(case, arguments.dur, arguments.rounds, arguments.upstream)
            errors += figures.errors
            print(line(case, figures), flush=True)
    if errors:
        print(f"bench: {errors} of B's requests failed", file=sys.stderr)
    return 1 if errors else 0


HEAD = (
    f"{'case':>13} {'B req/s':>8} {'x':>5} {'p99 ms':>7} {'x':>5} {'CPU x':>5} | {'A req/s':>7} | {'RSS':>4} | "
    f"{'worker':>6} {'agentd':>6} {'hostile':>7} | A's calls"
)


def line(case: Case, found: Figures) -> str:
    middle = statistics.median
    cpu = {role: middle(row.get(role, 0.0) for row in found.cpu) for role in ("worker", "agentd", "hostile")}
    said = found.outcomes.most_common(3) + [item for item in found.counters.items() if item[1]]
    return (
        f"{case.name:>13} {middle(found.b_per_s):8.0f} {middle(found.per_s):5.2f} {middle(found.b_p99_ms):7.2f} "
        f"{middle(found.p99):5.2f} {middle(found.cost):5.2f} | "
        f"{middle(found.a_per_s):7.0f} | {max(found.rss_mib):4.0f} | "
        f"{cpu['worker']:6.2f} {cpu['agentd']:6.2f} {cpu['hostile']:7.2f} | "
        + ", ".join(f"{name} {count}" for name, count in said)
    )


def measure(case: Case, seconds: float, rounds: int, upstream: str) -> Figures:
    """All rounds of one case, in one stack."""
    found = Figures()
    with running(ROUTES, upstream, absent=("a",), failure_threshold=case.failure_threshold) as stack:
        if stack.get("/b/echo") != (200, b"ok"):
            raise RuntimeError("/b: the upstream did not get the agent's header")
        drive(f"{stack.url}/b/x", B_CONNECTIONS, WARM_S)
        for _ in range(rounds):
            before, cost_before = _drive_b(stack, seconds)
            with _beside(stack, case, seconds, found) as usage:
                beside, cost = _drive_b(stack, seconds)
                usage()
            after, cost_after = _drive_b(stack, seconds)
            found.cost.append(cost / statistics.mean((cost_before, cost_after)))
            found.per_s.append(beside.per_s / statistics.mean((before.per_s, after.per_s)))
            found.p99.append(beside.p99_ms / statistics.mean((before.p99_ms, after.p99_ms)))
            found.b_per_s.append(beside.per_s)
            found.b_p99_ms.append(beside.p99_ms)
            found.errors += before.errors + beside.errors + after.errors
        if stack.get("/b/echo") != (200, b"ok"):
            raise RuntimeError(f"/b does not work any more after {case.name}")
    return found


def _drive_b(stack: Stack, seconds: float) -> tuple[Load, float]:
    """B's load, and the CPU seconds of worker and agentd for each of its requests, whatever else they did meanwhile."""
    before = stack.cpu_s()
    load = drive(f"{stack.url}/b/x", B_CONNECTIONS, seconds)
    after = stack.cpu_s()
    return load, sum(after[role] - before[role] for role in ("worker", "agentd")) / max(1, load.requests)


@contextmanager
def _beside(stack: Stack, case: Case, seconds: float, found: Figures) -> Iterator[Any]:
    """A's agent and A's load, beside whatever happens inside; `usage()` at its end reads CPU and memory."""
    agentd = next(role for role in stack.roles if role.name == "agentd")
    hostile = _start(stack, case)
    before = _outcomes(stack)
    url = stack.upstream_url if case.mode == "elsewhere" else stack.url
    is_fixed = case.pace_ms == FIXED_MS and has_h2load()
    if is_fixed:
        loading = begin_fixed(f"{url}/a/x", FIXED_CONNECTIONS, FIXED_PER_S, seconds + 2 * SETTLE_S)
    else:
        loading = begin(f"{url}/a/x", A_CONNECTIONS, seconds + 2 * SETTLE_S, pace_ms=case.pace_ms)
    try:
        time.sleep(SETTLE_S)
        Path(f"/proc/{agentd.process.pid}/clear_refs").write_text("5")  # the peak counts from here
        start, cpu = time.monotonic(), stack.cpu_s()

        def usage() -> None:
            took, now = time.monotonic() - start, stack.cpu_s()
            found.cpu.append({role: (now[role] - cpu[role]) / took for role in now})
            found.rss_mib.append(_peak_mib(agentd))

        yield usage
        found.a_per_s.append(finish_fixed(loading) if is_fixed else finish(loading).per_s)
        moved = _outcomes(stack) - before
        for name, count in moved.items():
            (found.outcomes if name[0].isupper() else found.counters)[name] += count
    finally:
        loading.kill()
        loading.communicate()
        if hostile is not None:
            stack.stop(hostile)


def _start(stack: Stack, case: Case) -> Role | None:
    """A's agent; back once agentd has taken it, or has had the time to refuse it."""
    if case.mode in ("absent", "elsewhere"):
        return None
    if case.mode == "honest":
        argv = agent_argv(stack.directory, "a")
    else:
        argv = [sys.executable, str(HOSTILE), case.mode, "--connect", f"ipc://{stack.directory}/run/agents/v2"]
        argv += ["--name", "a", "--secret-file", str(secret_file(stack.directory, "a")), "--victim", "b"]
    role = stack.start("hostile", argv)
    end = time.monotonic() + 3.0
    while time.monotonic() < end and not re.search(r'agent_instances\{agent="a"\} [1-9]', stack.metrics()):
        if case.mode == "impostor" and 'code="bad_proof"' in stack.metrics():
            break
        time.sleep(0.05)
    return role


_OUTCOME = re.compile(r'^wardgate_agent_calls_total\{agent="a",mode="enforce",outcome="(\w+)"\} (\d+)', re.M)
_COUNTER = re.compile(r'^wardgate_agent_(late_verdicts|garbage)_total\{agent="a"\} (\d+)', re.M)
_REFUSED = re.compile(r'^wardgate_sessions_refused_total\{code="(\w+)"\} (\d+)', re.M)


def _outcomes(stack: Stack) -> Counter[str]:
    """How A's calls ended (capitalised), and what was counted besides."""
    text = stack.metrics()
    found = Counter({name.title(): int(count) for name, count in _OUTCOME.findall(text)})
    found.update({name: int(count) for name, count in _COUNTER.findall(text)})
    found.update({f"refused:{code}": int(count) for code, count in _REFUSED.findall(text)})
    return found


def _peak_mib(role: Role) -> float:
    status = Path(f"/proc/{role.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
