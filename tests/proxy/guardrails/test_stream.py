"""Event streams: nothing passes uninspected, borders do not matter, untouched bytes are the provider's."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.guardrails.stream import StreamStage
from shared.config.schema_routes import Guardrail
from shared.decision import ALLOW, Decision, Verb
from tests.proxy.guardrails.rail import Run, cut, found

SECRET = r"SECRET-[0-9a-z]+"
SSE = b"text/event-stream"


def sse(*values: Any, event: str = "") -> bytes:
    head = f"event: {event}\n" if event else ""
    return b"".join(
        f"{head}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode() for value in values
    )


def openai(*pieces: str, index: int = 0, finish: bool = True) -> list[dict[str, Any]]:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1700000000, "model": "gpt-x"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
    chunks = [{**base, "choices": [{"index": index, "delta": d, "finish_reason": None}]} for d in deltas]
    if finish:
        chunks.append({**base, "choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
    return chunks


def anthropic(*pieces: str) -> bytes:
    message = {"id": "m", "role": "assistant", "content": [], "model": "claude-x"}
    out = sse({"type": "message_start", "message": message}, event="message_start")
    out += sse({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    out += sse({"type": "ping"}, event="ping")
    for piece in pieces:
        out += sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}})
    out += sse({"type": "content_block_stop", "index": 0})
    out += sse({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}})
    return out + sse({"type": "message_stop"})


def call_chunk(piece: str) -> dict[str, Any]:
    call = {"index": 0, "function": {"arguments": piece}}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}


def secret(event: dict[str, Any]) -> Decision:
    return found(event, SECRET)


def run_of(decide: Any = secret, rules: Guardrail | None = None, **more: Any) -> Run:
    return Run(decide, rules, kind=StreamStage, content_type=SSE, **more)


def values(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]


def content(body: bytes) -> str:
    """What an OpenAI client reads."""
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in values(body) if c.get("choices"))


def said(body: bytes) -> str:
    """What an Anthropic client reads."""
    return "".join(v["delta"].get("text", "") for v in values(body) if v["type"] == "content_block_delta")


TEXT = "well, é the code is SECRET-12ab and that is all there is to say about it, thank you very much"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 40, 200])
def test_a_match_across_any_border(size: int) -> None:
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    expected = TEXT.replace("SECRET-12ab", "[REDACTED]")
    stream = sse(*openai(*pieces), "[DONE]")
    for sizes in ([len(stream)], [1], [13, 57]):
        run = run_of().feed(*cut(stream, sizes)).end()
        assert content(run.flow.body) == expected
        assert run.flow.is_ended
        assert run.flow.body.endswith(b"data: [DONE]\n\n")
        assert len(values(run.flow.body)) == len(pieces) + 2  # the structure is kept
        assert set(run.watch.told) == {("secret", "redact")}  # of a match that grew: its beginnings, too
    run = run_of().feed(anthropic(*pieces)).end()
    assert said(run.flow.body) == expected


@pytest.mark.parametrize("is_slow", [False, True])
def test_clean_passes_byte_for_byte(is_slow: bool) -> None:
    words = "nothing of interest in here, only words, and more of them, one by one"
    stream = b": hello\n\n" + anthropic(*words.split())
    stream += b'retry: 5\r\nid: 9\r\ndata:   {"choices" : [ ] }\r\n\r\n'
    run = run_of(lambda event: ALLOW, is_slow=is_slow)
    run.feed(*cut(stream, [17])).answers().end().answers()
    assert run.flow.body == stream
    assert run.flow.is_ended
    assert run.flow.waiting == 0


def test_the_first_event_goes_at_once() -> None:
    """What has no text is not held up by a question, or by the window."""
    run = run_of(is_slow=True)
    run.feed(sse(*openai(finish=False)))
    assert len(values(run.flow.body)) == 1
    assert run.flow.questions == []
    run.feed(sse(*openai("x" * 10, finish=False)))
    assert len(values(run.flow.body)) == 2  # the role; the text waits for its window


def test_the_window_is_held_back_and_no_more() -> None:
    run = run_of(window=32)
    run.feed(sse(*openai(*("0123456789",) * 10, finish=False)))
    out = content(run.flow.body)
    assert 100 - 32 - 10 - 8 <= len(out) <= 100 - 32
    run.end()
    assert content(run.flow.body) == "0123456789" * 10


def test_one_question_at_a_time_and_text_queues() -> None:
    run = run_of(window=16, is_slow=True)
    run.feed(sse(*openai("a" * 40, finish=False)))
    assert len(run.flow.questions) == 1
    more = sse(*openai("b" * 40, finish=False))
    run.feed(more)
    assert len(run.flow.questions) == 1
    assert run.flow.waiting == len(more)  # the sender is held when it is too much
    run.flow.answer()
    assert run.flow.waiting == 0
    assert len(run.flow.questions) == 1
    assert run.flow.questions[0][1]["content"].endswith("b" * 40)


def test_a_question_once_per_quarter_window() -> None:
    run = run_of(window=64)
    run.feed(*(sse(*openai("word ", finish=False)[1:]) for _ in range(100)))
    assert 500 // 16 - 12 <= len(run.flow.events) <= 500 // 16 + 2


def test_block_in_the_middle() -> None:
    rules = Guardrail(("g",), "block", ("pii_detection",))
    run = run_of(rules=rules, window=16)
    run.feed(sse(*openai("harmless " * 10, "more SECRET-1 text " * 3, finish=False)))
    assert run.flow.refused is not None
    assert run.flow.refused.status == 403
    assert b"SECRET" not in run.flow.body
    assert run.watch.told[0] == ("secret", "block")


def test_a_failed_question_in_the_middle() -> None:
    refusal = Decision(Verb.FAIL, 504, reason="timeout")
    run = run_of(lambda event: refusal, is_slow=True).feed(sse(*openai("x" * 100))).answers()
    assert run.flow.refused is refusal
    run.feed(b"data: more\n\n").end()
    assert content(run.flow.body) == ""


def test_a_number_is_not_cut_out_of_a_longer_one() -> None:
    """What is shown begins before what is held back: where a text is cut by us, no word begins."""
    run = run_of(lambda event: found(event, r"\b7[0-9]{15}\b"), window=16)
    run.feed(sse(*openai(*["12345678"] * 6, "x " * 40, *"7123456789012345", " end"))).end()
    assert content(run.flow.body) == "12345678" * 6 + "x " * 40 + "[REDACTED] end"
    assert any(event["content"].startswith("1234") and len(event["content"]) > 16 for event in run.flow.events)


def test_log_is_told_once() -> None:
    """The window is inspected again and again; a finding is accounted for once."""
    rules = Guardrail(("g",), "log", ("pii_detection",))
    run = run_of(rules=rules, window=64)
    run.feed(*(sse(*openai(piece, finish=False)[1:]) for piece in ["a SECRET-1 b ", *["word "] * 30])).end()
    assert run.watch.told == [("secret", "log")]


def test_tool_arguments_stay_json() -> None:
    """They are read when they are complete, unescaped, and put into the first of their deltas."""
    arguments = json.dumps({"q": "a SECRET-1 b", "s": "SECR", "n": 1}).replace("SECRET", "S\\u0045CRET")
    pieces = [arguments[at : at + 3] for at in range(0, len(arguments), 3)]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]}}]}]  # fmt: skip
    chunks += map(call_chunk, pieces)
    run = run_of().feed(sse(*chunks))
    assert len(values(run.flow.body)) == 1  # its name goes at once
    run.feed(sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}, "[DONE]")).end()
    out = values(run.flow.body)
    got = [c["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for c in out[1:-1]]
    assert len(got) == len(pieces)
    assert not any(got[1:])
    assert json.loads(got[0]) == {"q": "a [REDACTED] b", "s": "SECR", "n": 1}
    clean = [c for c in chunks if "SECRET" not in str(c)]
    assert run_of(lambda event: ALLOW).feed(sse(*clean)).end().flow.body == sse(*clean)


def test_anthropic_tool_input() -> None:
    stream = sse({"type": "content_block_start", "index": 1,
                  "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}})  # fmt: skip
    for piece in ("", '{"to": "SEC', "RET-", '9", "n": [1', "]}"):
        delta = {"type": "input_json_delta", "partial_json": piece}
        stream += sse({"type": "content_block_delta", "index": 1, "delta": delta})
    stream += sse({"type": "content_block_stop", "index": 1})
    run = run_of().feed(*cut(stream, [9])).end()
    got = [v["delta"]["partial_json"] for v in values(run.flow.body) if v["type"] == "content_block_delta"]
    assert json.loads("".join(got)) == {"to": "[REDACTED]", "n": [1]}


@pytest.mark.parametrize("is_slow", [False, True])
def test_arguments_that_begin_anew(is_slow: bool) -> None:
    """Of a channel that was complete, in the very same read: neither is lost."""
    ended = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    one, two = call_chunk('{"a": "SECRET-1"}'), call_chunk('{"b": "SECRET-2"}')
    run = run_of(is_slow=is_slow).feed(sse(one, ended, two, ended, one, "[DONE]")).answers().end().answers()
    assert run.flow.is_ended
    assert run.flow.body.count(b"[REDACTED]") == 3


def test_arguments_without_text_wait_for_nobody() -> None:
    """However many: there is nothing to ask about."""
    ended = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    calls = [call_chunk("[" + "1," * 400 + "1]"), ended] * 5
    run = run_of(max_bytes=2_000).feed(sse(*calls)).end()
    assert run.flow.body == sse(*calls)
    assert run.flow.is_ended
    assert run.flow.events == []


def test_arguments_cut_short_are_inspected_as_text() -> None:
    stream = sse(
        {
            "choices": [
                {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": "SECRET-1'}}]}}
            ]
        }
    )
    run = run_of().feed(stream).end()
    assert b"SECRET" not in run.flow.body
    assert run.flow.is_ended


def test_responses_api() -> None:
    """Deltas by item and place; .done and .completed, which say it all again, are redacted alike."""
    places = {"item_id": "i", "output_index": 0, "content_index": 0}
    stream = sse({"type": "response.created", "response": {"id": "r", "model": "gpt-x", "output": []}})
    for piece in ("one SEC", "RET-77 two"):
        stream += sse({"type": "response.output_text.delta", "delta": piece, **places, "obfuscation": "xY3"})
    stream += sse({"type": "response.output_text.done", "text": "one SECRET-77 two", **places})
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "one SECRET-77 two"}]}
    stream += sse({"type": "response.completed", "response": {"id": "r", "model": "gpt-x", "output": [item]}})
    run = run_of().feed(*cut(stream, [31])).end()
    out = values(run.flow.body)
    assert "".join(v["delta"] for v in out if v["type"].endswith(".delta")) == "one [REDACTED] two"
    assert out[-2]["text"] == "one [REDACTED] two"
    assert out[-1]["response"]["output"][0]["content"][0]["text"] == "one [REDACTED] two"


def test_choices_are_told_apart() -> None:
    one = openai("first SEC", "RET-1 is", finish=False)[1:]
    two = openai("second RET-", "22 is", index=1, finish=False)[1:]
    stream = sse(one[0], two[0], one[1], two[1])
    out = values(run_of().feed(stream).end().flow.body)
    texts = {0: "", 1: ""}
    for chunk in out:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"]["content"]
    assert texts == {0: "first [REDACTED] is", 1: "second RET-22 is"}


def test_a_legacy_stream_of_each() -> None:
    stream = sse(*({"choices": [{"index": 0, "text": piece}]} for piece in ("SEC", "RET-5 x")))
    assert "".join(v["choices"][0]["text"] for v in values(run_of().feed(stream).end().flow.body)) == "[REDACTED] x"
    stream = sse(*({"type": "completion", "completion": piece, "stop_reason": None} for piece in ("SEC", "RET-5 x")))
    assert "".join(v["completion"] for v in values(run_of().feed(stream).end().flow.body)) == "[REDACTED] x"


def test_a_stream_of_unknown_shape() -> None:
    """Its strings go on from event to event by their places."""
    stream = sse(*({"candidates": [{"content": {"parts": [{"text": piece}]}}]} for piece in ("SEC", "RET-5 x")))
    out = values(run_of().feed(stream).end().flow.body)
    assert "".join(v["candidates"][0]["content"]["parts"][0]["text"] for v in out) == "[REDACTED] x"


def test_reasoning_is_text_too() -> None:
    stream = sse(*({"choices": [{"index": 0, "delta": {"reasoning_content": piece}}]} for piece in ("SEC", "RET-5 x")))
    out = values(run_of().feed(stream).end().flow.body)
    assert "".join(v["choices"][0]["delta"]["reasoning_content"] for v in out) == "[REDACTED] x"


def test_log_probabilities_go_with_redacted_text() -> None:
    chunk = {
        "choices": [{"index": 0, "delta": {"content": "SECRET-1"}, "logprobs": {"content": [{"token": "SECRET-1"}]}}]
    }
    run = run_of().feed(sse(chunk)).end()
    assert b"SECRET" not in run.flow.body


@pytest.mark.parametrize(
    "stream",
    [
        b"data: not json\n\n",
        b"data: {\"a\": \n\n",
        b"data: {\"choices\": [], \"choices\": []}\n\n",
        b"data: \"a string\"\n\n",
        b"data: {\"a\": \"\\ud800\"}\n\n",
        b"data: \xff\n\n",
        b"data: {\"choices\": [{\"delta\": {\"content\": \"cut",
        b"<html>no events</html>" * 10_000,
    ],
)  # fmt: skip
def test_garbage_is_refused(stream: bytes) -> None:
    run = run_of().feed(*cut(stream, [1000])).end()
    assert run.flow.refused is not None
    assert run.flow.refused.status == 502
    assert run.flow.out == []


def test_comments_pass() -> None:
    """A field that every client ignores is no text."""
    run = run_of().feed(b": comment\nid: 1\nretry: 5\n\n").end()
    assert run.flow.body == b": comment\nid: 1\nretry: 5\n\n"
    assert run.flow.is_ended


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": [{"message": {"content": "SECRET-1"}}]}',
        b'{"choices":\n\n[]}\n\n',
        b"garbage\n\n",
        b': x\n\nDATA: {"a": "SECRET-1"}\n\n',
        b'data: {"a": "b"}\n\xef\xbb\xbfdata: {"a": "SECRET-1"}\n\n',
    ],
)
def test_what_is_no_event_stream_is_refused(body: bytes) -> None:
    """Most clients that did not ask for a stream read JSON whatever its type says."""
    run = run_of().feed(body).end()
    assert run.flow.refused is not None
    assert run.flow.refused.status == 502
    assert b"SECRET" not in run.flow.body


def test_a_finding_longer_than_the_window() -> None:
    """It is held back until it has ended, and then redacted whole."""
    run = run_of(lambda event: found(event, r"SECRET-[a-z]+"), window=16)
    run.feed(sse(*openai("before SECRET-", finish=False)))
    for _ in range(100):
        run.feed(sse(*openai("abcdefghij", finish=False)[1:]))
    assert content(run.flow.body) == ""
    assert len(run.flow.events) < 40  # what is inspected again and again grows, so it is asked more and more rarely
    run.feed(sse(*openai(" and after that much more", finish=False)[1:])).end()
    assert content(run.flow.body) == "before [REDACTED] and after that much more"


def test_held_back_too_much_is_refused() -> None:
    """Arguments that never end."""
    run = run_of(max_bytes=1000, window=16)
    for _ in range(200):
        run.feed(
            sse(
                {
                    "choices": [
                        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "[" * 20}}]}}
                    ]
                }
            )
        )
    assert run.flow.refused is not None
    assert run.flow.refused.status == 502


def test_text_after_the_end_of_a_choice_is_inspected() -> None:
    run = run_of().feed(sse(*openai("x y z"), *openai("more SECRET-9"), "[DONE]")).end()
    assert content(run.flow.body) == "x y zmore [REDACTED]"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["SECRET-", "SEC", "RET-", "1a", " ", "é", "x" * 9, "\n", "\U0001f600"]), max_size=30),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(16, 40),
    st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_any_stream(pieces: list[str], sizes: list[int], window: int, is_slow: bool, is_anthropic: bool) -> None:
    """However it is cut, whatever the order of answers: what a client reads is the whole text, redacted."""
    text = "".join(pieces)
    stream = anthropic(*pieces) if is_anthropic else sse(*openai(*pieces), "[DONE]")
    run = run_of(window=window, is_slow=is_slow)
    for at, piece in enumerate(cut(stream, sizes)):
        run.feed(piece)
        if at % 3 == 0:
            run.flow.answer()
    run.answers().end().answers()
    out = said(run.flow.body) if is_anthropic else content(run.flow.body)
    assert run.flow.is_ended
    assert run.flow.waiting == 0
    assert out == re.sub(SECRET, "[REDACTED]", text)


@pytest.mark.parametrize("goes_on", ["", "null", None])
def test_an_end_that_is_none(goes_on: str | None) -> None:
    """Some servers name a finish_reason in every event."""
    events = openai(*"the code is SECRET-12ab, good".partition("RET-1"))
    for event in events[:-1]:
        event["choices"][0]["finish_reason"] = goes_on
    run = run_of(window=16).feed(sse(*events)).end()
    assert content(run.flow.body) == "the code is [REDACTED], good"
    completion = [{"completion": piece, "stop_reason": goes_on} for piece in ("a SEC", "RET-1", " b")]
    run = run_of(window=16).feed(sse(*completion)).end()
    assert "".join(value["completion"] for value in values(run.flow.body)) == "a [REDACTED] b"


def test_an_item_whose_id_changes() -> None:
    """Gateways make up ids; the place in the output says what goes on."""
    pieces = ["a SEC", "RET-1", " b"]
    deltas = [
        {"type": "response.output_text.delta", "item_id": f"i{at}", "output_index": 0, "content_index": 0, "delta": one}
        for at, one in enumerate(pieces)
    ]
    run = run_of().feed(sse(*deltas)).end()
    assert "".join(value["delta"] for value in values(run.flow.body)) == "a [REDACTED] b"


def test_a_delta_that_is_an_object() -> None:
    pieces = ["a SEC", "RET-1", " b"]
    deltas = [{"type": "response.reasoning.delta", "output_index": 0, "delta": {"text": piece}} for piece in pieces]
    run = run_of().feed(sse(*deltas)).end()
    assert "".join(value["delta"]["text"] for value in values(run.flow.body)) == "a [REDACTED] b"


def test_a_number_in_a_stream() -> None:
    run = run_of(lambda event: found(event, r"4111\d+"))
    run.feed(sse({"made": {"card": 4111111111111111, "n": 1}}, {"choices": [{"delta": {"x": 4111111111111111.0}}]}))
    assert values(run.end().flow.body) == [
        {"made": {"card": "[REDACTED]", "n": 1}},
        {"choices": [{"delta": {"x": "[REDACTED]"}}]},
    ]


def test_redactions_cost_no_search() -> None:
    """Each goes to its event directly: looking for it in all of them took the loop many seconds."""
    large = [{"type": "ping", "all": ["x"] * 20_000}, {"type": "ping", "all": ["SECRET-1"] * 20_000}]
    compared = 0

    class Counted(list[Any]):
        def __contains__(self, one: object) -> bool:
            nonlocal compared
            compared += 1
            return super().__contains__(one)

    run = run_of(max_bytes=1_000_000, is_slow=True).feed(sse(*large))
    for held in run.stage._queue:  # type: ignore[union-attr]
        held.whole.parts = Counted(held.whole.parts)
    run.answers().end().answers()
    assert values(run.flow.body)[1]["all"] == ["[REDACTED]"] * 20_000
    assert compared == 0
