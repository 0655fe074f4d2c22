"""`wardgate config`: the configuration in effect, where it comes from, and its schema.

Only output is made here.

Kind: IO.
"""

import os

import click

from proxy.cli import EXIT_CODES_HELP, config_option, json_option

SHOW_EPILOG = f"""\b
Origins: "file:line", "environment VARIABLE", "default".

\b
Examples:
  wardgate config show --origin | grep timeout
  wardgate config show --json | jq .agents[].name
  WARDGATE__SERVER__WORKERS=4 wardgate config show --origin

{EXIT_CODES_HELP}
"""

SCHEMA_EPILOG = """\b
Examples:
  wardgate config schema > wardgate.schema.json
and, as the first line of wardgate.toml, for editors that know it:
  #:schema ./wardgate.schema.json
"""


@click.group()
def command() -> None:
    """Show the configuration as it is in effect, or its schema."""


@command.command(short_help="Print the configuration in effect.", epilog=SHOW_EPILOG)
@config_option
@click.option("--origin", "with_origin", is_flag=True, help="Say beside each value where it was set.")
@json_option
def show(config_path: str | None, with_origin: bool, as_json: bool) -> None:
    """Print the configuration in effect: files, conf.d, environment and defaults together.

    The output is TOML again, and a file with it means the same. With --json one JSON document; with
    --origin --json an object of dotted paths, each with `value` and `origin`. A configuration that is
    refused is not shown; its problems are, and the exit code is 2.
    """
    import orjson

    from shared.config.build import plain
    from shared.config.load import load
    from shared.config.write import rows, write

    loaded = load(config_path, os.environ, needs_files=False)
    if as_json:
        document = plain(loaded.config)
        if with_origin:
            document = {
                row.path: {"value": plain(row.value), "origin": loaded.origins.get(row.path, "default")}
                for row in rows(loaded.config)
            }
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(write(loaded.config, loaded.origins if with_origin else None), nl=False)


@command.command(epilog=SCHEMA_EPILOG)
def schema() -> None:
    """Print the JSON Schema of the configuration file.

    It knows every key with its type, range, default and documentation; `x-wardgate-change` says whether
    a change needs a reload or a restart. Relations between keys are checked by `wardgate check` only.
    """
    from shared.config.reference import render_schema

    click.echo(render_schema(), nl=False)
