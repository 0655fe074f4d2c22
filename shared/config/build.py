"""Holds the raw tree against the schema, leaf by leaf, and finds every problem of shape at once.

msgspec's own conversion stops at the first error and knows no lines; it only judges single leaves here.
A key that is wrong gets a placeholder and its path is remembered as broken, so that the relations
between keys (shared/config/check.py) can still be checked without false findings.

Kind: pure.
"""

import datetime
import difflib
import math
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from shared.config import former, later
from shared.config.keys import Table
from shared.config.schema import Config
from shared.config.shape import Shape, describe, fields_of, shape_of
from shared.config.syntax import CHECKS, has_control
from shared.config.tree import DEFAULT, Node, Origin, Path, Problem, show_path, show_value


class Built(msgspec.Struct):
    """A tree held against the schema. `config` is complete only if there are no `problems`."""

    root: Node
    config: Config
    origins: dict[str, Origin]
    problems: list[Problem]
    broken: set[Path]


def build(root: Node) -> Built:
    """The typed configuration, the origin of every key, and all problems of shape."""
    builder = _Builder(root)
    config = builder.table(Config, root, ())
    return Built(root, cast(Config, config), builder.origins, builder.problems, builder.broken)


class _Builder:
    def __init__(self, root: Node) -> None:
        self.root = root
        self.origins: dict[str, Origin] = {}
        self.problems: list[Problem] = []
        self.broken: set[Path] = set()

    def refuse(self, path: Path, origin: Origin, text: str, hint: str = "") -> None:
        self.problems.append(Problem(origin, show_path(self.root, path), text, hint))
        self.broken.add(path)

    # --- tables and lists -------------------------------------------------------------------------

    def table(self, table: type[Table], node: Node, path: Path) -> Table:
        fields = fields_of(table)
        values: dict[str, Any] = {}
        for name, shape in fields.items():
            here = (*path, name)
            if name in node.value:
                values[name] = self.value(shape, node.value[name], here)
            elif shape.default is msgspec.NODEFAULT:
                self.refuse(here, node.origin, "is missing")
                values[name] = _placeholder(shape)
            else:
                self.default(shape, here)
                values[name] = shape.default
        for name, child in node.value.items():
            if name not in fields:
                self.unknown(fields, child, (*path, name))
        return table(**values)

    def default(self, shape: Shape, path: Path) -> None:
        """Note the origin of a key that is not given, and of the keys inside its default."""
        if shape.kind == "table" and shape.default is not None:
            for name, inner in fields_of(shape.table).items():
                self.default(inner, (*path, name))
        elif shape.default is not None:
            self.origins[show_path(self.root, path)] = DEFAULT

    def value(self, shape: Shape, node: Node, path: Path) -> Any:
        if shape.kind == "table":
            if isinstance(node.value, dict):
                return self.table(shape.table, node, path)
        elif shape.kind == "list":
            if isinstance(node.value, list):
                return self.list(shape, node, path)
        elif shape.kind == "map":
            if isinstance(node.value, dict):
                return self.map(shape, node, path)
        elif shape.kind == "any":
            return self.any(node, path)
        else:
            return self.leaf(shape, node, path)
        self.mismatch(shape, node, path)
        return _placeholder(shape)

    def list(self, shape: Shape, node: Node, path: Path) -> tuple[Any, ...]:
        assert shape.item is not None
        if shape.item.kind == "leaf":
            self.origins[show_path(self.root, path)] = node.origin
        least = shape.bound("min_length") or 0
        if len(node.value) < least:
            self.refuse(path, node.origin, f"expected {describe(shape)}")
        return tuple(self.value(shape.item, item, (*path, i)) for i, item in enumerate(node.value))

    def map(self, shape: Shape, node: Node, path: Path) -> dict[str, Any]:
        assert shape.item is not None
        found: dict[str, Any] = {}
        for name, child in node.value.items():
            if has_control(name):
                self.refuse((*path, name), child.origin, "control characters are not allowed")
            else:
                found[name] = self.value(shape.item, child, (*path, name))
                self.origins.pop(show_path(self.root, (*path, name)), None)
        self.origins[show_path(self.root, path)] = node.origin
        return found

    # --- leaves -----------------------------------------------------------------------------------

    def leaf(self, shape: Shape, node: Node, path: Path) -> Any:
        if not path or not isinstance(path[-1], int):
            self.origins[show_path(self.root, path)] = node.origin
        value = node.value
        feature = later.VALUES.get(pattern(path), {}).get(value) if isinstance(value, str) else None
        if feature is not None:
            self.refuse(path, node.origin, f"{show_value(value)} is not supported yet ({feature})", _instead(shape))
            return _placeholder(shape)
        try:
            # None is not a TOML value: without this an absent one could be converted.
            converted = msgspec.convert(value, shape.hint) if value is not None else _fail()
        except msgspec.ValidationError:
            self.mismatch(shape, node, path)
            return _placeholder(shape)
        if isinstance(converted, float) and not math.isfinite(converted):
            self.mismatch(shape, node, path)
            return _placeholder(shape)
        if isinstance(converted, str) and not self.is_clean(shape, converted, node, path):
            return _placeholder(shape)
        return converted

    def is_clean(self, shape: Shape, text: str, node: Node, path: Path) -> bool:
        """Whether a string follows its syntax; the default of a key always does."""
        if has_control(text):
            self.refuse(path, node.origin, "control characters are not allowed")
            return False
        check = CHECKS.get(shape.note("syntax"))
        finding = check(text) if check is not None and text != shape.default else None
        if finding is not None:
            self.refuse(path, node.origin, f"{show_value(text)}: {finding[0]}", finding[1])
        return finding is None

    def any(self, node: Node, path: Path) -> Any:
        self.origins[show_path(self.root, path)] = node.origin
        return self.portable(node, path)

    def portable(self, node: Node, path: Path) -> Any:
        """A value that JSON can carry: dates become RFC 3339 text."""
        value = node.value
        if isinstance(value, dict):
            return {name: self.portable(child, (*path, name)) for name, child in value.items()}
        if isinstance(value, list):
            return [self.portable(child, (*path, i)) for i, child in enumerate(value)]
        if isinstance(value, (datetime.date, datetime.time)):
            return value.isoformat()
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(path, node.origin, f"{value} cannot be handed over as JSON")
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            self.refuse(path, node.origin, "an integer must fit into 64 bits")
        else:
            return value
        return None

    # --- what is wrong ----------------------------------------------------------------------------

    def mismatch(self, shape: Shape, node: Node, path: Path) -> None:
        got = show_value(node.value)
        self.refuse(path, node.origin, f"expected {describe(shape)}, got {got}", _suggest(shape, node.value))

    def unknown(self, fields: dict[str, Shape], node: Node, path: Path) -> None:
        generic = pattern(path)
        feature = later.KEYS.get(generic)
        if feature is not None:
            self.refuse(path, node.origin, f"is not supported yet ({feature})", "leave it out")
            return
        if generic in former.KEYS:
            self.refuse(path, node.origin, "unknown key", former.KEYS[generic])
            return
        name = str(path[-1])
        near = closest(name, fields)
        hint = f"did you mean `{near}`?" if near else ""
        if not near:
            homes = [home for home in _all_keys() if home.rpartition(".")[2] == name]
            if homes:
                hint = f"did you mean `{homes[0]}`?"
        self.refuse(path, node.origin, "unknown key", hint)


def _fail() -> Any:
    raise msgspec.ValidationError


def _placeholder(shape: Shape) -> Any:
    """Something of the right kind in the place of a value that is wrong."""
    if shape.default is not msgspec.NODEFAULT:
        return shape.default
    if shape.kind == "table":
        return shape.table(**{name: _placeholder(field) for name, field in fields_of(shape.table).items()})
    return {"list": (), "map": {}}.get(shape.kind, "")


def pattern(path: Path) -> str:
    """A path with its list entries written `[]`: how shared/config/later.py names keys."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def closest(word: str, words: Iterable[str]) -> str:
    """The word that was probably meant, "" if none is near."""
    folded = {candidate.lower().replace("-", "_"): candidate for candidate in words}
    near = difflib.get_close_matches(word[:100].lower().replace("-", "_"), folded, 1, 0.6)
    return folded[near[0]] if near else ""


def _suggest(shape: Shape, value: Any) -> str:
    """What to write instead: the nearest choice, a number without quotes, a list around a single value."""
    if shape.choices:
        near = closest(value, shape.choices) if isinstance(value, str) else ""
        return f'did you mean "{near}"?' if near else ""
    if shape.kind == "list" and shape.item is not None and not isinstance(value, list):
        wanted = dict if shape.item.kind == "table" else str
        shown = show_value(value) if wanted is str else "{ ... }"
        return f"did you mean [{shown}]?" if isinstance(value, wanted) else ""
    if isinstance(value, str) and shape.base in (int, float, bool):
        try:
            converted = msgspec.convert(value, shape.hint, strict=False)
        except msgspec.ValidationError:
            return ""
        return f"did you mean {show_value(converted)}, without quotes?"
    return ""


def _instead(shape: Shape) -> str:
    return f"use {describe(shape)}" if shape.choices else ""


_keys: list[str] = []


def _all_keys() -> list[str]:
    """Every key of the schema as a generic path, tables first met first."""
    if not _keys:
        _keys.extend(walk_keys(shape_of(Config, None), ""))
    return _keys


def walk_keys(shape: Shape, prefix: str) -> Iterable[str]:
    """Generic paths (`agents[].timeout_ms`) of all keys below a table."""
    for name, field in fields_of(shape.table).items():
        here = f"{prefix}.{name}" if prefix else name
        yield here
        if field.kind == "table":
            yield from walk_keys(field, here)
        elif field.kind == "list" and field.item is not None and field.item.kind == "table":
            yield from walk_keys(field.item, f"{here}[]")


def plain(value: Any) -> Any:
    """A configuration, or a part of it, as dicts and lists; keys that are absent are left out."""
    if isinstance(value, msgspec.Struct):
        pairs = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
