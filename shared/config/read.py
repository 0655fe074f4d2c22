"""Reads files, environment and command line into one tree whose nodes know their origin.

    <file>                  --config, else $WARDGATE_CONFIG, else /etc/wardgate/wardgate.toml
    conf.d/*.toml beside it in name order: tables merge, arrays of tables append, else the later file wins
    WARDGATE__SERVER__WORKERS=4                 over the files
    WARDGATE__AGENTS__WAF__TIMEOUT_MS=50        an entry of a list by its name
    overrides {"server.listen": [...]}          the command line's, over everything

What the values mean is not known here, except that the schema tells where a list has names and what is
a string.

Kind: IO.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from shared import defaults as d
from shared.config.lines import index
from shared.config.schema import Config
from shared.config.shape import Shape, fields_of, shape_of
from shared.config.tree import (
    COMMAND_LINE,
    Node,
    Origin,
    Path,
    Problem,
    graft,
    name_of,
    plant,
    show_key,
)
from shared.errors import ConfigError

PREFIX = "WARDGATE__"
VARIABLE = "WARDGATE_CONFIG"

_AT_LINE = re.compile(r"\(at line (\d+), column (\d+)\)\Z")
_STEP = re.compile(r"([a-z_]+)(?:\[([^\]]+)\])?(?:\.|\Z)")


def config_path(path: str | None, environ: Mapping[str, str]) -> str:
    """The file to read: as given, else from the environment, else the installed one."""
    return path or environ.get(VARIABLE) or d.CONFIG_PATH


def read_files(path: str) -> tuple[Node, list[str], list[Problem]]:
    """The merged tree of a file and its conf.d, the files read, and what was wrong. ConfigError: unreadable."""
    problems: list[Problem] = []
    try:
        root = _read_one(path, problems)
    except OSError as error:
        hint = f"give --config FILE or set {VARIABLE}" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(str(Problem(Origin(path), "", f"cannot be read: {_why(error)}", hint))) from None
    files = [path]
    for extra in _beside(path):
        try:
            graft(root, _read_one(extra, problems), append=True)
            files.append(extra)
        except OSError as error:
            problems.append(Problem(Origin(extra), "", f"cannot be read: {_why(error)}"))
    return root, files, problems


def _beside(path: str) -> list[str]:
    try:
        return sorted(str(extra) for extra in (FilePath(path).parent / "conf.d").glob("*.toml"))
    except (OSError, ValueError):
        return []


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _read_one(path: str, problems: list[Problem]) -> Node:
    """One file's tree; an empty one, and a problem, if it is not TOML."""
    empty = Node({}, Origin(path))
    try:
        with open(path, "rb") as file:
            data = file.read(d.CONFIG_MAX_BYTES + 1)
    except ValueError:  # a NUL byte in the path
        raise FileNotFoundError(2, "no such file") from None
    if len(data) > d.CONFIG_MAX_BYTES:
        problems.append(Problem(Origin(path), "", f"longer than {d.CONFIG_MAX_BYTES} bytes"))
        return empty
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(Problem(Origin(path, line), "", "not UTF-8"))
        return empty
    return parse(text, path, problems)


def parse(text: str, source: str, problems: list[Problem]) -> Node:
    """The tree of a TOML text; an empty one, and a problem, if it is none."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        problems.append(Problem(Origin(source), "", "nested too deeply"))
        return Node({}, Origin(source))
    except ValueError as error:  # TOMLDecodeError, and a number of thousands of digits
        problems.append(_syntax_problem(str(error), text, source))
        return Node({}, Origin(source))
    lines = index(text)

    def origin_of(path: Path) -> Origin:
        while path and path not in lines:
            path = path[:-1]
        return Origin(source, lines.get(path, 0) or 1)

    return plant(document, origin_of, problems)


def _syntax_problem(message: str, text: str, source: str) -> Problem:
    found = _AT_LINE.search(message)
    line = int(found[1]) if found else text.count("\n") + 1
    column = f" (column {found[2]})" if found else ""
    return Problem(Origin(source, line), "", f"not valid TOML: {_AT_LINE.sub('', message).strip()}{column}")


# --- environment ----------------------------------------------------------------------------------


def apply_environment(root: Node, environ: Mapping[str, str]) -> list[Problem]:
    """Graft every WARDGATE__... variable onto the tree; names that fit nothing are left for the schema to refuse."""
    problems: list[Problem] = []
    for variable in sorted(environ):
        if variable.startswith(PREFIX):
            origin = Origin(f"environment {variable}")
            try:
                environ[variable].encode()
                variable.encode()
            except UnicodeEncodeError:
                problems.append(Problem(Origin("environment"), "", f"{variable!a} is not UTF-8"))
                continue
            _set_variable(root, variable.removeprefix(PREFIX), environ[variable], origin, problems)
    return problems


def _set_variable(root: Node, rest: str, text: str, origin: Origin, problems: list[Problem]) -> None:
    node = root
    shape: Shape | None = shape_of(Config)
    shown = ""
    while True:
        head, more, rest = rest.partition("__")
        name = head.lower()
        shown += ("." if shown else "") + show_key(name)
        shape = fields_of(shape.table).get(name) if shape is not None and shape.kind == "table" else None
        if not more:
            value = plant(_value_of(text, shape), lambda _: origin, problems)
            _put(node, name, value)
            return
        is_list = shape is not None and shape.kind == "list" and shape.has_names
        child = node.value.get(name)
        if child is None or not isinstance(child.value, list if is_list else dict):
            # Nothing there yet, or of another kind: what does not fit the schema is refused by the schema.
            child = Node([] if is_list else {}, origin)
            node.value[name] = child
        if is_list:
            assert shape is not None
            entry, rest = _entry(child, rest)
            if entry is None:
                names = ", ".join(filter(None, map(name_of, child.value))) or "there are none"
                text = f"no entry of [[{name}]] has the name that this variable asks for"
                problems.append(Problem(origin, shown, text, f"named entries: {names}"))
                return
            shown += f"[{name_of(entry)}]"
            shape = shape.item
            child = entry
        node = child


def _entry(nodes: Node, rest: str) -> tuple[Node | None, str]:
    """The entry whose name the variable goes on with (the longest such name), and what follows it."""
    best: Node | None = None
    length = 0
    for node in nodes.value:
        start = re.sub(r"[^A-Z0-9]", "_", name_of(node).upper()) + "__"
        if len(start) > max(length, 2) and rest.upper().startswith(start):
            best, length = node, len(start)
    return best, rest[length:]


def _put(table: Node, name: str, value: Node) -> None:
    if name in table.value:
        graft(table.value[name], value, append=False)
    else:
        table.value[name] = value


def _value_of(text: str, shape: Shape | None) -> Any:
    """A TOML value where the text is one and a string is not what is wanted, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = parsed["value"]
    if len(parsed) > 1 or (shape is not None and shape.is_text and not isinstance(value, str)):
        return text
    return value


# --- command line ---------------------------------------------------------------------------------


def apply_overrides(root: Node, overrides: Mapping[str, Any]) -> list[Problem]:
    """Graft the command line's values, keyed by dotted path (`server.listen`, `agents[waf].timeout_ms`)."""
    problems: list[Problem] = []
    for dotted, value in overrides.items():
        node: Node | None = root
        steps = _STEP.findall(dotted)
        for number, (name, label) in enumerate(steps):
            assert node is not None
            if not isinstance(node.value, dict):
                node = None
                break
            if number == len(steps) - 1 and not label:
                _put(node, name, plant(value, lambda _: COMMAND_LINE, problems))
                break
            child = node.value.setdefault(name, Node([] if label else {}, COMMAND_LINE))
            node = next((item for item in child.value if name_of(item) == label), None) if label else child
            if node is None:
                break
        if node is None or not steps:
            problems.append(Problem(COMMAND_LINE, dotted, "fits nothing in the configuration"))
    return problems


def runtime_dir(environ: Mapping[str, str]) -> tuple[str, Origin]:
    """The directory where the daemons meet if the configuration names none."""
    given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return given, Origin("environment RUNTIME_DIRECTORY")
    session = environ.get("XDG_RUNTIME_DIR", "")
    if session:
        return os.path.join(session, "wardgate"), Origin("environment XDG_RUNTIME_DIR")
    return d.RUNTIME_DIR, Origin("default")
