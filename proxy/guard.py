"""Feeds llhttp and bounds what it takes: heads, targets, trailers, chunk framing, upgrades.

The half of the client connection that knows bytes: what httptools lets through and must not (docs/adr/0003),
how much of a head has come, what a parser error means as a status. It starts no request and writes nothing;
`proxy/protocol.py` does, and implements `_broken` and `_refuse`.

Kind: IO (of bytes already read; no socket here).
"""

import logging
import re
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.config.schema import Server
from shared.defaults import CHUNK_OVERHEAD_BYTES, CHUNK_OVERHEAD_RATIO, MAX_TARGET_BYTES, MAX_TRAILERS
from shared.errors import RequestRefused

Field = tuple[bytes, bytes]
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]\Z")
_log = logging.getLogger("proxy.protocol")
_SPACES: Final = (b" ", b"\t")


class GuardedParser(HttpToolsProtocol):
    """The parser of one connection, and how far the message being parsed has come."""

    def __init__(self, limits: Server, *args: Any) -> None:
        super().__init__(*args)
        self._limits = limits
        self.parser = httptools.HttpRequestParser(self)  # afresh: stock sets lenient_data_after_close
        self._is_lingering = False  # nothing that comes is read as HTTP any more
        self._refusal: RequestRefused | None = None  # to be answered after what is before it
        self._refeed: list[Field] | None = None
        self._method = b""
        self._version = ""
        self._in_head = False
        self._head_bytes = 0
        self._ended_in_read = False  # a message ended in this read: where the next one begins is not known
        self._head_raw = b""  # of a head that came in several reads, to say what is wrong with it
        self._field_bytes = 0
        self._trailers = 0
        self._body_bytes = 0
        self._raw_body_bytes = 0
        self._is_chunked = False  # and its body is being read

    def _broken(self, refusal: RequestRefused) -> None:
        """What arrives breaks a rule."""
        raise NotImplementedError

    def _refuse(self, refusal: RequestRefused) -> None:
        """Refuse what is being parsed, once what was before it is answered."""
        raise NotImplementedError

    # --- bytes in -------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """One read."""
        if self._in_head or len(data) > self._limits.max_header_bytes:
            self._feed_bounded(data)
        else:
            self._ended_in_read = False
            self._feed(data)
            if self._in_head:
                self._count_head(data, False)

    def _feed_bounded(self, data: bytes) -> None:
        """A read that may take the head over its limit: feed no more of it than the limit allows."""
        limit = self._limits.max_header_bytes
        while data and not self._is_lingering and self._refusal is None:
            room = limit - self._head_bytes if self._in_head else limit
            piece, data = data[:room], data[room:]
            was_in_head = self._in_head
            self._ended_in_read = False
            self._feed(piece)
            if self._is_lingering or self._refusal is not None:
                return
            self._count_head(piece, was_in_head)
            if self._in_head and self._head_bytes >= limit:
                over = len(self.url) >= MAX_TARGET_BYTES or not self.headers
                status = 414 if over and not self._field_bytes and b"\r\n" not in piece else 431
                self._refuse(RequestRefused(status, f"head is over max_header_bytes = {limit}"))

    def _count_head(self, data: bytes, was_in_head: bool) -> None:
        """How much of a head that is not whole yet has come, `data` being the last of it."""
        if not self._in_head:
            self._head_bytes, self._head_raw = 0, b""
        elif self._ended_in_read:
            # Where it began in this read is not known; what of it was told is (the rest is less than a read).
            self._head_bytes, self._head_raw = len(self.url) + self._field_bytes, b""
        elif was_in_head:
            self._head_bytes += len(data)
            self._head_raw += data
        else:
            self._head_bytes, self._head_raw = len(data), data

    def _feed(self, data: bytes) -> None:
        size = len(data)
        while data:
            error: httptools.HttpParserError | None = None
            at = 0
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                at = upgrade.args[0]
            except httptools.HttpParserError as raised:
                error = raised
            if error is not None:
                if not self._is_lingering:
                    self._broken(self._cause(error, data))
                break
            data = self._without_upgrade(data[at:]) if self._refeed is not None else self._behind_upgrade(data[at:])
        if self._is_chunked:
            self._check_chunk_overhead(size)

    def _check_chunk_overhead(self, size: int) -> None:
        """Chunk extensions and one-byte chunks cost us more than they bring: bound the ratio."""
        self._raw_body_bytes += size
        if self._raw_body_bytes > CHUNK_OVERHEAD_BYTES + CHUNK_OVERHEAD_RATIO * self._body_bytes:
            self._broken(RequestRefused(400, "chunked framing is much larger than the body"))

    def _cause(self, error: httptools.HttpParserError, data: bytes) -> RequestRefused:
        """Why the parser stopped: a refusal of our own callbacks, a bug in them, or what llhttp says."""
        cause = error.__context__
        if isinstance(cause, RequestRefused):
            return cause
        if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
            _log.error("a request could not be handled", exc_info=cause)
            return RequestRefused(500, "internal error")
        return self._explain(error, b"" if self._ended_in_read else self._head_raw + data)

    def _explain(self, error: Exception, data: bytes) -> RequestRefused:
        """The status for what llhttp refused; it tells the kind only for methods."""
        line = data.partition(b"\n")[0].rstrip(b"\r")  # empty where the request's beginning is not known
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            method = line.partition(b" ")[0]
            if method.isalpha() and len(method) <= 32:
                return RequestRefused(501, "method is not known")
            return RequestRefused(400, "not an HTTP request")
        words = line.split(b" ")
        version = words[-1]
        if len(words) == 3 and _VERSION.match(version) and version not in (b"HTTP/1.1", b"HTTP/1.0"):
            return RequestRefused(505, "HTTP version is not supported")
        return RequestRefused(400, f"malformed request: {error}")

    def _behind_upgrade(self, rest: bytes) -> bytes:
        """The head that llhttp stopped at stays an upgrade: what follows it is no HTTP. Returns what to feed."""
        return b""

    def _without_upgrade(self, rest: bytes) -> bytes:
        """llhttp stops at a head that asks for an upgrade; unless it is one of ours, the request goes on.

        Java's and curl's clients send `Upgrade: h2c` with ordinary requests; the head is fed again to a
        new parser without the field, then what followed it (with its body). Returns what to feed.
        """
        fields = self._refeed
        self._refeed = None
        if fields is None or self._is_lingering:
            return b""
        head = [b"%b %b HTTP/%b\r\n" % (self._method, self.url, self._version.encode())]
        for name, value in fields:
            lower = name.lower()
            if lower == b"upgrade":
                continue
            if lower == b"connection":
                options = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
                value = b",".join(options)
            head.append(b"%b: %b\r\n" % (name, value))
        head.append(b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        return b"".join(head) + rest

    # --- parser callbacks -----------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self.url = url = self.url + url if self.url else url
        if len(url) > MAX_TARGET_BYTES:
            raise RequestRefused(414, f"request target is over {MAX_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # The trailer section: counted and dropped, never merged into the head (an injection otherwise).
            self._trailers += 1
            if self._trailers > MAX_TRAILERS:
                raise RequestRefused(431, f"more than {MAX_TRAILERS} trailer fields")
            return
        if value.endswith(_SPACES):  # llhttp cuts white space in front only
            value = value.rstrip(b" \t")
        headers = self.headers
        headers.append((name, value))
        limits = self._limits
        self._field_bytes += len(name) + len(value) + 4
        if self._field_bytes > limits.max_header_bytes:
            raise RequestRefused(431, f"head is over max_header_bytes = {limits.max_header_bytes}")
        if len(headers) > limits.max_headers:
            raise RequestRefused(431, f"more than max_headers = {limits.max_headers} header fields")
