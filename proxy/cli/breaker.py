"""`wardgate breaker`: lists the circuit breakers and changes one, by a message to agentd.

Kind: IO.
"""

import math
from typing import Any, Final

import click
import msgspec

from proxy.cli import EXIT_CODES_HELP, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient, find, json_problems
from proxy.cli.table import show_table
from shared.config.schema import CircuitBreaker
from shared.wire import admin as wire

HEADERS = ("AGENT", "STATE", "FAILURES", "NEXT PROBE", "OPENED", "THRESHOLD", "WINDOW", "WAIT", "SUCCESSES", "PROBES")
SPARED = ("PROBES", "SUCCESSES", "WINDOW", "OPENED")  # by a narrow terminal, in this order


@click.group(
    epilog=f"""\b
Examples:
  wardgate breaker list
  wardgate breaker open waf                 ask it nothing until `close` or `reset`
  wardgate breaker close waf                ask it again
  wardgate breaker set waf --failure-threshold 20 --timeout-seconds 5

{EXIT_CODES_HELP}
"""
)
def command() -> None:
    """List the circuit breakers, or change one.

    A breaker opens after so many failures within its window; then the agent is not asked and its
    failure_mode decides. After a wait one probe at a time is let through. A change acts in all workers
    at once and is written into the audit. A breaker that was opened by hand stays open, over a restart of
    agentd too, until it is closed or reset by hand.
    """


@command.command("list", epilog=f"Example: wardgate breaker list --json\n\n{EXIT_CODES_HELP}")
@config_option
@runtime_option
@json_option
def list_(config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Every breaker with its state and numbers."""
    with json_problems(as_json):
        breakers = AdminClient(find(config_path, runtime_dir).runtime).breakers()
    if as_json:
        click.echo(wire.pretty(breakers))
    elif breakers.breakers:
        show_table(HEADERS, [_row(breaker) for breaker in breakers.breakers], SPARED)
    else:
        click.echo("no agents are configured")


def _row(breaker: wire.Breaker) -> tuple[str, ...]:
    wait = "" if breaker.retry_in_ms is None else f"in {breaker.retry_in_ms / 1000:.1f} s"
    return (
        breaker.agent,
        breaker.state,
        str(breaker.failures),
        wait,
        str(breaker.opened_total),
        str(breaker.failure_threshold),
        f"{breaker.window_seconds:g} s",
        f"{breaker.timeout_seconds:g} s",
        str(breaker.success_threshold),
        str(breaker.half_open_max_requests),
    )


def _change(
    config_path: str | None,
    runtime_dir: str | None,
    as_json: bool,
    agent: str,
    action: wire.BreakerAction,
    change: wire.BreakerChange | None = None,
) -> None:
    with json_problems(as_json):
        breaker = AdminClient(find(config_path, runtime_dir).runtime).change_breaker(agent, action, change)
    if as_json:
        click.echo(wire.pretty(breaker))
    elif change is None:
        click.echo(f"{breaker.agent}: breaker is {breaker.state}")
    else:
        show_table(HEADERS, [_row(breaker)], SPARED)


def _action(action: wire.BreakerAction, text: str) -> None:
    short = text.partition(";")[0].removesuffix(".") + "."

    @command.command(
        action, help=text, short_help=short, epilog=f"Example: wardgate breaker {action} waf\n\n{EXIT_CODES_HELP}"
    )
    @click.argument("agent", metavar="NAME")
    @config_option
    @runtime_option
    @json_option
    def run(agent: str, config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
        _change(config_path, runtime_dir, as_json, agent, action)


_action("open", "Ask the agent nothing until `close` or `reset`; its failure_mode decides meanwhile.")
_action("close", "Ask the agent again; failures so far are forgotten.")
_action("reset", "Back to closed with no failures, whatever its state was.")


class _Seconds(click.FloatRange):
    """A range without "not a number", which compares as being in any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


def _ranges() -> dict[str, click.IntRange | click.FloatRange]:
    """Per number of a breaker: the range that the configuration has for it."""
    found: dict[str, click.IntRange | click.FloatRange] = {}
    fields: Any = msgspec.inspect.type_info(CircuitBreaker)
    for field in fields.fields:
        kind = field.type.type if isinstance(field.type, msgspec.inspect.Metadata) else field.type
        if isinstance(kind, msgspec.inspect.IntType):
            found[field.name] = click.IntRange(kind.ge, kind.le)
        elif isinstance(kind, msgspec.inspect.FloatType):
            found[field.name] = _Seconds(kind.gt, kind.le, min_open=True)
    return found


_RANGES: Final = _ranges()


@command.command("set", epilog=f"Example: wardgate breaker set waf --failure-threshold 20\n\n{EXIT_CODES_HELP}")
@click.argument("agent", metavar="NAME")
@click.option("--failure-threshold", type=_RANGES["failure_threshold"], help="Failures within the window that open it.")
@click.option(
    "--success-threshold", type=_RANGES["success_threshold"], help="Successful probes in a row that close it."
)
@click.option("--timeout-seconds", type=_RANGES["timeout_seconds"], help="Wait before the first probe.")
@click.option("--window-seconds", type=_RANGES["window_seconds"], help="The sliding window of failures.")
@click.option("--half-open-max-requests", type=_RANGES["half_open_max_requests"], help="Probes under way at once.")
@config_option
@runtime_option
@json_option
def set_(
    agent: str, config_path: str | None, runtime_dir: str | None, as_json: bool, **numbers: int | float | None
) -> None:
    """Change numbers of one breaker until agentd reloads or starts anew.

    What is not given stays. The configuration file is not changed.
    """
    given = {name: number for name, number in numbers.items() if number is not None}
    if not given:
        raise click.UsageError("give at least one number to change; see --help")
    change = wire.BreakerChange(**given)  # type: ignore[arg-type]
    _change(config_path, runtime_dir, as_json, agent, "set", change)
