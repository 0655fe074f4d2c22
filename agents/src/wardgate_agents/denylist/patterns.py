"""Patterns over texts that clients choose, on RE2: no text may hold up the agent, whatever the patterns are.

With Python's `re` a pattern like `(a+)+$` takes minutes for thirty characters. RE2 is linear in the text (and has no
look-around and no back-references, which is said when they are used). Linear times the size of all patterns is still
much for a text made for it: 1,000 globs and a path of 8 kB took 300 ms (2026-11). So

  * many literals are one automaton, which stays small: 5,000 of them, 0.6 ms for 4 kB at worst, 1.3 us usually;
  * patterns with wildcards are few (`MAX_PROGRAM`), or looked up by a literal part (paths.py);
  * a text over `MAX_TEXT_CHARS` is not looked at and counts as a hit: nothing honest is that long.

RE2's own `Set` is not used: it says "no match" when it runs out of memory.

Kind: pure.
"""

from collections.abc import Iterable
from typing import Any, Final

import re2

MAX_TEXT_CHARS: Final = 4_096
MAX_LITERALS: Final = 5_000
MAX_PROGRAM: Final = 2_000  # instructions of all patterns together: a hundred usual ones, 8 ms at worst
_MAX_MEM_BYTES: Final = 64 * 1024 * 1024
TOO_LONG: Final = f"longer than {MAX_TEXT_CHARS} characters"


def compiled(pattern: str, where: str) -> Any:
    """For bytes. ValueError with `where` in front for what RE2 cannot read."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEM_BYTES
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"{where}: not a pattern for RE2 (github.com/google/re2/wiki/Syntax): {text}") from None


class Patterns:
    """Patterns that are searched for all at once, with where each was written down."""

    __slots__ = ("_all", "_each")

    def __init__(self, patterns: Iterable[tuple[str, str]]) -> None:
        """(pattern, where) pairs; ValueError with `where` in front for one that will not do."""
        self._each: list[tuple[Any, str]] = []
        texts: list[str] = []
        size = 0
        for pattern, where in patterns:
            made = compiled(pattern, where)  # alone: `a)|(b` is none, although it would be one between parentheses
            size += made.programsize
            if size > MAX_PROGRAM:
                raise ValueError(f"{where}: too many patterns, or too large ones; `contains` costs next to nothing")
            self._each.append((made, where))
            texts.append(f"(?:{pattern})")
        self._all = compiled("|".join(texts), self._each[0][1]) if texts else None

    def find(self, text: str) -> str | None:
        """Where the first pattern that is found in it was written down; None without one."""
        if self._all is None:
            return None
        if len(text) > MAX_TEXT_CHARS:
            return TOO_LONG
        content = text.encode()
        if self._all.search(content) is None:
            return None
        return next(where for pattern, where in self._each if pattern.search(content) is not None)


class Literals:
    """Texts that are searched for all at once, in upper or lower case, with where each was written down."""

    __slots__ = ("_all", "_wheres")

    def __init__(self, literals: Iterable[tuple[str, str]]) -> None:
        """(text, where) pairs; ValueError with `where` in front for one too many."""
        rows = list(literals)
        if len(rows) > MAX_LITERALS:
            raise ValueError(f"{rows[MAX_LITERALS][1]}: more than {MAX_LITERALS} of them")
        words = "|".join(re2.escape(text) for text, _ in rows)
        self._all = compiled(f"(?i:{words})", rows[0][1]) if rows else None
        self._wheres = {text.casefold(): where for text, where in reversed(rows)}

    def find(self, text: str) -> str | None:
        """Where one that stands in it was written down; None without one."""
        if self._all is None:
            return None
        if len(text) > MAX_TEXT_CHARS:
            return TOO_LONG
        match = self._all.search(text.encode())
        if match is None:
            return None
        word = match.group(0).decode().casefold()
        return self._wheres.get(word) or next(iter(self._wheres.values()))
