"""The `wardgate` command: a table of subcommands, each loaded when it is used.

Nothing but this table, the options that several commands share, and the mapping from our errors to
exit codes may be put here; `wardgate --help` must not import the proxy. A new subcommand is a new row
and a module `proxy/cli/<name>.py` with a click command called `command`.

    exit code   0 ok   1 unhealthy or refused   2 usage or configuration   3 daemon unreachable

Kind: table.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, TypeVar

import click

from shared.errors import AdminRefused, AlreadyRunning, ConfigError, Unreachable, WardgateError

# name -> (module, what `wardgate --help` says)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("proxy.cli.run", "Proxy and agentd in this terminal (--demo: with something to try)."),
    "check": ("proxy.cli.check", "Check the configuration and say everything that is wrong with it."),
    "explain": ("proxy.cli.explain", "What would become of a request: route, agents, limits, header fields."),
    "config": ("proxy.cli.config", "Show the configuration as it is in effect, or its schema."),
    "proxy": ("proxy.cli.proxy", "Run the proxy: the arbiter and its workers."),
    "agentd": ("proxy.cli.agentd", "Run agentd, which asks the agents."),
    "reload": ("proxy.cli.reload", "Bring the changed configuration into force; no request is lost."),
    "health": ("proxy.cli.health", "Is everything well? Works when agentd is dead or hung, too."),
    "agents": ("proxy.cli.agents", "The agents: instances, load, outcomes, last calls."),
    "breaker": ("proxy.cli.breaker", "List the circuit breakers, or change one."),
    "limits": ("proxy.cli.limits", "List the rate, concurrency and connection limits, or change one."),
    "overrides": ("proxy.cli.overrides", "What is in effect and differs from the configuration."),
}

EXIT_OK: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
# Mapped once, here. The first row that fits counts.
EXIT_CODES: Final[tuple[tuple[type[WardgateError], int], ...]] = (
    (ConfigError, EXIT_USAGE),
    (Unreachable, EXIT_UNREACHABLE),
    (AlreadyRunning, EXIT_REFUSED),
    (AdminRefused, EXIT_REFUSED),
    (WardgateError, EXIT_REFUSED),
)

EXIT_CODES_HELP: Final = "Exit codes: 0 ok, 1 unhealthy or refused, 2 usage or configuration, 3 daemon unreachable."
EPILOG: Final = f"""\b
Examples:
  wardgate run --demo                  a working proxy to try things on
  wardgate check -c wardgate.toml      every problem of a file at once
  wardgate health                      what is well and what is not
  wardgate breaker open waf            stop asking an agent, now

{EXIT_CODES_HELP}
"""

_F = TypeVar("_F", bound=Callable[..., Any])


class _Commands(click.Group):
    """A click group whose members come from COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = COMMANDS.get(cmd_name)
        if row is None:
            return None
        command: click.Command = import_module(row[0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WardgateError as error:
            for text in error.problems if isinstance(error, ConfigError) else [str(error)]:
                click.echo(f"wardgate: {text}", err=True)
            sys.exit(exit_code(error))


def exit_code(error: WardgateError) -> int:
    """The exit code of one of our errors."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def config_option(function: _F) -> _F:
    """`--config FILE` as `config_path`, absent = $WARDGATE_CONFIG, else /etc/wardgate/wardgate.toml."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="Configuration file. Default: $WARDGATE_CONFIG, else /etc/wardgate/wardgate.toml.",
    )(function)


def runtime_option(function: _F) -> _F:
    """`--runtime-dir DIR` as `runtime_dir`; spares reading the configuration."""
    return click.option(
        "--runtime-dir",
        metavar="DIR",
        type=click.Path(file_okay=False),
        help="Directory of the daemons' sockets and segments. Default: the configuration's runtime.dir.",
    )(function)


def json_option(function: _F) -> _F:
    """`--json` as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")(function)


def version() -> str:
    """Of this installation."""
    from importlib import metadata

    try:
        return metadata.version("wardgate")
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        return "unknown"


@click.group(
    cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="wardgate", prog_name="wardgate")
def main() -> None:
    """Wardgate, a reverse proxy whose policy lives in agents.

    Agents are programs of yours, in any language, that see each request and response and allow, block,
    redirect or challenge. A slow, crashed or hostile agent never stalls the proxy.
    """
