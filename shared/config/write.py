"""Writes an accepted configuration as TOML again, with the origin of every value if asked for.

What comes out, read again, is the same configuration.

Kind: pure.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from shared.config.schema import Config
from shared.config.shape import Shape, fields_of, shape_of

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_ORIGIN_COLUMN = 48


def toml_value(value: Any) -> str:
    """Any value that TOML knows, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but TOML also wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inside = ", ".join(f"{toml_key(name)} = {toml_value(item)}" for name, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)


def toml_key(name: str) -> str:
    """A key, quoted where it must be."""
    return name if _BARE.match(name) else toml_value(name)


class Row(msgspec.Struct, frozen=True):
    """One key: the header of its table ("[[agents]]"), its dotted path ("agents[waf].timeout_ms"), name, value."""

    header: str
    table: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        return f"{self.table}.{self.name}".lstrip(".")


def rows(config: Config) -> list[Row]:
    """Every key that has a value, defaults included, in an order in which TOML can say them."""
    found: list[Row] = []
    _walk(shape_of(Config, None), config, "", "", "", found)
    return found


def _walk(shape: Shape, table: Any, header: str, dotted: str, path: str, found: list[Row]) -> None:
    """First the keys of a table, then the tables inside it: what follows a header belongs to it."""
    inner: list[tuple[Shape, Any, str, str, str]] = []
    for name, field in fields_of(shape.table).items():
        value = getattr(table, name)
        name_path, name_dotted = f"{path}.{name}".lstrip("."), f"{dotted}.{name}".lstrip(".")
        if value is None:
            continue
        if field.kind == "table":
            inner.append((field, value, f"[{name_dotted}]", name_dotted, name_path))
        elif field.kind == "list" and field.item is not None and field.item.kind == "table" and value:
            for number, item in enumerate(value):
                label = getattr(item, "name", number)
                inner.append((field.item, item, f"[[{name_dotted}]]", name_dotted, f"{name_path}[{label}]"))
        else:
            found.append(Row(header, path, name, value))
    for arguments in inner:
        _walk(*arguments, found)


def write(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """The whole configuration, defaults included; `origins` (of Loaded) become comments."""
    lines: list[str] = []
    table = ""
    for row in rows(config):
        if row.table != table:
            table = row.table
            lines += ["", row.header]
        text = f"{row.name} = {toml_value(row.value)}"
        if origins is not None:
            text = f"{text:<{_ORIGIN_COLUMN}}  # {origins.get(row.path, 'default')}"
        lines.append(text)
    return "\n".join(lines).lstrip("\n") + "\n"
