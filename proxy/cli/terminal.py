"""Shows many processes' lines in one terminal: labelled, coloured, short.

    proxy    | 10:00:00.123 info  proxy.arbiter serving listen=127.0.0.1:8080

Colour only where somebody looks: on a terminal or with FORCE_COLOR, never with NO_COLOR. Lines of our own
text format, and of Python's usual one, lose their date and have their level in a column; everything else
is shown as it came, but for characters that would act on the terminal.

Kind: IO (one write); the forms are pure.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, TextIO

# Our own text format, and what Python programs make of logging.basicConfig.
_LINE = re.compile(
    r"\d{4}-\d\d-\d\d[T ](\d\d:\d\d:\d\d)[.,](\d{3})Z? +(debug|info|warning|error|critical) +", re.IGNORECASE
)
_COLOURS: Final = (36, 35, 34, 32, 33, 96, 95, 94)  # of labels, in the order of the children
_LEVELS: Final = {
    "debug": ("debug", "2"),
    "info": ("info", "0"),
    "warning": ("warn", "33;1"),
    "error": ("error", "31;1"),
    "critical": ("error", "31;1"),
}
OWN = "run"


def has_colour(is_terminal: bool, environ: Mapping[str, str]) -> bool:
    """https://no-color.org and FORCE_COLOR; an empty variable is as good as none."""
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or is_terminal


class Terminal:
    """Writes to one stream. `is_gone`: nobody reads any more."""

    def __init__(self, stream: TextIO, labels: Iterable[str], colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        names = [*labels, OWN]
        self._width = max(map(len, names))
        self._codes = {name: str(_COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)}
        self._codes[OWN] = "1"
        self.is_gone = False

    def lines(self, label: str, lines: Iterable[str]) -> None:
        """Lines that a child wrote."""
        self._write("".join(self.form(label, line) + "\n" for line in lines if line))

    def say(self, text: str, *, is_bad: bool = False) -> None:
        """A line of `run` itself."""
        code = _LEVELS["error"][1] if is_bad else "1"
        label = self._paint(OWN.ljust(self._width), self._codes[OWN])
        self._write(f"{label} {self._bar()} {self._paint(text, code)}\n")

    def block(self, text: str) -> None:
        """As it is: the banner."""
        self._write(text)

    def form(self, label: str, line: str) -> str:
        """One line as it is shown."""
        name = self._paint(label.ljust(self._width), self._codes.get(label, "0"))
        match = _LINE.match(line)
        if match is None:
            return f"{name} {self._bar()} {clean(line)}"
        short, code = _LEVELS[match[3].lower()]
        time = self._paint(f"{match[1]}.{match[2]}", "2")
        return f"{name} {self._bar()} {time} {self._paint(short.ljust(5), code)} {clean(line[match.end() :])}"

    def bold(self, text: str) -> str:
        """For the banner."""
        return self._paint(text, "1")

    def _bar(self) -> str:
        return self._paint("|", "2")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code != "0" else text

    def _write(self, text: str) -> None:
        if self.is_gone or not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self.is_gone = True


def clean(line: str) -> str:
    """Without characters that a terminal acts on; what a child logs may come from a client."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)
