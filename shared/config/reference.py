"""Makes the reference and the JSON Schema of the configuration from the schema's rows.

docs/configuration.md and docs/configuration.schema.json are written from here by docs/generate.py, and
`wardgate config schema` prints the second.

Kind: pure.
"""

import inspect
from typing import Any

import msgspec

from shared import defaults as d
from shared.config import later
from shared.config.keys import Table
from shared.config.schema import Config
from shared.config.shape import Shape, describe, fields_of
from shared.config.write import toml_value

_CHANGES = {"reload": "Reload.", "restart": "Restart."}

_LIMITS = {
    "{name_chars}": d.NAME_MAX_CHARS,
    "{upstreams}": d.UPSTREAM_ROWS,
    "{agents}": d.AGENT_ROWS,
    "{routes}": d.ROUTE_ROWS,
    "{filters}": d.FILTERS_PER_ROUTE,
}

_HEAD = """\
# Configuration

<!-- Made by docs/generate.py from shared/config/schema.py. Do not edit. -->

One TOML file holds the configuration of the proxy and of agentd. `wardgate check` reads it as the daemons do and
prints every problem with file, line, dotted path and a suggestion; nothing starts with a configuration that it
refuses. `wardgate config show --origin` prints what is in force and where each value was set.

A minimal file:

```toml
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9000" }]

[[agents]]
name = "waf"
protocol = "zmq-v2"

[[routes]]
name = "default"
upstream = "app"
filters = [{ agent = "waf" }]
```

## Where values come from

In this order, the later wins:

1. The defaults below.
2. The file: `--config FILE`, else `$WARDGATE_CONFIG`, else `/etc/wardgate/wardgate.toml`.
3. `conf.d/*.toml` beside that file, in the order of their names. Tables merge, arrays of tables (`[[agents]]`) append,
   of anything else the later file's value counts. A name used twice is an error.
4. Environment variables. `WARDGATE__SERVER__WORKERS=4` is `server.workers = 4`; entries of a list go by their name,
   other characters than letters and digits as `_`: `WARDGATE__AGENTS__WAF__TIMEOUT_MS=50`. The text is read as a TOML
   value if it is one (`WARDGATE__SERVER__LISTEN='["0.0.0.0:80"]'`), else as a string. A variable that fits nothing is
   an error.
5. Options on the command line of `wardgate run`.

Secrets never stand in the file: keys that end in `_file` name a file with them. An absolute path is read as it is; a
bare name is a systemd credential (`LoadCredential=`), looked for in `$CREDENTIALS_DIRECTORY` of the daemon's unit.

## When a change acts

*Reload*: when the daemons read the configuration again: `wardgate reload` checks the file, then reloads agentd, then
the proxy, and says what came of it; a SIGHUP reloads one daemon. No request is lost by it. *Restart*: when the daemon
that reads the key is started again; a reload that finds such a key changed is refused and names it. A configuration
that is refused changes nothing: the running one stays, and log, `wardgate health` and
`wardgate_config_last_reload_successful` say so. Files with secrets and certificates are read anew with each reload.

## How values are written

* Names of agents, upstreams and routes: 1 to {name_chars} letters, digits, `.`, `_` and `-`, the first a letter or
  digit.
* Addresses: `"host:port"`, with an IPv6 address in brackets (`"[::1]:8080"`). Port 0 = any free one, where we listen.
* Units stand in the name: `_s` seconds (fractions are allowed where the type is a number), `_ms` milliseconds,
  `_bytes` bytes.
* At most {upstreams} upstreams, {agents} agents, {routes} routes, and {filters} agents in the chain of a route.
"""


def render_markdown() -> str:
    """docs/configuration.md."""
    head = _HEAD
    for mark, number in _LIMITS.items():
        head = head.replace(mark, str(number))
    parts = [head]
    for name, shape in fields_of(Config).items():
        table = shape.item if shape.kind == "list" else shape
        assert table is not None
        parts += _table(table, f"[[{name}]]" if shape.kind == "list" else f"[{name}]", name)
    parts.append(_later())
    return "\n".join(parts)


def _table(shape: Shape, title: str, path: str) -> list[str]:
    """A section for a table, and after it one for each table inside."""
    parts = [f"## `{title}`\n", f"{_text(shape.table)}\n"]
    inner: list[str] = []
    for name, field in fields_of(shape.table).items():
        parts.append(_key(path, name, field))
        nested = field.item if field.kind == "list" else field
        if nested is not None and nested.kind == "table":
            inner += _table(nested, f"{path}.{name}" + ("[]" if field.kind == "list" else ""), f"{path}.{name}")
    return parts + inner


def _key(path: str, name: str, field: Shape) -> str:
    kind = describe(field)
    for choice in field.choices or (field.item.choices if field.item is not None else ()):
        kind = kind.replace(f'"{choice}"', f'`"{choice}"`')
    facts = [kind[0].upper() + kind[1:] + ".", _default(field), _CHANGES[field.note("change")]]
    return f"### `{path}.{name}`\n\n{' '.join(filter(None, facts))}\n\n{field.doc}\n"


def _default(field: Shape) -> str:
    if field.default is msgspec.NODEFAULT:
        return "**Required.**"
    if field.kind == "table" or field.default in (None, (), "", {}):
        return ""
    value = field.default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"Default `{toml_value(value)}`."


def _text(table: type[Table]) -> str:
    return " ".join((table.__doc__ or "").split())


def _later() -> str:
    rows = [f"| `{path}` | {feature} |" for path, feature in later.KEYS.items()]
    for path, values in later.VALUES.items():
        rows += [f'| `{path.removesuffix("[]")}` = `"{value}"` | {feature} |' for value, feature in values.items()]
    intro = "These keys and values belong to features that do not exist yet. They are refused, never ignored."
    return f"## Not supported yet\n\n{intro}\n\n| key | feature |\n|---|---|\n" + "\n".join(rows) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the configuration file."""
    schema = msgspec.json.schema(Config)
    for row in schema["$defs"].values():
        if "description" in row:  # a docstring, which keeps its indentation before Python 3.13
            row["description"] = inspect.cleandoc(row["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Wardgate configuration",
        **schema,
    }


def render_schema() -> str:
    """docs/configuration.schema.json."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"
