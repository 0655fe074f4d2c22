"""`wardgate check`: every problem of the configuration at once, else the plan of every route.

Only words are made here; what is right and wrong is decided in shared/config.

Kind: IO.
"""

import os
import sys
from typing import Any

import click

from proxy.cli import EXIT_CODES_HELP, EXIT_USAGE, config_option, json_option

EPILOG = f"""\b
A problem is a line
    file:line: dotted.path: what is wrong; what to do about it
on standard error; warnings go there too. If nothing is wrong, standard output gets a
summary and, for each route, which agents are asked about what, in which order, and
what their failure means.

\b
Checked are also: conf.d/*.toml beside the file, WARDGATE__... variables, that secrets
and certificates can be read, and that the import names proxy, agentd and shared belong
to wardgate alone.

\b
Examples:
  wardgate check
  wardgate check -c new.toml && mv new.toml /etc/wardgate/wardgate.toml
  wardgate check --json | jq -r '.problems[]'

{EXIT_CODES_HELP}
"""


@click.command(epilog=EPILOG)
@config_option
@json_option
def command(config_path: str | None, as_json: bool) -> None:
    """Check the configuration and say everything that is wrong with it.

    Reads it exactly as the daemons do and starts nothing. Exits with 0 if a daemon would start with it
    (there may be warnings), else with 2.
    """
    from shared.config import owners
    from shared.config.load import Loaded, load
    from shared.errors import ConfigError

    problems = owners.problems()
    loaded: Loaded | None = None
    try:
        loaded = load(config_path, os.environ)
    except ConfigError as error:
        problems = error.problems + problems
    warnings = loaded.warnings if loaded is not None else []
    if as_json:
        click.echo(_as_json(loaded, problems, warnings))
    else:
        for text in warnings:
            click.echo(f"warning: {text}", err=True)
        for text in problems:
            click.echo(text, err=True)
        if problems:
            click.echo(f"{_count(len(problems), 'problem')}, nothing would start", err=True)
        elif loaded is not None:
            click.echo(_summary(loaded))
    if problems:
        sys.exit(EXIT_USAGE)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(loaded: Any) -> str:
    """ "ok", then a paragraph for each route."""
    config = loaded.config
    counts = ", ".join(
        _count(len(items), noun)
        for items, noun in ((config.routes, "route"), (config.agents, "agent"), (config.upstreams, "upstream"))
    )
    lines = [f"ok: {counts}; configuration {loaded.digest} from {', '.join(loaded.files)}"]
    for route in _routes(loaded):
        lines += ["", f"route {route['name']}: {_match(route['match'])} -> {route['upstream']}"]
        if not route["plans"]:
            lines.append("  nobody is asked")
        for plan in route["plans"]:
            how = "in sequence" if plan["order"] == "sequential" else "in parallel"
            waits = any(agent["mode"] == "enforce" for agent in plan["agents"])
            several = f", {how}" if waits and len(plan["agents"]) > 1 else ""
            limit = f"decided within {plan['within_ms']} ms" if waits else "nobody waits"
            of = f" ({plan['part']})" if plan["part"] else ""
            then = ", then" if plan["stage"] else ""
            lines.append(f"  {plan['event']}{of}{then}: {limit}{several}")
            lines += [f"    {_agent(agent)}" for agent in plan["agents"]]
    return "\n".join(lines)


def _match(match: dict[str, Any]) -> str:
    hosts = ", ".join(match["hosts"]) or "any host"
    methods = ", ".join(match["methods"]) or "any method"
    return f"{hosts}, {match['path_prefix']}, {methods}"


def _agent(agent: dict[str, Any]) -> str:
    if agent["mode"] == "observe":
        what = "observes"
    else:
        what = "failure refuses" if agent["failure_mode"] == "closed" else "failure is skipped"
    asked = ", if it registers for this" if agent["by_hello"] else ""
    return f"{agent['agent']}: {what}, {agent['timeout_ms']} ms{asked}"


def _routes(loaded: Any) -> list[dict[str, Any]]:
    """Each route with its plans, as plain values."""
    from shared.clock import MS
    from shared.config.build import plain
    from shared.plan import compile_plans

    plans = compile_plans(loaded.config)
    return [
        {
            "name": route.name,
            "match": plain(route.match),
            "upstream": route.upstream,
            "plans": [
                {
                    "event": plan.kind.wire_name,
                    "part": plan.part,
                    "stage": plan.stage,
                    "order": "sequential" if plan.sequential else "parallel",
                    "within_ms": plan.timeout_ns // MS,
                    "agents": [
                        {
                            "agent": ask.agent,
                            "mode": "observe" if ask.observe else "enforce",
                            "failure_mode": ask.failure_mode,
                            "timeout_ms": ask.timeout_ms,
                            "by_hello": ask.by_hello,
                        }
                        for ask in plan.asks
                    ],
                }
                for plan in plans
                if plan.route == route.name
            ],
        }
        for route in loaded.config.routes
    ]


def _as_json(loaded: Any, problems: list[str], warnings: list[str]) -> str:
    import orjson

    document: dict[str, Any] = {"ok": not problems, "problems": problems, "warnings": warnings}
    if loaded is not None:
        document |= {"digest": loaded.digest, "files": loaded.files, "routes": _routes(loaded)}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
