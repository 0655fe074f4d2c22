"""Finds the line of every key of a TOML document, because tomllib does not tell.

A scanner, not a parser: it may rely on tomllib having accepted the document, so it only has to know
where keys and values begin and end. tests/shared/test_config_lines.py holds it against tomllib.

    [[agents]]            ("agents",)  ("agents", 0)
    name = "waf"          ("agents", 0, "name")
    circuit_breaker.x=1   ("agents", 0, "circuit_breaker")  ("agents", 0, "circuit_breaker", "x")
    events = [            ("agents", 0, "events")
      "a",                ("agents", 0, "events", 0)

Kind: pure.
"""

import re
import tomllib

from shared import defaults as d
from shared.config.tree import Path

_SPACE = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")  # between statements and inside arrays
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{1,2})?'
    r"|'''.*?'''(?:'{1,2})?"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")  # numbers, booleans, dates (which may hold a space)
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def index(text: str) -> dict[Path, int]:
    """Line (from 1) of every table, key and array entry of a document that tomllib accepts.

    Of another document: what was found before it went wrong; never an exception.
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    try:
        scanner.document()
    except (_Unreadable, RecursionError):
        pass
    return scanner.lines


class _Unreadable(Exception):
    """Not what tomllib would have accepted."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # tables seen so far of each array of tables
        self._line = 1
        self._line_at = 0

    def line(self) -> int:
        """The line of the current place; places only move forward."""
        self._line += self.text.count("\n", self._line_at, self.at)
        self._line_at = self.at
        return self._line

    def document(self) -> None:
        table: Path = ()
        while True:
            self.skip(_GAP)
            if self.at >= len(self.text):
                return
            if self.take("[["):
                table = self.header(is_array=True)
            elif self.take("["):
                table = self.header(is_array=False)
            else:
                self.pair(table)

    def header(self, *, is_array: bool) -> Path:
        """The path of `[a.b]` or of the new entry that `[[a.b]]` begins."""
        line = self.line()
        keys = self.dotted()
        self.expect("]]" if is_array else "]")
        path: Path = ()
        for number, part in enumerate(keys):
            path = (*path, part)
            self.lines.setdefault(path, line)
            is_last = number == len(keys) - 1
            if is_array and is_last:
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
                self.lines.setdefault(path, line)
        # A table that a dotted header had made on the way gets its own header's line.
        if keys and not is_array:
            self.lines[path] = line
        return path

    def pair(self, table: Path) -> None:
        line = self.line()
        path = table
        for part in self.dotted():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.expect("=")
        self.skip(_SPACE)
        self.value(path)

    def value(self, path: Path) -> None:
        if self.take("["):
            for number in range(len(self.text)):
                self.skip(_GAP)
                if self.take("]"):
                    return
                self.lines[*path, number] = self.line()
                self.value((*path, number))
                self.skip(_GAP)
                self.take(",")
        elif self.take("{"):
            self.skip(_GAP)
            while not self.take("}"):
                self.pair(path)
                self.skip(_GAP)
                self.take(",")
                self.skip(_GAP)
        elif self.text.startswith(('"', "'"), self.at):
            self.match(_STRING)
        else:
            self.match(_SCALAR)

    def dotted(self) -> list[str]:
        """The parts of a key; what is nested too deeply to be accepted anyway is cut off."""
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            part = self.key()
            if len(parts) <= d.CONFIG_DEPTH:
                parts.append(part)
            self.skip(_SPACE)
            if not self.take("."):
                return parts

    def key(self) -> str:
        if not self.text.startswith(('"', "'"), self.at):
            return self.match(_BARE)
        token = self.match(_STRING)
        if "\\" not in token:
            return token[1:-1]
        try:
            return str(tomllib.loads(f"key = {token}")["key"])
        except ValueError:
            raise _Unreadable from None

    def match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None or found.end() == self.at:
            raise _Unreadable
        self.at = found.end()
        return found.group()

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()

    def take(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise _Unreadable
