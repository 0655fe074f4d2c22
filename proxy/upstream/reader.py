"""Reads the bytes of one upstream response: where its head, its body and its end are.

The head is cut out of the bytes first (strict llhttp ends it only at CRLF CRLF) and given to a parser of
its own. Bodies of known length and bodies that end with the connection are then counted here, chunked
ones go on through that parser. So the end of a response is known to the byte, which the parser does not
tell, and what follows it is noticed; and HEAD, where the parser would wait for a body, needs no tricks.

    HEAD --1xx--> HEAD --final head--> LENGTH | CHUNKED | CLOSE --> DONE
                       --101, asked for--> TUNNEL: what follows is nobody's business here

What a head may say is response.py's. No socket, clock or retry may be put here.

Kind: pure.
"""

from typing import Final

import httptools

from proxy.upstream.response import Field, ResponseHead, malformed, read_head
from shared.defaults import HEAD_REMEMBERED_BYTES, HEADS_REMEMBERED, MAX_INFORMATIONAL, MAX_RESPONSE_HEADER_BYTES
from shared.errors import UpstreamFailed

# Where the reader is; ints, because comparing them is all that happens per read.
HEAD: Final = 0
LENGTH: Final = 1
CHUNKED: Final = 2
CLOSE: Final = 3
DONE: Final = 4
TUNNEL: Final = 5

_HEAD_END: Final = b"\r\n\r\n"
_LINE_BREAKS: Final = b"\r\n"
_PARSER_ERRORS: Final = (httptools.HttpParserError, httptools.HttpParserUpgrade)  # the second is no kind of the first

_NONE: Final = ResponseHead(0, b"", False, b"", False, None, False, [])

# Final heads by their bytes, of requests that were not HEAD. What a head means depends on nothing else, and
# upstreams repeat themselves (a Date changes once a second): a look costs 0.1 us, parsing 4 (2026-11).
_heads: dict[bytes, ResponseHead] = {}


def _too_large() -> UpstreamFailed:
    return malformed(f"a response head over {MAX_RESPONSE_HEADER_BYTES} bytes", "too_large_head")


class ResponseReader:
    """Of one connection: `begin` before each response, then `feed` and `eof` until `is_complete`.

    After a feed: `head` is the final head once it is whole; `body` what this feed brought of the body
    (b"" = nothing); `informational` the 1xx heads of this feed; `is_complete` whether the response has
    ended; `has_extra` whether bytes followed its end. UpstreamFailed means: nothing more may be read.
    """

    __slots__ = (
        "_fed_since_body",
        "_informational_count",
        "_is_head_parsed",
        "_last",
        "_left",
        "_parser",
        "_partial",
        "_pieces",
        "_tail",
        "body",
        "has_extra",
        "head",
        "informational",
        "is_complete",
        "is_head_request",
        "is_keep_alive",
        "may_upgrade",
        "state",
    )

    def __init__(self) -> None:
        self.state = HEAD
        self.is_head_request = False
        self.may_upgrade = False  # set after `begin`: a 101 was asked for, and is final
        self.head: ResponseHead | None = None
        self.body = b""
        self.informational: list[tuple[int, list[Field]]] | None = None
        self.is_complete = False
        self.is_keep_alive = False
        self.has_extra = False
        self._last = _NONE  # a head that was seen before, tried first
        self._parser: httptools.HttpResponseParser | None = None  # None in state HEAD = not one byte has come
        self._partial: bytearray | None = None
        self._is_head_parsed = False
        self._informational_count = 0
        self._left = 0
        self._pieces: list[bytes] = []
        self._tail = b""
        self._fed_since_body = 0

    def begin(self, is_head_request: bool) -> None:
        """Expect the response to a new request. Only after a complete one: what a failure leaves is not cleared.

        Not even after it where `state` is HEAD still (`whole`), but for a HEAD request.
        """
        self.state = HEAD
        self.is_head_request = is_head_request
        self.may_upgrade = False
        self.head = None
        self.is_complete = False

    @property
    def is_untouched(self) -> bool:
        """Whether not one byte of the response has come."""
        return self.state == HEAD and self._parser is None

    def whole(self, data: bytes) -> ResponseHead | None:
        """The head, where this read is all of a response and the head is one that was seen before: `body` is the rest.

        Nothing but `body` and `is_keep_alive` is set. None = `feed` it.
        """
        if self.state or self._parser is not None or self.is_head_request or self.may_upgrade:
            return None
        head = self._last
        raw = head.raw
        if head.whole_bytes != len(data) or not data.startswith(raw):
            raw = data[: data.find(_HEAD_END) + 4]
            known = _heads.get(raw)
            if known is None or known.whole_bytes != len(data):
                return None
            self._last = head = known
        self.body = data[len(raw) :]
        self.is_keep_alive = head.is_keep_alive
        return head

    def feed(self, data: bytes) -> None:
        """Take what one read brought. Raises UpstreamFailed (502) for anything that may not be believed."""
        if self.state == HEAD:
            self.body = b""
            data = self._feed_head(data)
            if not data:
                return
        state = self.state
        if state == LENGTH:
            left = self._left - len(data)
            if left > 0:
                self._left = left
                self.body = data
                return
            self.body = data if left == 0 else data[:left]
            self.has_extra = left != 0
            self.state = DONE
            self.is_complete = True
        elif state == CHUNKED:
            self._feed_chunks(data)
        elif state in (CLOSE, TUNNEL):
            self.body = data
        else:
            self.body = b""
            self.has_extra = True

    @property
    def is_tunnel(self) -> bool:
        """Whether what comes is no HTTP any more."""
        return self.state == TUNNEL

    def eof(self) -> bool:
        """The upstream has ended the stream: whether that completes the response."""
        if self.state != CLOSE:
            return False
        self.body = b""
        self._end()
        return True

    def _end(self) -> None:
        self.state = DONE
        self.is_complete = True
        self._parser = None  # it holds bound methods of ours: a cycle

    # --- the head --------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what follows the final head; b"" also while it is incomplete."""
        self.informational = None
        while True:
            partial = self._partial
            if partial is None:
                end = data.find(_HEAD_END) + 4
                known = _heads.get(data[:end])
                if known is not None and self._parser is None and not self.is_head_request:
                    self._informational_count = 0
                    return self._take_head(known, data[end:])
                if end == 3:
                    self._partial = bytearray()
                    self._keep_partial(data)
                    return b""
                raw = piece = data if end == len(data) else data[:end]
            else:
                found = (partial[-3:] + data).find(_HEAD_END)
                if found < 0:
                    self._keep_partial(data)
                    return b""
                end = found + 4 - min(len(partial), 3)  # so many bytes of `data` belong to this head
                piece = data[:end]
                raw = bytes(partial + piece)
                self._partial = None
            if len(raw) > MAX_RESPONSE_HEADER_BYTES:
                raise _too_large()
            self._parse(piece)
            if not self._is_head_parsed:
                raise malformed("a head that is none")
            head = read_head(raw)
            data = data[end:]
            if head.status >= 200 or (head.status == 101 and self.may_upgrade):
                self._informational_count = 0
                break
            self._take_informational(head)
            if not data:
                return b""
        head.is_keep_alive = self.is_keep_alive
        if self.is_head_request or head.status == 101:
            head.has_body = False
        elif len(raw) <= HEAD_REMEMBERED_BYTES:
            if len(_heads) >= HEADS_REMEMBERED:
                _heads.clear()
            _heads[raw] = head
            if not head.has_body:
                head.whole_bytes = len(raw)
            elif head.content_length is not None:
                head.whole_bytes = len(raw) + head.content_length
        return self._take_head(head, data)

    def _take_head(self, head: ResponseHead, data: bytes) -> bytes:
        """The final head is here, `data` is what follows it: what of that is still to be fed."""
        self.head = head
        self.is_keep_alive = head.is_keep_alive
        if head.status == 101:
            self.is_keep_alive = False
            self._parser = None
            self.state = TUNNEL
            return data
        if not head.has_body or head.content_length == 0:
            self._end()
            self.has_extra = data != b""
            return b""
        if head.content_length is not None:
            self._left = head.content_length
            self._parser = None
            self.state = LENGTH
        elif head.is_chunked:
            if self._parser is None:  # a known head was not parsed, but its chunks will be
                self._parse(head.raw)
            self._fed_since_body = 0
            self._tail = b""
            self.state = CHUNKED
        else:
            self.is_keep_alive = False
            self._parser = None
            self.state = CLOSE
        return data

    def _keep_partial(self, data: bytes) -> None:
        """A head without its end: parsed at once, so that a wrong one is not waited for."""
        partial = self._partial
        assert partial is not None
        if len(partial) + len(data) > MAX_RESPONSE_HEADER_BYTES:
            raise _too_large()
        self._parse(data)
        partial += data

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            self._is_head_parsed = False
            parser = self._parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(data)
        except _PARSER_ERRORS as error:
            if not self._is_head_parsed:
                raise malformed(str(error)) from None
            # The head is whole and could only not be read on from: a 101, judged by its status.

    def _take_informational(self, head: ResponseHead) -> None:
        status = head.status
        if status == 101:
            raise malformed("101 without an upgrade having been asked for")
        self._informational_count += 1
        if self._informational_count > MAX_INFORMATIONAL:
            raise malformed(f"more than {MAX_INFORMATIONAL} responses 1xx")
        if status != 100:
            if self.informational is None:
                self.informational = []
            self.informational.append((status, head.headers))
        # A parser of its own for the next head: this one may think that the stream has ended.
        self._is_head_parsed = False
        self._parser = httptools.HttpResponseParser(self)

    # --- chunked bodies --------------------------------------------------------------------------

    def _feed_chunks(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None
        pieces = self._pieces
        try:
            parser.feed_data(data)
        except _PARSER_ERRORS as error:
            if not self.is_complete:
                pieces.clear()
                raise malformed(str(error)) from None
            self.has_extra = True
        if not pieces:
            self.body = b""
            self._fed_since_body += len(data)
        else:
            self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._fed_since_body = 0
        tail = data if len(data) > 4 else self._tail + data
        if self.is_complete:
            # llhttp skips line breaks after a message without a word. A chunked body ends with the line
            # break of its last line and an empty line, so that one more of anything shows here.
            if not tail.endswith(_HEAD_END) or tail[-5] in _LINE_BREAKS:
                self.has_extra = True
            self._end()
        else:
            self._tail = tail[-4:]
            if self._fed_since_body > MAX_RESPONSE_HEADER_BYTES:
                raise malformed("chunk extensions or trailers without end", "too_large_head")

    # --- called by the parser; fields are no concern of it (response.py), so that trailers are dropped ----

    def on_headers_complete(self) -> None:
        if self.state == HEAD:
            self._is_head_parsed = True
            # The same here as in on_message_complete, and gone after it.
            self.is_keep_alive = self._parser.should_keep_alive()  # type: ignore[union-attr]
        else:
            self.has_extra = True  # a second response behind a chunked one

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.state == CHUNKED:
            self.is_complete = True
