"""What a check of the configuration has to say, and how it says it.

No check stands here.

Kind: pure.
"""

from collections.abc import Iterator, Sequence

import msgspec

from shared.config.tree import Path


class Finding(msgspec.Struct, frozen=True):
    """`paths`: the key it stands at, then others that it rests on, with all that is in them.

    see: one whose place is worth telling.
    """

    paths: tuple[Path, ...]
    text: str
    hint: str = ""
    is_error: bool = True
    see: Path = ()


Findings = Iterator[Finding]


def error(path: Path, text: str, hint: str = "", *others: Path) -> Finding:
    """The configuration is refused."""
    return Finding((path, *others), text, hint)


def warning(path: Path, text: str, hint: str = "") -> Finding:
    """Told only where nothing is refused, so it can rest on every key."""
    return Finding((path,), text, hint, is_error=False)


def repeated(path: Path, items: Sequence[str] | None) -> Findings:
    """An error for each entry of a list that stands in it already."""
    for i, item in enumerate(items or ()):
        if items is not None and item in items[:i]:
            yield error((*path, i), f'"{item}" is there twice')
