"""An agent's `config` table as a typed struct, or one line about which key is wrong and how to mend it.

A struct derived from `Settings` is the whole truth about an agent's keys: names, types, ranges, defaults. What is
checked across keys belongs to the agent.

Kind: pure.
"""

import difflib
import re
from typing import TypeVar

import msgspec
from msgspec import inspect

from wardgate_agent import AgentError

_PLACE = re.compile(r"^(.*?)(?: - at `(key in )?\$(.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_NO_CHOICE = re.compile(r"Invalid enum value (.*)", re.DOTALL)


class ConfigRejected(AgentError):
    """This configuration will not do. The text names the key (or file and line) and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_config", message)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration. Every key has a type, and a default unless it has to be given."""


S = TypeVar("S", bound=Settings)


def settings_of(kind: type[S], config: object) -> S:
    """The `config` table as `kind`; none at all counts as an empty one. Raises ConfigRejected."""
    try:
        return msgspec.convert({} if config is None else config, kind)
    except msgspec.ValidationError as error:
        raise ConfigRejected(_explain(kind, str(error))) from None


def _explain(kind: type[Settings], said: str) -> str:
    """msgspec's message with the key in front, in the words of the configuration file."""
    match = _PLACE.match(said)
    assert match is not None  # it matches everything
    text, path = match[1], (match[3] or "").lstrip(".")
    place = f"config.{path}" if path else "config"
    if unknown := _UNKNOWN.fullmatch(text):
        known = _keys_at(kind, path)
        near = difflib.get_close_matches(unknown[1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
        return f"{place}: there is no key {unknown[1]!r}; {hint}"
    if missing := _MISSING.fullmatch(text):
        return f"{place}: {missing[1]} is missing: add it"
    if choice := _NO_CHOICE.fullmatch(text):
        info = _type_at(kind, path)
        choices = ", ".join(map(repr, info.values)) if isinstance(info, inspect.LiteralType) else "another value"
        return f"{place}: {choice[1]} is not one of {choices}"
    return f"{place}: {text[:1].lower()}{text[1:]}"


def _keys_at(kind: type[Settings], path: str) -> list[str]:
    """The keys of the table at `path`: `jwt`, `routes[...].response`."""
    info = _type_at(kind, path)
    return [field.encode_name for field in info.fields] if isinstance(info, inspect.StructType) else []


def _type_at(kind: type[Settings], path: str) -> inspect.Type:
    info: inspect.Type = inspect.type_info(kind)
    for step in re.findall(r"[^.\[\]]+|\[\.\.\.\]|\[\d+\]", path):
        info = _struct_of(info)
        if isinstance(info, inspect.StructType):
            info = next((field.type for field in info.fields if field.encode_name == step), info)
        elif isinstance(info, inspect.DictType):
            info = info.value_type
        elif isinstance(info, inspect.CollectionType):
            info = info.item_type
    return _struct_of(info)


def _struct_of(info: inspect.Type) -> inspect.Type:
    """Of `Table | None` the table."""
    if isinstance(info, inspect.UnionType):
        return next((one for one in info.types if not isinstance(one, inspect.NoneType)), info)
    return info
