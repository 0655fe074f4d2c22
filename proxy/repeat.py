"""Recognises a request that differs from an earlier one of its connection in its target alone.

Clients repeat themselves: over one connection the bytes after the request line are mostly the same. llhttp
and `normalise` have said what such a block means; saying it again cost 8 us of a request's 29 (2026-11).
What is kept is one block per connection, seen twice; everything that depends on the target is decided anew.

A block is only kept of a request that could not be taken for anything else: HTTP/1.1, kept alive, without a
body, an upgrade or an expectation, alone in its read. Whatever does not fit to the byte goes to the parser.

Kind: pure.
"""

from collections.abc import Callable
from copy import copy

import orjson

from proxy.head import Front, Head, header_map, take_path
from shared.defaults import MAX_TARGET_BYTES, REPEATED_HEAD_BYTES
from shared.errors import RequestRefused

_VERSION = b" HTTP/1.1\r\n"


class Repeat:
    """One block of header lines, with the head that it meant."""

    __slots__ = ("_block", "_copy", "_method", "_size", "last_data", "last_head")

    def __init__(self, block: bytes, head: Head) -> None:
        kept = copy(head)
        kept.route = kept.event_rest = kept.lasting = None  # what depends on the target is found out for each
        kept.kept_lines = b"".join([b"%b: %b\r\n" % field for field in kept.kept])
        kept.kept_names = frozenset(name.lower().decode("latin-1") for name, _ in kept.kept)
        kept.front = Front()
        kept.map_json = orjson.dumps(header_map(kept.fields))
        self._copy: Callable[[], Head] = kept.__copy__  # type: ignore[attr-defined]
        self._block = block
        self._size = len(block)
        self._method = kept.method + b" /"
        self.last_data = b""
        self.last_head: Head | None = None

    def head_of(self, data: bytes) -> Head | None:
        """The head of a read that is such a request and nothing else; None = the parser must look.

        Raises RequestRefused, as `normalise` would, for what the target says.
        """
        if data == self.last_data:
            return self.last_head  # the very same request, whose exchange is over: so is all that was found out
        start = data.find(b"\n") + 1
        method = self._method
        if (
            len(data) - start != self._size
            or not data.endswith(self._block)
            or not data.startswith(method)
            or not data.startswith(_VERSION, start - 11)
        ):
            return None
        target = data[len(method) - 1 : start - 11]
        if len(target) > MAX_TARGET_BYTES:
            return None
        head = self._copy()
        head.target = target
        take_path(head, target)
        self.last_data, self.last_head = data, head
        return head


class Habits:
    """What one connection has repeated so far."""

    __slots__ = ("_last_block", "_repeat")

    def __init__(self) -> None:
        self._repeat: Repeat | None = None
        self._last_block = b""  # of the request before, which its successor may repeat

    def head_of(self, data: bytes) -> Head | None:
        """The head, where this read is a request like one before; None = the parser must look.

        A target that is refused is none of ours: the parser's way leads to the same refusal, with its answer.
        """
        repeat = self._repeat
        if repeat is None:
            return None
        if data == repeat.last_data:
            return repeat.last_head
        try:
            return repeat.head_of(data)
        except RequestRefused:
            return None

    def learn(self, data: bytes, head: Head) -> None:
        """After a read that began with this head: is it the second of its kind?"""
        block = block_of(data)
        if block != self._last_block:
            self._last_block = block
        elif is_repeatable(data, block, head):
            self._repeat = Repeat(self._last_block, head)  # the same bytes, not once more


def block_of(data: bytes) -> bytes:
    """What may become a Repeat's block: all after the first line; b"" where it is too long to be kept."""
    return data[data.find(b"\n") + 1 :] if len(data) <= REPEATED_HEAD_BYTES else b""


def is_repeatable(data: bytes, block: bytes, head: Head) -> bool:
    """Whether the read `data`, which began with this head, is nothing but it, and it is one of the simple kind."""
    return (
        block != b""
        and head.keep_alive
        and not (head.has_body or head.is_http_1_0 or head.expects_100 or head.is_websocket)
        and head.content_length is None
        and head.target.startswith(b"/")
        and len(head.fields) == block.count(b"\n") - 1  # else `guard` has taken an upgrade out
        and data.find(b"\r\n\r\n") == len(data) - 4
        and data == b"%b %b%b%b" % (head.method, head.target, _VERSION, block)
    )
