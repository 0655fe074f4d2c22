"""`wardgate limits`: lists the limits with what they do now, and changes one, by a message to agentd.

Kind: IO.
"""

import click
import msgspec

from proxy.cli import EXIT_CODES_HELP, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient, find, json_problems
from proxy.cli.table import show_table
from shared.wire import admin as wire

HEADERS = ("NAME", "KEY", "CAPACITY", "REFILL", "ACTIVE", "ADMITTED", "REFUSED", "OVERFLOW", "OVERRIDE")
SPARED = ("OVERFLOW", "KEY", "ADMITTED", "OVERRIDE")  # by a narrow terminal, in this order


@click.group(
    epilog=f"""\b
Examples:
  wardgate limits list
  wardgate limits set api/per-client --capacity 50 --refill-rate 10
  wardgate limits set api/max_concurrent --capacity 200 --keep
  wardgate limits set agent:waf --refill-rate 500
  wardgate limits reset api/per-client

{EXIT_CODES_HELP}
"""
)
def command() -> None:
    """List the rate, concurrency and connection limits, or change one.

    Names are ROUTE/NAME for `rate_limits`, ROUTE/max_concurrent and ROUTE/max_concurrent_per_client,
    server:max_connections and server:max_connections_per_client, and agent:NAME for an agent's rate_limit. A change
    acts in all workers at once, is written into the audit, and is gone after a reload unless it is to be kept.
    """


@command.command("list", epilog=f"Example: wardgate limits list --json\n\n{EXIT_CODES_HELP}")
@config_option
@runtime_option
@json_option
def list_(config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Every limit with its numbers.

    ACTIVE: keys whose bucket is not full, or requests or connections under way. OVERFLOW: how often a key found
    no row in a full table.
    """
    with json_problems(as_json):
        limits = AdminClient(find(config_path, runtime_dir).runtime).limits()
    if as_json:
        click.echo(wire.pretty(limits))
    elif limits.limits:
        show_table(HEADERS, [_row(limit) for limit in limits.limits], SPARED)
    else:
        click.echo("no limits are in effect")


def _row(limit: wire.Limit) -> tuple[str, ...]:
    counts = limit.kind == "uses"
    return (
        limit.name,
        limit.key or "-",
        str(limit.capacity),
        "-" if counts else f"{limit.refill_rate:g}/s",
        str(limit.active),
        str(limit.admitted),
        str(limit.refused),
        str(limit.overflowed),
        ("kept" if limit.is_kept else "until reload") if limit.is_overridden else "-",
    )


def _change(
    config_path: str | None,
    runtime_dir: str | None,
    as_json: bool,
    name: str,
    action: wire.LimitAction,
    change: wire.LimitChange | None = None,
) -> None:
    with json_problems(as_json):
        limit = AdminClient(find(config_path, runtime_dir).runtime).change_limit(name, action, change)
    if as_json:
        click.echo(wire.pretty(limit))
    else:
        show_table(HEADERS, [_row(limit)], SPARED)


@command.command(
    "set",
    short_help="Change numbers of one limit.",
    epilog=f"Example: wardgate limits set api/per-client --capacity 50\n\n{EXIT_CODES_HELP}",
)
@click.argument("name", metavar="NAME")
@click.option("--capacity", type=click.IntRange(1, 10**9), help="The most in a burst, or under way at once.")
@click.option("--refill-rate", type=click.FloatRange(0.000_001, 1_000_000), help="So many a second, in the long run.")
@click.option("--keep", is_flag=True, help="Also after a reload, as long as the limit has the same key there.")
@config_option
@runtime_option
@json_option
def set_(
    name: str,
    capacity: int | None,
    refill_rate: float | None,
    keep: bool,
    config_path: str | None,
    runtime_dir: str | None,
    as_json: bool,
) -> None:
    """Change numbers of one limit; what is not given stays, and so do the tokens that are there.

    With --keep alone the numbers that are in effect are kept.
    """
    if capacity is None and refill_rate is None and not keep:
        raise click.UsageError("give --capacity, --refill-rate or --keep; see --help")
    if refill_rate is not None and refill_rate != refill_rate:
        raise click.UsageError("--refill-rate: not a number")
    change = wire.LimitChange(
        msgspec.UNSET if capacity is None else capacity,
        msgspec.UNSET if refill_rate is None else refill_rate,
        keep,
    )
    _change(config_path, runtime_dir, as_json, name, "set", change)


@command.command("reset", epilog=f"Example: wardgate limits reset api/per-client\n\n{EXIT_CODES_HELP}")
@click.argument("name", metavar="NAME")
@config_option
@runtime_option
@json_option
def reset(name: str, config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """Back to the configuration's numbers, with every bucket full."""
    _change(config_path, runtime_dir, as_json, name, "reset")
