"""Decides what a reload cannot change, and puts a refusal into one line.

Which keys those are is said by the schema alone (`restart` in a key's `Meta`), and by the table's name
which daemon reads them: both daemons refuse by the same rows that the reference is made from. A reload is
all or nothing: a key that is accepted acts.

Kind: pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from shared.config.keys import Table
from shared.config.schema import Config
from shared.config.shape import fields_of

Daemon = Literal["agentd", "proxy"]

# Who reads a table of the configuration's top level, where that is one daemon alone.
_READER: Final[Mapping[str, Daemon]] = {"server": "proxy", "admin": "agentd", "audit": "agentd"}
_NAMES: Final[Mapping[Daemon, str]] = {"agentd": "agentd", "proxy": "the proxy"}


def needs_restart(old: Config, new: Config, daemons: Sequence[Daemon]) -> list[str]:
    """What has changed and needs a restart of one of these daemons, as problems; [] = a reload will do."""
    found = []
    for key in _changed(Config, old, new, ""):
        reader = _READER.get(key.partition(".")[0])
        if reader is None:
            found.append(f"{key}: changed, and that needs a restart of agentd and the proxy")
        elif reader in daemons:
            found.append(f"{key}: changed, and that needs a restart of {_NAMES[reader]}")
    return found


def _changed(table: type[Table], old: Any, new: Any, path: str) -> Iterator[str]:
    """Dotted paths of the keys marked `restart` whose values differ; lists of tables have none such inside."""
    for name, shape in fields_of(table).items():
        before, after = getattr(old, name), getattr(new, name)
        if shape.kind == "table" and before is not None and after is not None:
            yield from _changed(shape.table, before, after, f"{path}{name}.")
        elif shape.note("change") == "restart" and before != after:
            yield f"{path}{name}"


def in_short(problems: Sequence[str]) -> str:
    """The first problem, and how many there are beside it."""
    rest = f" (and {len(problems) - 1} more, see the log)" if len(problems) > 1 else ""
    return (problems[0] if problems else "") + rest
