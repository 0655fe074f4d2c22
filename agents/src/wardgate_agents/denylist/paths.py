"""Rules about paths, and the one spelling of a path that they are compared with.

    exact  /server-status        this path
    prefix /.git                 this path and everything below it: /.git, /.git/config, not /.gitignore
    glob   /**/*.bak             * within a segment, ** as a segment: any number of them, ? one character

Decoded once, as the proxy routes, and then as a lenient server would read it: `;parameters` cut, backslashes taken
for slashes, slashes merged, dots resolved, no slash at the end. `/%2e/admin/`, `//admin`, `/x/../admin` and
`/admin;a=b` are all `/admin`.

Kind: pure.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import re2

from wardgate_agents.denylist.patterns import MAX_TEXT_CHARS, TOO_LONG, compiled

MAX_ALIKE: Final = 50  # globs that are tried for one path, 1 us each and up to 10 for a long one
_UNEVEN: Final = re.compile(r"[;\\]|//|/\.")
_PARAMETERS: Final = re.compile(r";[^/]*")
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")


def normalised(path: str) -> str:
    """The spelling that rules are compared with, of a path that is decoded. `*` (of OPTIONS) stays."""
    if _UNEVEN.search(path):
        path = _PARAMETERS.sub("", path.replace("\\", "/"))
        return posixpath.normpath("/" + path.lstrip("/"))
    return path[:-1] if len(path) > 1 and path[-1] == "/" else path


def _checked(value: str) -> str:
    """A rule's path, or ValueError if no path would ever be spelt that way."""
    if not value.startswith("/"):
        raise ValueError(f"{value!r} does not begin with /")
    if _ENCODED.search(value):
        raise ValueError(
            f"{value!r} has percent signs: paths are decoded before they are compared, write what it means"
        )
    if normalised(value) != value:
        raise ValueError(f"{value!r} fits nothing, as paths are normalised first: write {normalised(value)!r}")
    return value


def _plain(value: str) -> str:
    """The path of `exact` and `prefix`."""
    if "?" in value:
        raise ValueError(f"{value!r}: only the path is compared, leave the query out")
    return _checked(value)


def _glob(value: str) -> str:
    """A glob as a regular expression."""
    out = []
    segments = value[1:].split("/")
    for at, segment in enumerate(segments):
        is_last = at == len(segments) - 1
        if segment == "**":
            out.append("/.+" if is_last else "(?:/[^/]*)*")
            continue
        if "**" in segment:
            raise ValueError(f"{value!r}: ** stands for whole segments, as in /a/** and /**/b")
        parts = re.split(r"([*?])", segment)
        words = {"*": "[^/]*", "?": "[^/]"}
        out.append("/" + "".join(words[part] if part in words else re2.escape(part) for part in parts))
    return r"\A(?s:" + "".join(out) + r")\z"


class Globs:
    """Globs, looked up by the literal text that they end or begin with: a path has one end and one beginning.

    So a path is compared with the few globs that it may fit, each in time linear in the path.
    """

    __slots__ = ("_beginnings", "_ends", "_others")

    def __init__(self, globs: Iterable[tuple[str, str]]) -> None:
        """(glob, where) pairs; ValueError for one too many of a kind."""
        ends: dict[str, list[tuple[Any, str]]] = {}
        beginnings: dict[str, list[tuple[Any, str]]] = {}
        self._others: list[tuple[Any, str]] = []
        for glob, where in globs:
            pattern = compiled(_glob(glob), where)
            parts = re.split(r"[*?]+", glob)
            rows = self._others
            if parts[-1].lstrip("/"):
                rows = ends.setdefault(parts[-1].lstrip("/"), [])
            elif parts[0].rstrip("/"):
                rows = beginnings.setdefault(parts[0].rstrip("/"), [])
            rows.append((pattern, where))
            if len(rows) > MAX_ALIKE:
                raise ValueError(f"{where}: more than {MAX_ALIKE} globs that end, or else begin, like {glob!r}")
        self._ends = ends, sorted(set(map(len, ends)))
        self._beginnings = beginnings, sorted(set(map(len, beginnings)))

    def find(self, path: str) -> str | None:
        """Where a glob that fits this path was written down; None without one."""
        if len(path) > MAX_TEXT_CHARS and (self._ends[1] or self._beginnings[1] or self._others):
            return TOO_LONG
        content = b""
        for rows in self._candidates(path):
            content = content or path.encode()
            for pattern, where in rows:
                if pattern.search(content) is not None:
                    return where
        return None

    def _candidates(self, path: str) -> Iterator[list[tuple[Any, str]]]:
        ends, lengths = self._ends
        for length in lengths:
            if (rows := ends.get(path[-length:])) is not None:
                yield rows
        beginnings, lengths = self._beginnings
        for length in lengths:
            if (rows := beginnings.get(path[:length])) is not None:
                yield rows
        yield self._others


class Paths:
    """Rules about paths with where each was written down. `ignores_case`: letters compare as lower case."""

    __slots__ = ("_exact", "_globs", "_ignores_case", "_lengths", "_prefixes", "count")

    def __init__(self, rules: Iterable[tuple[str, str]], ignores_case: bool = False) -> None:
        """(rule, where) pairs; ValueError with `where` in front for one that cannot be read."""
        self._exact: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        self._ignores_case = ignores_case
        globs: list[tuple[str, str]] = []
        self.count = 0
        for text, where in rules:
            kind, _, value = text.partition(" ")
            value = value.strip()
            try:
                if kind == "exact":
                    self._exact.setdefault(self._cased(_plain(value)), where)
                elif kind == "prefix":
                    self._prefixes.setdefault(self._cased(_plain(value)), where)
                elif kind == "glob":
                    globs.append((self._cased(_checked(value)), where))
                    _glob(value)
                else:
                    raise ValueError(f"{text!r} is not `exact /path`, `prefix /path` or `glob /pattern`")
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            self.count += 1
        self._lengths = sorted({len(prefix) for prefix in self._prefixes} - {1}, reverse=True)
        self._globs = Globs(globs)

    def _cased(self, path: str) -> str:
        return path.lower() if self._ignores_case else path

    def __bool__(self) -> bool:
        return self.count > 0

    def find(self, path: str) -> str | None:
        """Where the first rule that fits this normalised path was written down; None without one."""
        path = self._cased(path)
        where = self._exact.get(path)
        if where is None and self._prefixes:
            # By the lengths that there are, not by the segments of the path: those are the client's choice.
            size = len(path)
            for length in self._lengths:
                if length == size or (length < size and path[length] == "/"):
                    where = self._prefixes.get(path[:length])
                    if where is not None:
                        return where
            where = self._prefixes.get("/")
        return where if where is not None else self._globs.find(path)
