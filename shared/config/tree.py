"""The raw configuration as a tree of nodes that know where they came from.

Files, environment and command line are grafted onto one tree (shared/config/read.py), which is then
held against the schema (shared/config/build.py). Nothing here knows a key of the configuration.

Kind: pure.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shared import defaults as d
from shared.config import syntax

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
_SHOWN_CHARS = 60  # of a key or value inside a message


class Origin(msgspec.Struct, frozen=True):
    """Where a value was set: a file and line, or another source without a line."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


DEFAULT = Origin("default")
COMMAND_LINE = Origin("command line")


class Node(msgspec.Struct):
    """A value and where it was set; tables are dicts of nodes, arrays lists of nodes."""

    value: Any
    origin: Origin


class Problem(msgspec.Struct, frozen=True):
    """One finding, located; `hint` is what the reader should do, "" when there is nothing to say."""

    origin: Origin
    path: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        start = f"{self.origin}: {self.path}: " if self.path else f"{self.origin}: "
        return f"{start}{self.text}{f'; {self.hint}' if self.hint else ''}"


def plant(value: Any, origin_of: Callable[[Path], Origin], problems: list[Problem], path: Path = ()) -> Node:
    """The tree of a parsed document; what is nested too deeply is a problem and cut off."""
    origin = origin_of(path)
    if len(path) >= d.CONFIG_DEPTH and isinstance(value, (dict, list, tuple)):
        problems.append(Problem(origin, str(path[0]), f"nested deeper than {d.CONFIG_DEPTH} levels"))
        return Node({} if isinstance(value, dict) else [], origin)
    if isinstance(value, dict):
        return Node({k: plant(v, origin_of, problems, (*path, k)) for k, v in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Node([plant(v, origin_of, problems, (*path, i)) for i, v in enumerate(value)], origin)
    return Node(value, origin)


def uproot(node: Node) -> Any:
    """The plain value of a node: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {k: uproot(v) for k, v in node.value.items()}
    if isinstance(node.value, list):
        return [uproot(v) for v in node.value]
    return node.value


def graft(base: Node, over: Node, *, append: bool) -> None:
    """Put `over` onto `base`: tables merge, arrays of tables append (if `append`), anything else: the later wins."""
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        for name, node in over.value.items():
            if name in base.value:
                graft(base.value[name], node, append=append)
            else:
                base.value[name] = node
    elif append and _are_tables(base, over):
        base.value = base.value + over.value
    else:
        base.value = over.value
        base.origin = over.origin


def _are_tables(one: Node, two: Node) -> bool:
    if not isinstance(one.value, list) or not isinstance(two.value, list):
        return False
    items = one.value + two.value
    return bool(items) and all(isinstance(item.value, dict) for item in items)


def origin_at(root: Node, path: Sequence[str | int]) -> Origin:
    """Where the value at `path` was set; of what is not set, the nearest table around it."""
    node = root
    for part in path:
        value = node.value
        is_item = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not is_item and not (isinstance(value, dict) and part in value):
            break
        node = value[part]
    return node.origin


def name_of(node: Node) -> str:
    """The `name` key of a table, "" if it has no usable one."""
    if isinstance(node.value, dict):
        name = node.value.get("name")
        if name is not None and isinstance(name.value, str) and syntax.name(name.value) is None:
            return name.value
    return ""


def _raw_name(node: Node) -> object:
    """What stands under `name`, usable or not: asked of every sibling, for every path into a list."""
    value = node.value
    return value["name"].value if isinstance(value, dict) and "name" in value else None


def show_path(root: Node, path: Sequence[str | int]) -> str:
    """`agents[waf].timeout_ms`: dotted, list entries by name where that is unique, else by number."""
    text = ""
    node: Node | None = root
    for part in path:
        if isinstance(part, int):
            siblings = node.value if node is not None and isinstance(node.value, list) else []
            label = str(part)
            if part < len(siblings):
                name = name_of(siblings[part])
                if name and all(_raw_name(item) != name or item is siblings[part] for item in siblings):
                    label = name
            text += f"[{label}]"
            node = siblings[part] if part < len(siblings) else None
        else:
            text += ("." if text else "") + show_key(part)
            node = node.value.get(part) if node is not None and isinstance(node.value, dict) else None
    return text


def show_key(part: str) -> str:
    """A key as TOML writes it, cut where it is absurdly long."""
    return part if _BARE.match(part) and len(part) <= _SHOWN_CHARS else show_value(part)


def show_value(value: Any) -> str:
    """A value for a message: as TOML writes it, shortened."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        cut = value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "..."
        return json.dumps(cut)
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "an integer beyond 64 bits"
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
