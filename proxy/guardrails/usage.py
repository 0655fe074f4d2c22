"""Reads from a response on its way how many tokens its provider says it took.

    OpenAI      usage.prompt_tokens, completion_tokens (in a stream the last chunk, with stream_options.include_usage)
    Responses   response.usage.input_tokens, output_tokens
    Anthropic   usage.input_tokens with cache_*_input_tokens, output_tokens; in a stream first in message_start, then
                in each message_delta as sums so far

Nothing waits for this and nothing is refused: what cannot be read is not counted. What was seen before a stream broke
off counts. Cached input counts as input.

Kind: pure.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import orjson

from proxy.chunks import Stage
from proxy.guardrails.shapes import model_of
from proxy.guardrails.sse import SseParser
from shared.defaults import TOKENS_MAX
from shared.errors import Uninspectable

if TYPE_CHECKING:
    from proxy.flow import Flow

_SIGN: Final = b'"usage"'
_INPUT: Final = ("prompt_tokens", "input_tokens")
_CACHED: Final = ("cache_creation_input_tokens", "cache_read_input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")


class Usage(NamedTuple):
    """What one response took."""

    model: str = ""
    input: int = 0
    output: int = 0


class Tally(Protocol):
    """Who is told (proxy/guardrails/account.py)."""

    def used(self, flow: "Flow", more: Usage, is_first: bool) -> None: ...

    def done(self, flow: "Flow", usage: Usage) -> None: ...


def read(value: Any, before: Usage) -> Usage:
    """`before`, with what this value says instead."""
    if not isinstance(value, dict):
        return before
    usage = value.get("usage")
    for name in ("message", "response"):
        inner = value.get(name)
        if not isinstance(usage, dict) and isinstance(inner, dict):
            usage = inner.get("usage")
    if not isinstance(usage, dict):
        return before
    taken = _number(usage, _INPUT)
    if taken is not None:
        taken += sum(number for name in _CACHED if (number := _number(usage, (name,))) is not None)
    given = _number(usage, _OUTPUT)
    if taken is None and given is None:
        return before
    return Usage(
        model_of(value) or before.model,
        before.input if taken is None or taken == 0 else taken,
        before.output if given is None else given,
    )


def _number(usage: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        number = usage.get(name)
        if type(number) is int and 0 <= number < TOKENS_MAX:
            return number
    return None


class MeterStage(Stage):
    """A stage of a flow that lets everything pass."""

    __slots__ = ("_body", "_parser", "_room", "_tally", "_usage")

    def __init__(self, flow: "Flow", tally: Tally, max_bytes: int) -> None:
        super().__init__(flow)
        self._tally = tally
        self._usage = Usage()
        self._room = max_bytes
        self._parser = SseParser(max_bytes) if flow.content_type == b"text/event-stream" else None
        self._body: list[bytes] | None = [] if self._parser is None else None

    def take(self, data: bytes) -> None:
        if self._parser is not None:
            self._events(data)
        elif self._body is not None:
            self._room -= len(data)
            if self._room < 0:
                self._body = None
            else:
                self._body.append(data)
        self.next.take(data)

    def end(self) -> None:
        if self._parser is not None:
            for event in self._parser.end():
                self._see(event.data)
        elif self._body:
            self._see(b"".join(self._body))
            self._body = None
        if self._usage.input or self._usage.output:
            self._tally.done(self.flow, self._usage)
        self.next.end()

    def settle(self) -> None:
        self.next.settle()

    def _events(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            events = self._parser.feed(data)
        except Uninspectable:
            self._parser = None
            return
        for event in events:
            self._see(event.data)

    def _see(self, data: bytes | None) -> None:
        if data is None or _SIGN not in data:
            return
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        before, now = self._usage, read(value, self._usage)
        if now == before:
            return
        self._usage = now
        more = Usage(now.model, max(now.input - before.input, 0), max(now.output - before.output, 0))
        self._tally.used(self.flow, more, before == Usage())
