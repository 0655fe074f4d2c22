"""`wardgate agents`: what agentd knows of the agents, as a table or, for one of them, at length.

Kind: IO.
"""

import click

from proxy.cli import EXIT_CODES_HELP, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient, find, json_problems
from proxy.cli.table import show_table
from shared.errors import AdminRefused
from shared.wire import admin as wire

HEADERS = (
    "AGENT",
    "PROTOCOL",
    "BREAKER",
    "INSTANCES",
    "IN FLIGHT",
    "QUEUED",
    "DECIDED",
    "FAILED",
    "LATE",
    "P50",
    "P99",
)
INSTANCE_HEADERS = ("INSTANCE", "HEALTH", "IN FLIGHT", "PINNED", "LOAD", "STATE")
CALL_HEADERS = ("AGO", "EVENT", "OUTCOME", "INSTANCE", "QUEUED", "TOOK", "MESSAGE")


@click.command(
    epilog=f"""\b
Examples:
  wardgate agents
  wardgate agents waf               one agent: its instances and last calls
  wardgate agents --json

{EXIT_CODES_HELP}
"""
)
@click.argument("name", metavar="[NAME]", required=False)
@config_option
@runtime_option
@json_option
def command(name: str | None, config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """The agents: instances, load, outcomes of their calls, latency.

    DECIDED counts verdicts, FAILED calls that ended without one, LATE answers that came after their call had
    ended. P50 and P99 are upper bounds of histogram buckets since agentd's start.
    """
    with json_problems(as_json):
        found = AdminClient(find(config_path, runtime_dir).runtime).agents()
        if name is not None:
            found = wire.Agents(tuple(agent for agent in found.agents if agent.name == name))
            if not found.agents:
                raise AdminRefused(404, f"there is no agent {name!r}")
    if as_json:
        click.echo(wire.pretty(found))
    elif not found.agents:
        click.echo("no agents are configured")
    else:
        show_table(HEADERS, [_row(agent) for agent in found.agents])
        if name is not None:
            _show_one(found.agents[0])


def _row(agent: wire.Agent) -> tuple[str, ...]:
    failed = sum(n for word, n in agent.outcomes.items() if word not in ("decision", "cancelled"))
    return (
        agent.name,
        agent.protocol,
        agent.breaker,
        str(len(agent.instances)),
        f"{agent.in_flight}/{agent.max_concurrent_calls}",
        f"{agent.queued}/{agent.max_queue}",
        str(agent.outcomes.get("decision", 0)),
        str(failed),
        str(agent.late_verdicts),
        _ms(agent.p50_ms),
        _ms(agent.p99_ms),
    )


def _show_one(agent: wire.Agent) -> None:
    failures = {word: n for word, n in agent.outcomes.items() if n and word != "decision"}
    click.echo(f"\nasked about: {', '.join(agent.events) or 'nothing yet'}")
    click.echo(f"other ends: {', '.join(f'{word} {n}' for word, n in failures.items()) or 'none'}")
    if agent.instances:
        click.echo()
        show_table(INSTANCE_HEADERS, [_instance(instance) for instance in agent.instances])
    if agent.last_calls:
        click.echo()
        show_table(CALL_HEADERS, [_call(call) for call in agent.last_calls])


def _instance(instance: wire.Instance) -> tuple[str, ...]:
    states = [word for word, is_so in (("paused", instance.is_paused), ("draining", instance.is_draining)) if is_so]
    return (
        instance.name,
        instance.health,
        f"{instance.in_flight}/{instance.limit}",
        str(instance.pinned),
        f"{instance.load:.2f}",
        ", ".join(states) or "ready",
    )


def _call(call: wire.LastCall) -> tuple[str, ...]:
    return (
        f"{call.ago_ms / 1000:.1f} s",
        call.event,
        call.outcome,
        call.instance,
        _ms(call.queued_ms),
        _ms(call.duration_ms),
        call.message,
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} ms"
