"""Whatever a stream says and agents answer: what goes out is events of the same structure, or a refusal."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.guardrails.sse import SseParser
from proxy.guardrails.stream import StreamStage
from shared.decision import Decision, Finding, Inspection
from tests.proxy.guardrails.rail import Run, cut

texts = st.text(max_size=12) | st.sampled_from(
    ['{"a": "b c"}', '{"a"', "[1, 2345678901]", "data:text/plain;base64,aGkgdGhlcmU="]
)
indexes = st.integers(0, 2)
chat = st.builds(
    lambda index, key, text, end: {"choices": [{"index": index, "delta": {key: text}, "finish_reason": end}]},
    indexes,
    st.sampled_from(["content", "refusal", "reasoning"]),
    texts,
    st.sampled_from([None, "stop"]),
)
calls = st.builds(
    lambda index, text: {"choices": [{"delta": {"tool_calls": [{"index": index, "function": {"arguments": text}}]}}]},
    indexes,
    texts,
)
blocks = st.builds(
    lambda index, key, text: {"type": "content_block_delta", "index": index, "delta": {"type": "x", key: text}},
    indexes,
    st.sampled_from(["text", "thinking", "partial_json", "signature"]),
    texts,
)
stops = st.builds(lambda index: {"type": "content_block_stop", "index": index}, indexes)
responses = st.builds(
    lambda kind, text: {"type": kind, "output_index": 0, "delta": text, "text": text},
    st.sampled_from(["response.output_text.delta", "response.output_text.done", "response.x_arguments.delta"]),
    texts,
)
others = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "type", "text", "index", "completion", "error", "a b"]), inner
        )
    ),
    max_leaves=8,
)
events = st.lists(
    chat | calls | blocks | stops | responses | st.dictionaries(st.just("other"), others) | others, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(
    events,
    st.lists(st.integers(1, 80) | st.just(10_000), min_size=1, max_size=4),
    st.integers(16, 40),
    st.booleans(),
    st.data(),
)
def test_any_events(values: list[Any], sizes: list[int], window: int, is_slow: bool, data: st.DataObject) -> None:
    stream = b"".join(b"data: %b\n\n" % json.dumps(value).encode() for value in values) + b"data: [DONE]\n\n"
    found: set[str] = set()

    def decide(event: dict[str, Any]) -> Decision:
        content = event["content"]
        spans = data.draw(st.lists(st.tuples(st.integers(-1, len(content)), st.integers(-1, len(content))), max_size=3))
        findings = []
        for start, end in spans:
            if 0 <= start < end:
                found.add(content[start:end])
                start, end = len(content[:start].encode()), len(content[:end].encode())
            findings.append(Finding("c", 1, start=start, end=end))
        return Decision(inspections=(Inspection("g", True, 1, tuple(findings)),))

    run = Run(decide, kind=StreamStage, window=window, is_slow=is_slow, content_type=b"text/event-stream")
    for at, piece in enumerate(cut(stream, sizes)):
        run.feed(piece)
        if at % 2:
            run.flow.answer()
    run.answers().end().answers()
    if run.flow.refused is not None:
        assert run.flow.refused.status in (403, 502)
        return
    assert run.flow.is_ended
    assert run.flow.waiting == 0
    parser = SseParser(1_000_000)
    out = [event.data for event in (*parser.feed(run.flow.body), *parser.end())]
    assert out[-1] == b"[DONE]"
    assert len(out) == len(values) + 1
    for before, after in zip(values, out, strict=False):
        assert after is not None
        assert alike(before, json.loads(after))
    if not found:
        assert run.flow.body == stream


def alike(one: Any, other: Any) -> bool:
    """The same but for strings, and what was in place of them."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, str) or (type(one) is int and one != other):
        return isinstance(other, str)
    return bool(one == other)
