"""`wardgate overrides`: everything that operators have set and that differs from the configuration.

Kind: IO.
"""

import click

from proxy.cli import EXIT_CODES_HELP, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient, find, json_problems
from proxy.cli.table import show_table
from shared.wire import admin as wire

HEADERS = ("KIND", "NAME", "SETTING", "CONFIGURED", "NOW", "KEPT")


@click.command(epilog=f"Example: wardgate overrides --json\n\n{EXIT_CODES_HELP}")
@config_option
@runtime_option
@json_option
def command(config_path: str | None, runtime_dir: str | None, as_json: bool) -> None:
    """What is in effect and differs from the configuration: limits, and circuit breakers opened or set by hand.

    KEPT: it outlives a reload. A limit goes back by `wardgate limits reset`, a breaker that was opened by
    `wardgate breaker close`, a breaker's numbers by a reload.
    """
    with json_problems(as_json):
        found = AdminClient(find(config_path, runtime_dir).runtime).overrides()
    if as_json:
        click.echo(wire.pretty(found))
    elif found.overrides:
        show_table(
            HEADERS,
            [
                (one.kind, one.name, one.setting, one.configured, one.now, "yes" if one.is_kept else "no")
                for one in found.overrides
            ],
        )
    else:
        click.echo("nothing differs from the configuration")
