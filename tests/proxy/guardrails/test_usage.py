"""Tokens are read from every provider's way of telling them, and summed within bounds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.chunks import Stage
from proxy.guardrails.account import Account
from proxy.guardrails.usage import MeterStage, Usage, read
from shared.defaults import GUARDRAIL_MODELS
from shared.wire.tokens import OTHER, TokenRow, TokenSums, decode, encode
from tests.proxy.guardrails.rail import End, FakeFlow, cut

JSON, SSE = b"application/json", b"text/event-stream"
ANTHROPIC = [
    {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 10, "cache_read_input_tokens": 5}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 7}},
]


class Tally:
    def __init__(self) -> None:
        self.sums = TokenSums()
        self.account = Account("llm", self.sums)
        self.done_with: Usage | None = None

    def used(self, flow: Any, more: Usage, is_first: bool) -> None:
        self.account.used(flow, more, is_first)

    def done(self, flow: Any, usage: Usage) -> None:
        self.done_with = usage


def metered(body: bytes, content_type: bytes, *, is_cut: bool = False, sizes: list[int] | None = None) -> Tally:
    flow: Any = FakeFlow(lambda event: None, content_type=content_type)  # type: ignore[arg-type, return-value]
    tally = Tally()
    stage: Stage = MeterStage(flow, tally, 10_000)
    stage.next = End(flow)
    for piece in cut(body, sizes or [7]):
        stage.take(piece)
    if not is_cut:
        stage.end()
        stage.settle()
    assert flow.body == body
    return tally


def events(*values: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(value).encode() for value in values) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        ({"model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 4}}, JSON, Usage("m", 9, 4)),
        ({"model": "m", "usage": {"input_tokens": 9, "output_tokens": 4}}, JSON, Usage("m", 9, 4)),
        ({"model": "m", "usage": {"prompt_tokens": 9}}, JSON, Usage("m", 9, 0)),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 4}}, JSON, Usage("", 9, 4)),
        ({"model": "m", "usage": {"prompt_tokens": -1, "completion_tokens": "4"}}, JSON, None),
        ({"model": "m", "usage": {"prompt_tokens": 1 << 60}}, JSON, None),
        ({"model": "m", "usage": None}, JSON, None),
        ({"usage": "x"}, JSON, None),
        (["usage"], JSON, None),
        (
            [{"model": "m", "usage": None}, {"model": "m", "usage": {"prompt_tokens": 2, "completion_tokens": 1}}],
            SSE,
            Usage("m", 2, 1),
        ),
        (ANTHROPIC, SSE, Usage("m", 15, 7)),
        (
            [{"type": "x", "response": {"model": "m", "usage": {"input_tokens": 2, "output_tokens": 1}}}],
            SSE,
            Usage("m", 2, 1),
        ),
    ],
)  # fmt: skip
def test_every_dialect(body: Any, content_type: bytes, expected: Usage | None) -> None:
    data = json.dumps(body).encode() if content_type == JSON else events(*body)
    for sizes in ([1], [1000], [3, 50]):
        tally = metered(data, content_type, sizes=sizes)
        assert tally.done_with == expected
        rows = tally.sums.rows()
        if expected is None:
            assert rows == []
        else:
            assert rows == [TokenRow("llm", expected.model or "unknown", expected.input, expected.output, 1)]


def test_what_a_broken_stream_told_is_counted() -> None:
    tally = metered(events(*ANTHROPIC[:3])[:-14], SSE, is_cut=True)
    assert tally.sums.rows() == [TokenRow("llm", "m", 15, 3, 1)]
    assert tally.done_with is None


@pytest.mark.parametrize("body", [b"{" * 20_000, b'{"usage": ', b'"usage" ' * 3000, b"", b"\xff\x00"])
def test_what_cannot_be_read_passes_uncounted(body: bytes) -> None:
    for content_type in (JSON, SSE, b"text/html"):
        assert metered(body, content_type).sums.rows() == []


NAMES = st.sampled_from(["usage", "message", "response", "model", "input_tokens", "completion_tokens"])


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.dictionaries(NAMES, inner)))
def test_any_value(value: Any) -> None:
    usage = read(value, Usage())
    assert usage.input >= 0
    assert usage.output >= 0


def test_models_are_bounded() -> None:
    sums = TokenSums()
    for number in range(GUARDRAIL_MODELS + 10):
        sums.add(TokenRow("r", f"m{number}", 1, 2, 1))
    sums.add(TokenRow("other route", "m", 5, 5, 1))
    rows = {(row.route, row.model): row for row in sums.take()}
    assert len(rows) == GUARDRAIL_MODELS + 2
    assert rows["r", OTHER] == TokenRow("r", OTHER, 10, 20, 10)
    assert sums.take() == []
    sums.add(TokenRow("r", "m0", 1, 0, 0))
    assert sums.take() == [TokenRow("r", "m0", 1, 0, 0)]


def test_rows_on_the_wire() -> None:
    rows = [TokenRow("r", "m", 1, 2, 3)]
    assert encode(rows) == b'[["r","m",1,2,3]]'
    assert decode(encode(rows)) == rows
