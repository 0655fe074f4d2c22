"""Cuts a stream into server-sent events, each with the very bytes that it came in.

The format is the HTML standard's 9.2: lines end in CR, LF or CRLF, events in an empty line; a byte order mark at the
start is no part of it; `data` lines of one event are joined by line feeds. One thing is stricter: what stands at the
end without its empty line is an event too, since some clients take it for one.

What an event says is not read here; only `rewritten` makes bytes that did not come in.

Kind: pure.
"""

import re
from typing import Final

from shared.errors import Uninspectable

_END: Final = re.compile(rb"\r\n|\n|\r")
_LINE: Final = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r|\Z)")
_BOM: Final = b"\xef\xbb\xbf"
_IGNORED: Final = (b"", b"id", b"retry")  # comments have no name


class Event:
    """`raw`: every byte, its empty line included. `data`: None without any data line. `is_strange`: it has lines
    that the format does not know, which are to be ignored; a client that expects no events may read them."""

    __slots__ = ("data", "is_strange", "name", "raw")

    def __init__(self, raw: bytes, name: bytes, data: bytes | None, is_strange: bool = False) -> None:
        self.raw = raw
        self.name = name
        self.data = data
        self.is_strange = is_strange

    def rewritten(self, data: bytes) -> bytes:
        """The event with other data, of one line: in place of the first data line, the others go."""
        out = []
        is_written = False
        for match in _LINE.finditer(self.raw):
            line = match[0]
            bare = line.rstrip(b"\r\n")
            before = _BOM if bare.startswith(_BOM) else b""
            if bare[len(before) :].partition(b":")[0] != b"data":
                out.append(line)
            elif not is_written:
                is_written = True
                out += (before, b"data: ", data, line[len(bare) :])
        return b"".join(out)


class SseParser:
    """Feed it bytes as they come; the events' raw bytes together are what was fed."""

    __slots__ = (
        "_buffer",
        "_data",
        "_is_begun",
        "_is_first",
        "_is_strange",
        "_line",
        "_max",
        "_name",
        "_scanned",
        "_skips_lf",
    )

    def __init__(self, max_event_bytes: int) -> None:
        self._buffer = bytearray()  # from the current event's first byte
        self._max = max_event_bytes
        self._line = 0  # where the current line begins
        self._scanned = 0  # no line ends before here
        self._name = b""
        self._data: list[bytes] | None = None
        self._is_begun = False  # the event has a line
        self._is_strange = False
        self._is_first = True  # no line has been seen: a byte order mark may stand here
        self._skips_lf = False  # the last byte was a CR that ended a line: an LF now belongs to it

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete; raises Uninspectable for one that is too long."""
        buffer = self._buffer
        buffer += data
        events: list[Event] = []
        begin = 0
        if self._skips_lf and data:
            self._skips_lf = False
            if data[:1] == b"\n":  # it stays at the head of the next event's bytes
                self._line += 1
                self._scanned += 1
        while True:
            end = _END.search(buffer, self._scanned)
            if end is None:
                self._scanned = len(buffer)
                break
            line = bytes(buffer[self._line : end.start()])
            self._line = self._scanned = end.end()
            self._skips_lf = end[0] == b"\r" and end.end() == len(buffer)
            if self._is_first:
                self._is_first = False
                line = line.removeprefix(_BOM)
            if line:
                self._is_begun = True
                self._field(line)
            elif self._is_begun:
                events.append(self._event(bytes(buffer[begin : end.end()])))
                begin = end.end()
        if begin:
            del buffer[:begin]
            self._line -= begin
            self._scanned -= begin
        if len(buffer) > self._max:
            raise Uninspectable(f"has an event of more than {self._max} bytes", is_too_large=True)
        return events

    def end(self) -> list[Event]:
        """What is left: an event without its end, or empty lines."""
        buffer = self._buffer
        if not buffer:
            return []
        line = bytes(buffer[self._line :])
        if self._is_first:
            line = line.removeprefix(_BOM)
        if line:
            self._field(line)
        event = self._event(bytes(buffer))
        buffer.clear()
        self._line = self._scanned = 0
        return [event]

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            if self._data is None:
                self._data = []
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._name = value.removeprefix(b" ")
        elif name not in _IGNORED:
            self._is_strange = True

    def _event(self, raw: bytes) -> Event:
        data = self._data
        joined = None if data is None else data[0] if len(data) == 1 else b"\n".join(data)
        event = Event(raw, self._name, joined, self._is_strange)
        self._name, self._data, self._is_begun, self._is_strange = b"", None, False, False
        return event
