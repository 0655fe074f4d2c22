"""Writes log lines: one JSON object or one text line each, to one descriptor.

Two ways in, one format out. Everything ordinary uses the standard library's `logging` (root has our
handler, `configure`). Hot paths use `line(component, level, message, **fields)`: one comparison when
the level is off (0.1 us), no LogRecord when it is on. A flood goes through `RateLimited`.

A line never blocks and never breaks: the descriptor is asked first whether it takes PIPE_BUF bytes,
and no line is longer than that, so that lines of processes sharing a pipe stay whole. Where the reader
stands still the line is dropped and counted; the next line that fits is preceded by the count. A worker
that stalled on its log pipe would stall its clients.

    {"ts":"2026-11-20T10:00:00.123Z","level":"warning","component":"agentd.lane","message":"...",...}
    2026-11-20T10:00:00.123Z warning agentd.lane ... correlation_id=ab12-7 peer="a b"

Nothing here decides what is logged.

Kind: IO (plumbing without policy).
"""

import logging
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import orjson

from shared.clock import S, now_ns
from shared.defaults import LOG_LINE_MAX_BYTES, LOG_LINES_PER_S
from shared.wire.messages import timestamp

DEBUG: Final = logging.DEBUG
INFO: Final = logging.INFO
WARNING: Final = logging.WARNING
ERROR: Final = logging.ERROR
LEVELS: Final = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
_NAMES: Final = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error", logging.CRITICAL: "error"}
# Libraries that tell at info what their own command line would want to know.
_QUIET: Final = ("asyncio", "uvicorn", "uvicorn.error", "uvicorn.access")
# What a LogRecord has anyway; the rest was given as `extra`.
_RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_JSON_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


class _Sink:
    """The one descriptor, the level and the format of this process."""

    __slots__ = ("dropped", "fd", "fields", "is_json", "level", "told")

    def __init__(self) -> None:
        self.level = INFO
        self.is_json = True
        self.fields: dict[str, Any] = {}
        self.dropped = 0
        self.open(2)

    def open(self, fd: int) -> None:
        self.fd = fd
        self.told = self.dropped  # the new reader has not stood still

    def takes(self) -> bool:
        """Whether a write of PIPE_BUF bytes would not block (poll(2) of a pipe says exactly that)."""
        poll = select.poll()  # a poll object of several threads raises; making one costs 0.2 us
        poll.register(self.fd, select.POLLOUT)
        ready = poll.poll(0)
        return bool(ready) and bool(ready[0][1] & select.POLLOUT)

    def write(self, data: bytes) -> None:
        try:
            if not self.takes():
                self.dropped += 1
                return
            if self.dropped != self.told:
                count = self.dropped - self.told
                os.write(self.fd, encode(WARNING, "log", "lines dropped: the log's reader stood still", count=count))
                self.told = self.dropped
                if not self.takes():
                    self.dropped += 1
                    return
            os.write(self.fd, data)
        except OSError:
            self.dropped += 1  # nobody reads any more; there is nowhere left to say so


_sink = _Sink()


def configure(
    level: str, style: Literal["json", "text"], *, fd: int = 2, fields: Mapping[str, Any] | None = None
) -> None:
    """Make this process log to `fd`. `fields` go on every line (a worker's slot). Call again after fork."""
    _sink.open(fd)
    _sink.level = LEVELS[level]
    _sink.is_json = style == "json"
    _sink.fields = dict(fields or {})
    root = logging.getLogger()
    root.handlers[:] = [LineHandler()]
    root.setLevel(_sink.level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_sink.level, WARNING))


def is_on(level: int) -> bool:
    """Whether `line` at this level would write; for callers whose fields are dear to make."""
    return level >= _sink.level


def dropped() -> int:
    """Lines that could not be written since the start."""
    return _sink.dropped


def line(component: str, level: int, message: str, /, **fields: Any) -> None:
    """One log line now. `level` is DEBUG, INFO, WARNING or ERROR of this module."""
    if level < _sink.level:
        return
    _sink.write(encode(level, component, message, **fields))


def encode(level: int, component: str, message: str, /, **fields: Any) -> bytes:
    """The bytes of one line, newline included, at most LOG_LINE_MAX_BYTES."""
    row: dict[str, Any] = {
        "ts": timestamp(time.time()).decode(),
        "level": _NAMES.get(level) or "info",
        "component": component,
        "message": message,
    }
    row.update(_sink.fields)
    for name, value in fields.items():
        row[name if name not in row else name + "_"] = value
    form = _json if _sink.is_json else _text
    data = form(row)
    if len(data) > LOG_LINE_MAX_BYTES:
        data = form(_shortened(row))
    return data


def _json(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row, default=_readable, option=_JSON_OPTIONS)
    except TypeError:  # a lone surrogate, an integer over 64 bits, too deep: as text then
        return orjson.dumps({_clean(str(k)): _plain(v) for k, v in row.items()}, option=_JSON_OPTIONS)


def _text(row: dict[str, Any]) -> bytes:
    rest = iter(row.items())
    head = [str(next(rest)[1]) for _ in range(3)]
    head.append(_escaped(str(next(rest)[1])))
    head.extend(f"{name}={_quoted(value)}" for name, value in rest)
    return (" ".join(head) + "\n").encode("utf-8", "replace")


def _quoted(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return _json({"": value})[4:-2].decode()
    text = _readable(value)
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    return '"' + _escaped(text).replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    """Without characters that a terminal acts on or that begin a new line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _plain(value: Any) -> Any:
    """What any JSON encoder takes."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**53) < value < 2**53):
        return value
    return _clean(_readable(value))


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _readable(value: Any) -> str:
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    return str(value)


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its long values cut so that the line fits whatever its characters cost when escaped.

    A traceback keeps its end (the error), everything else its beginning.
    """
    room = LOG_LINE_MAX_BYTES // 8 // max(1, len(row) - 3)  # \u00xx: up to 6 bytes a character, and names
    short: dict[str, Any] = {}
    for name, value in list(row.items())[:16]:
        text = value if isinstance(value, str) else _readable(value)
        if len(text) > room:
            text = "..." + text[-room:] if name == "exception" else text[:room] + "..."
            value = text
        short[name[:64]] = value
    short["truncated"] = True
    return short


class LineHandler(logging.Handler):
    """The standard library's way in; a record's `extra` become fields, its logger's name the component."""

    def emit(self, record: logging.LogRecord) -> None:
        """Format and write; an error in a message's arguments is told on the line, never raised."""
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{record.msg!r} with unusable arguments ({error})"
        fields = {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}
        if record.exc_info:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        _sink.write(encode(max(level, DEBUG), record.name, message, **fields))


class RateLimited:
    """At most `lines_per_s` lines in each second, then one line with the count of the rest.

    `suppressed` is the total since the start, for a metric. The count is told by the first line of a
    later second or by `tick(now)`, which its owner calls about once a second.
    """

    __slots__ = ("_allowed", "_clock", "_component", "_held", "_second", "lines_per_s", "suppressed")

    def __init__(self, component: str, lines_per_s: int = LOG_LINES_PER_S, clock: Callable[[], int] = now_ns) -> None:
        self._component = component
        self._clock = clock
        self._second = -1
        self._allowed = lines_per_s
        self._held = 0
        self.lines_per_s = lines_per_s
        self.suppressed = 0

    def line(self, level: int, message: str, /, **fields: Any) -> None:
        """Like the module's `line`, or one more in the count."""
        if level < _sink.level:
            return
        if self.has_room():
            _sink.write(encode(level, self._component, message, **fields))

    def has_room(self) -> bool:
        """Take one line's place; False = counted. For callers that write the line themselves."""
        second = self._clock() // S
        if second != self._second:
            self._turn(second)
        if self._allowed:
            self._allowed -= 1
            return True
        self._held += 1
        self.suppressed += 1
        return False

    def tick(self, now: int) -> None:
        """Tell the count of a second that is over, if there was one."""
        if self._held and now // S != self._second:
            self._turn(now // S)

    def _turn(self, second: int) -> None:
        self._second = second
        self._allowed = self.lines_per_s
        if self._held:
            held, self._held = self._held, 0
            line(self._component, WARNING, "log lines suppressed", count=held, lines_per_s=self.lines_per_s)
