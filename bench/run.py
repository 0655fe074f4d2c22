"""`make bench`: the real product under load, with 0, 1 and 3 agents, at 1, 8 and 64 connections.

Starts agentd, the proxy with one worker and three agents on free ports of the loopback, in a directory
of its own; checks first that the agents are really asked (an empty path must not look fast), then
drives each row for a bounded time and prints requests per second, latency and CPU microseconds per
request of every role. CPU time is the steadier figure: it does not depend on who shares the cores.

    bench/run.py --quick                 a look, 20 s
    bench/run.py --peers DIR             beside nginx, HAProxy and Envoy, by the harness in DIR

Exit codes: 0 measured, 1 something answered wrongly, 2 usage, 3 a tool is absent.

Kind: IO.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from typing import Any

import bodies
import isolation
import peers
from load import NO_WRK, drive, has_wrk
from stack import Route, Stack, running

ROUTES = (Route("/none"), Route("/fast", ("a1",)), Route("/three", ("a1", "a2", "a3")))
AGENTS = {"/none": 0, "/fast": 1, "/three": 3}
ROLES = ("worker", "agentd", "agent")
WARM_S = 1.0


def verify(stack: Stack) -> None:
    """Every route does what is to be measured, or nothing is."""
    for route in ROUTES:
        expected = b"ok" if route.agents else b""
        status, body = stack.get(route.prefix + "/x")
        if (status, len(body)) != (200, 1_024):
            raise RuntimeError(f"{route.prefix}/x answered {status} with {len(body)} bytes, not 200 with 1,024")
        if stack.get(route.prefix + "/echo") != (200, expected):
            raise RuntimeError(f"{route.prefix}: the upstream did not get the agent's header: {expected!r}")
        status, _ = stack.get(route.prefix + "/x", {"x-block": "1"})
        if status != (403 if route.agents else 200):
            raise RuntimeError(f"{route.prefix}: x-block was answered {status}")


def measure(stack: Stack, prefix: str, connections: int, seconds: float) -> dict[str, Any]:
    """One row. Starts after a warm-up; what a role does between the two readings of its clock is the load's."""
    url = f"{stack.url}{prefix}/x"
    drive(url, connections, WARM_S)
    before = stack.cpu_s()
    load = drive(url, connections, seconds)
    after = stack.cpu_s()
    cpu_us = {role: (after[role] - before[role]) * 1e6 / max(1, load.requests) for role in after}
    return {
        "agents": AGENTS[prefix],
        "connections": connections,
        "requests_per_s": round(load.per_s, 1),
        "p50_ms": round(load.p50_ms, 3),
        "p99_ms": round(load.p99_ms, 3),
        "cpu_us": {role: round(value, 2) for role, value in cpu_us.items()},
        "cpu_us_total": round(sum(cpu_us[role] for role in ROLES), 2),
        "errors": load.errors,
    }


HEAD = f"{'agents':>6} {'conns':>5} {'req/s':>8} {'p50 ms':>7} {'p99 ms':>7} | " + (
    f"{'worker':>7} {'agentd':>7} {'agents':>7} {'total':>7} | {'upstream':>8} {'errors':>6}"
)


def line(row: dict[str, Any]) -> str:
    cpu = row["cpu_us"]
    return (
        f"{row['agents']:6} {row['connections']:5} {row['requests_per_s']:8.0f} {row['p50_ms']:7.2f} "
        f"{row['p99_ms']:7.2f} | {cpu['worker']:7.1f} {cpu['agentd']:7.1f} {cpu['agent']:7.1f} "
        f"{row['cpu_us_total']:7.1f} | {cpu['upstream']:8.1f} {row['errors']:6}"
    )


def ours(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Our own table, printed while it grows."""
    with running(ROUTES, arguments.upstream) as stack:
        verify(stack)
        print("one worker, 1,024 bytes, access log off; CPU in microseconds per request (user and system)\n")
        print(HEAD, flush=True)
        for prefix in AGENTS:
            for connections in arguments.conns:
                rows.append(measure(stack, prefix, connections, arguments.dur))
                print(line(rows[-1]), flush=True)
        verify(stack)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description=__doc__.rpartition("\n\nKind")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dur", type=float, metavar="SECONDS", help="of each load, 1 to 60 (default: 3)")
    add("--quick", action="store_true", help="where nothing else is said 1 s each, 8 and 64 connections, 1 round")
    add("--conns", metavar="N,...", help="connections (default: 1,8,64)")
    add("--upstream", choices=("python", "nginx"), default="python", help="default: %(default)s, our own")
    add("--json", metavar="FILE", help="write the rows there as well; - = standard output, after the table")
    add("--peers", metavar="DIR", help="add the peers that the harness in DIR (its peers.py) knows")
    add("--peer-names", default="", metavar="NAME,...", help="which (default: those whose programs are there)")
    add("--rounds", type=int, metavar="N", help="of the peers' comparison (default: 3)")
    add("--isolation", action="store_true", help="only: a fast route beside hung and hostile agents (and the peers')")
    add("--cases", default="", metavar="NAME,...", help=f"with --isolation: which (default: {isolation.NAMES})")
    add("--bodies", action="store_true", help="only: what a large body costs past one streaming agent")
    add("--mib", type=int, default=100, help="with --bodies: how large (default: %(default)s)")
    add("--only-peers", action="store_true", help="with --peers: leave our own table out")
    arguments = parser.parse_args(argv)
    for name, quick, thorough in (("dur", 1.0, 3.0), ("conns", "8,64", "1,8,64"), ("rounds", 1, 3)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else thorough)
    try:
        arguments.conns = [int(part) for part in arguments.conns.split(",")]
    except ValueError:
        parser.error("--conns: numbers with commas between")
    if not 1 <= arguments.dur <= 60 or not all(1 <= count <= 1_000 for count in arguments.conns):
        parser.error("--dur is from 1 to 60, --conns from 1 to 1000")
    if not 1 <= arguments.mib <= 4_096:
        parser.error("--mib is from 1 to 4096")
    if not 1 <= arguments.rounds <= 20:
        parser.error("--rounds is from 1 to 20")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    if arguments.bodies:
        return bodies.measure(arguments.mib, arguments.rounds, arguments.json)
    if not has_wrk():
        print(NO_WRK, file=sys.stderr)
        return 3
    if arguments.upstream == "nginx" and shutil.which("nginx") is None:
        print(
            "nginx is not installed (apt-get install nginx-light); without --upstream our own is used", file=sys.stderr
        )
        return 3
    rows: list[dict[str, Any]] = []
    try:
        if arguments.isolation and not arguments.peers:
            return isolation.run(arguments)
        if not arguments.only_peers:
            ours(arguments, rows)
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        text = json.dumps({"made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "rows": rows}, indent=1)
        if arguments.json == "-":
            print(text)
        else:
            with open(arguments.json, "w", encoding="utf-8") as file:
                file.write(text + "\n")
    if sum(row["errors"] for row in rows):
        print("bench: there were errors; the figures mean nothing", file=sys.stderr)
        return 1
    if arguments.peers:
        return peers.run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
