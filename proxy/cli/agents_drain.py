"""`wardgate agents drain`: an instance leaves without a failed call, so that another can take its place.

What a drain is and who may be drained is decided by agentd (agentd/drains.py); here is the waiting.

Kind: IO.
"""

import sys

import click

from proxy.cli import EXIT_REFUSED, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient, find, json_problems
from proxy.cli.patience import Patience
from shared.defaults import ADMIN_TIMEOUT_S, DRAIN_DEADLINE_MS
from shared.errors import AdminRefused
from shared.wire import admin as wire

EPILOG = """\b
The instance gets DRAIN: it is asked about no new request, what it has and later events of requests that
it knows are finished. When nothing is left, or after --timeout, it gets BYE. Its process is not let in
again for a minute: it is told so, and an agent made with the SDK exits. What ends it for good, or starts
its successor, is yours (systemd, a container's supervisor).

\b
To replace the only instance, start its successor first:
  systemctl start wardgate-agent@waf-2
  wardgate agents drain waf/waf-1
  systemctl stop wardgate-agent@waf-1

\b
It is refused while no other instance of the agent takes calls, since requests would fail; --force
insists. Agents of zmq-v1 have no instances: start the new one at another endpoint, change `endpoint`
in the configuration and run `wardgate reload`, which drains the old connections.

\b
Examples:
  wardgate agents drain waf/host-1-4711
  wardgate agents drain waf --force             all its instances
  wardgate agents drain waf/i1 --timeout 300 --json

Exit codes: 0 drained, 1 refused, or calls were cut, 2 usage or configuration, 3 agentd unreachable.
"""


@click.command("drain", epilog=EPILOG)
@click.argument("name", metavar="NAME[/INSTANCE]")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 86_400),
    default=DRAIN_DEADLINE_MS / 1000,
    show_default=True,
    metavar="SECONDS",
    help="What it has not finished by then is cut, and fails.",
)
@click.option("--force", is_flag=True, help="Even if nobody is left to ask; without INSTANCE: all of them.")
@config_option
@runtime_option
@json_option
def command(
    name: str, timeout_s: float, force: bool, config_path: str | None, runtime_dir: str | None, as_json: bool
) -> None:
    """Let an instance of an agent leave without a failed call, and wait until it has.

    INSTANCE is a name that `wardgate agents NAME` shows; it may be left out where there is only one.
    """
    agent, slash, instance = name.partition("/")
    if not agent or (slash and not instance):  # `waf/$INSTANCE --force` without a value must not drain all of them
        raise click.UsageError(f"{name!r}: expected NAME or NAME/INSTANCE; see `wardgate agents NAME`")
    with json_problems(as_json):
        client = AdminClient(find(config_path, runtime_dir).runtime)
        begun = client.drain(agent, wire.DrainRequest(instance, timeout_s, force))
        found = _wait(client, begun, timeout_s)
    if as_json:
        click.echo(wire.pretty(found))
    else:
        for row in found.drains:
            click.echo(_line(row, timeout_s))
    if any(row.state != "drained" for row in found.drains):
        sys.exit(EXIT_REFUSED)


def _wait(client: AdminClient, begun: wire.Drains, timeout_s: float) -> wire.Drains:
    wanted = {row.session for row in begun.drains}
    rows = begun.drains

    def progress(seconds: float) -> str:
        return "; ".join(f"{row.agent}/{row.instance}: {_left(row)}" for row in rows if row.state == "draining")

    patience = Patience(timeout_s + ADMIN_TIMEOUT_S, progress)
    while any(row.state == "draining" for row in rows):
        if not patience.has_more():
            raise AdminRefused(408, "agentd has not ended the drain in time; see `wardgate agents`")
        rows = tuple(row for row in client.drains().drains if row.session in wanted)
    return wire.Drains(rows)


def _left(row: wire.Drain) -> str:
    return f"{row.calls} calls and {row.pinned} pinned requests left, {row.left_ms / 1000:.0f} s to go"


def _line(row: wire.Drain, timeout_s: float) -> str:
    name = f"{row.agent}/{row.instance}"
    if row.state == "drained":
        return f"{name}: drained"
    left = f"{row.calls} calls and {row.pinned} pinned requests"
    if row.state == "cut":
        return f"{name}: cut after {timeout_s:g} s with {left} left; they failed"
    return f"{name}: left by itself ({row.message}) with {left}"
