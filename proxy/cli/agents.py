"""`wardgate agents`: what agentd knows of the agents, as a table or, for one of them, at length.

A word after it that names a subcommand is one, anything else is an agent's name: listing needs no word of its own.

Kind: IO.
"""

from importlib import import_module
from typing import Final

import click

from proxy.cli import EXIT_CODES_HELP, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient, find, json_problems
from proxy.cli.table import show_table
from proxy.cli.terminal import clean
from shared.errors import AdminRefused
from shared.wire import admin as wire

# name -> (module with the click command `command`, what `wardgate agents --help` says)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "drain": ("proxy.cli.agents_drain", "Let an instance leave without a failed call, to replace it."),
}

HEADERS = (
    "AGENT",
    "PROTOCOL",
    "BREAKER",
    "INSTANCES",
    "CALLS",
    "QUEUED",
    "UNREAD",
    "REFUSED",
    "DECIDED",
    "FAILED",
    "LATE",
    "P50",
    "P99",
)
# What a terminal too narrow for all of them leaves out, in this order.
SPARED = ("P50", "LATE", "PROTOCOL", "REFUSED", "P99", "INSTANCES", "UNREAD")
INSTANCE_HEADERS = ("INSTANCE", "HEALTH", "CALLS", "UNREAD", "MESSAGES", "REFUSED", "PINNED", "LOAD", "STATE")
INSTANCES_SPARED = ("LOAD", "PINNED", "MESSAGES", "REFUSED")
CALL_HEADERS = ("AGO", "EVENT", "OUTCOME", "INSTANCE", "QUEUED", "TOOK", "MESSAGE")
CALLS_SPARED = ("QUEUED", "INSTANCE")


class _Agents(click.Group):
    """Subcommands by name, and `agents [NAME]` for whatever is none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = COMMANDS.get(cmd_name)
        if row is None:
            return _show
        command: click.Command = import_module(row[0]).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] in (["-h"], ["--help"]) or (args[:1] and args[0] in COMMANDS):
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, ["show", *args])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] [NAME]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _show.format_options(ctx, formatter)
        if COMMANDS:
            with formatter.section("Commands"):
                formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_Agents,
    epilog=f"""\b
Examples:
  wardgate agents
  wardgate agents waf               one agent: its instances and last calls
  wardgate agents --json

{EXIT_CODES_HELP}
""",
)
def command() -> None:
    """The agents: instances, load, outcomes of their calls, latency.

    CALLS are under way, QUEUED wait, UNREAD is what the fullest instance was sent and has not read: each with its
    limit. REFUSED counts the times an instance was passed over because it had not read enough. DECIDED counts
    verdicts, FAILED calls that ended without one, LATE answers that came after their call had ended. P50 and P99
    are upper bounds of histogram buckets since agentd's start. A narrow terminal shows fewer columns.
    """


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@config_option
@runtime_option
@json_option
def _show(name: str | None, config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """All agents, or one of them at length."""
    with json_problems(as_json):
        found = AdminClient(find(config_path, runtime_dir).runtime).agents()
        if name is not None:
            known = ", ".join(agent.name for agent in found.agents) or "none"
            found = wire.Agents(tuple(agent for agent in found.agents if agent.name == name))
            if not found.agents:
                raise AdminRefused(404, f"there is no agent {name!r}; there are: {known}")
    if as_json:
        click.echo(wire.pretty(found))
    elif not found.agents:
        click.echo("no agents are configured")
    else:
        show_table(HEADERS, [_row(agent) for agent in found.agents], SPARED)
        if name is not None:
            _show_one(found.agents[0])


def _row(agent: wire.Agent) -> tuple[str, ...]:
    failed = sum(n for word, n in agent.outcomes.items() if word not in ("decision", "cancelled"))
    fullest = max((instance.outstanding_bytes for instance in agent.instances), default=0)
    return (
        agent.name,
        agent.protocol,
        agent.breaker,
        f"{len(agent.instances)}/{agent.max_instances}",
        f"{agent.in_flight}/{agent.max_concurrent_calls}",
        f"{agent.queued}/{agent.max_queue}",
        _share(fullest, agent.max_outstanding_bytes),
        str(sum(agent.sends_refused.values())),
        str(agent.outcomes.get("decision", 0)),
        str(failed),
        str(agent.late_verdicts),
        _ms(agent.p50_ms),
        _ms(agent.p99_ms),
    )


def _show_one(agent: wire.Agent) -> None:
    failures = {word: n for word, n in agent.outcomes.items() if n and word != "decision"}
    click.echo(f"\nasked about: {', '.join(agent.events) or 'nothing yet'}")
    click.echo(f"other ends: {_counts(failures)}")
    click.echo(f"instances passed over, too much unread: {_counts(agent.sends_refused)}")
    click.echo(f"garbage: {agent.garbage}; header operations refused: {agent.refused_ops}")
    if agent.instances:
        click.echo()
        show_table(INSTANCE_HEADERS, [_instance(one, agent) for one in agent.instances], INSTANCES_SPARED)
    for instance in agent.instances:
        if instance.health_message:
            click.echo(f"{instance.name}: {clean(instance.health_message)}")
    if agent.last_calls:
        click.echo()
        show_table(CALL_HEADERS, [_call(call) for call in agent.last_calls], CALLS_SPARED)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{word} {n}" for word, n in counts.items()) or "none"


def _instance(instance: wire.Instance, agent: wire.Agent) -> tuple[str, ...]:
    states = [word for word, is_so in (("paused", instance.is_paused), ("draining", instance.is_draining)) if is_so]
    limit = agent.max_outstanding_messages
    return (
        instance.name,
        instance.health,
        f"{instance.in_flight}/{instance.limit}",
        _share(instance.outstanding_bytes, agent.max_outstanding_bytes),
        f"{instance.outstanding_messages}/{limit}" if limit else "",
        str(instance.sends_refused) if limit else "",
        str(instance.pinned),
        f"{instance.load:.2f}",
        ", ".join(states) or "ready",
    )


def _share(size: int, limit: int) -> str:
    """Bytes beside their limit; nothing where there is none."""
    return f"{_bytes(size)}/{_bytes(limit)}" if limit else ""


def _bytes(size: int) -> str:
    value, unit = float(size), ""
    for larger in ("K", "M", "G"):
        if value < 1_000:
            break
        value, unit = value / 1_024, larger
    return f"{value:.3g}{unit}"


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
    if value is None:
        return ""
    return f"{value:.3g} ms" if value < 999.5 else f"{value / 1000:.3g} s"
