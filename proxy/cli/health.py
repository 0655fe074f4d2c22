"""`wardgate health`: asks agentd, and where it does not answer finds out what it can without it.

The segments are read by the same rules that agentd answers by (shared/readiness.py). What only agentd
knows is listed as not asked.

Kind: IO.
"""

import sys
import time
from pathlib import Path

import click

from proxy.cli import (
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    config_option,
    json_option,
    runtime_option,
)
from proxy.cli.admin_client import AdminClient, Place, find
from proxy.cli.table import show_table
from shared import readiness
from shared.clock import now_ns
from shared.errors import AdminRefused, Unreachable
from shared.segment import AgentdView, ProxyView
from shared.wire import admin as wire

HEADERS = ("STATUS", "COMPONENT", "MESSAGE", "LATENCY", "LAST CHECK")
SPARED = ("LAST CHECK", "LATENCY")  # by a narrow terminal, in this order


@click.command(
    epilog="""\b
Examples:
  wardgate health
  wardgate health --json | jq .ready
  wardgate health --runtime-dir /run/wardgate

Exit codes: 0 ready (also when degraded), 1 not ready, 2 usage or configuration, 3 agentd unreachable.
"""
)
@config_option
@runtime_option
@json_option
def command(config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Is everything well? Each condition with its result.

    agentd is asked first. When it is dead or hung, workers, upstreams and the last known agents are read from
    shared memory, and what could not be asked is listed.
    """
    place = find(config_path, runtime_dir)
    code = EXIT_OK
    try:
        health = AdminClient(place.runtime).health()
    except (Unreachable, AdminRefused) as error:
        health = without_agentd(place, str(error))
        code = EXIT_UNREACHABLE if isinstance(error, Unreachable) else EXIT_REFUSED
    if code == EXIT_OK and not health.is_ready:
        code = EXIT_REFUSED
    if as_json:
        click.echo(wire.pretty(health))
    else:
        _show(health)
    sys.exit(code)


def _show(health: wire.Health) -> None:
    click.echo(f"{health.status}, {'ready' if health.is_ready else 'not ready'}")
    rows = [
        (
            str(component.status),
            component.name,
            component.message,
            "" if component.latency_ms is None else f"{component.latency_ms:.3g} ms",
            component.last_check,
        )
        for component in health.components
    ]
    if rows:
        show_table(HEADERS, rows, SPARED)
    for text in health.not_asked:
        click.echo(f"not asked: {text}")


def without_agentd(place: Place, why: str) -> wire.Health:
    """What the segments alone say."""
    now = now_ns()
    stamp = readiness.stamper(now, time.time())
    agentd, proxy = AgentdView(place.runtime.agentd_segment), ProxyView(place.runtime.proxy_segment)
    try:
        has_agentd = agentd.attach()
        seen = readiness.read_proxy(proxy, now) if proxy.attach() else None
        rows = agentd.agents() if has_agentd else {}
        pid = agentd.pid if has_agentd else 0
        digest = agentd.config_digest if has_agentd else ""
        beat_ns = agentd.beat_ns if has_agentd else None
        last = agentd.health() if has_agentd else None
        reload = agentd.reload
    finally:
        agentd.close()
        proxy.close()
    first = readiness.agentd_component(beat_ns, pid, 0, now, stamp)
    if first.status is wire.Status.HEALTHY:  # its loop turns, and yet it did not answer us
        first = wire.Component("agentd", wire.Status.UNHEALTHY, why, True, None, first.last_check)
    elif pid:
        first = wire.Component(
            "agentd", first.status, f"{first.message}; {_process(pid)}", True, None, first.last_check
        )
    components = [first]
    config = place.config
    expected = readiness.expected_workers(config) if config else len(seen.workers) if seen else 0
    components.append(readiness.workers_component(seen, expected, now, stamp))
    not_asked = []
    if not rows:
        not_asked.append(f"agents: {why}")
    elif config is not None:
        for agent in readiness.asked_agents(config):
            needed = readiness.is_required(agent, config)
            component = readiness.agent_component(agent.name, rows.get(agent.name), needed, now, stamp)
            components.append(_last_known(component))
    else:
        components += [
            _last_known(readiness.agent_component(name, row, False, now, stamp)) for name, row in rows.items()
        ]
    if config is not None:
        components += readiness.upstream_components(config, seen, now, stamp)
    else:
        components += [
            readiness.upstream_component(name, seen, now, stamp) for name in (seen.upstreams if seen else ())
        ]
    components.append(readiness.config_component(digest, seen, now, stamp, reload))
    not_asked.append(f"audit: {why}")
    if last is None:
        not_asked.append(f"memory: {why}")
    else:
        text = f"agentd used {last.rss_bytes >> 20} MiB at its last word"
        components.append(wire.Component("memory", wire.Status.DEGRADED, text, False, None, stamp(last.at_ns)))
    from proxy.cli import version

    return readiness.whole(components, version(), not_asked)


def _last_known(component: wire.Component) -> wire.Component:
    text = f"{component.message} (last known)"
    return wire.Component(component.name, component.status, text, component.is_required)


def _process(pid: int) -> str:
    """What the kernel says of a daemon that does not answer."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "the process is gone"
    state = rest.split()[0]
    if state in ("T", "t"):
        return "the process is stopped (SIGSTOP or a debugger)"
    if state in ("Z", "X"):
        return "the process has ended"
    return f"the process is there ({name}) and does not turn"
