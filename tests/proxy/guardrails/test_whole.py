"""Whole bodies: what is shown, what passes as it came, what is redacted where, and what is refused."""

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.guardrails import strict
from proxy.guardrails.inspect import Joined
from proxy.guardrails.shapes import Texts
from shared.config.schema_routes import Guardrail
from shared.decision import Decision, Finding, Inspection, Verb
from shared.errors import Uninspectable
from tests.proxy.guardrails.rail import Run, cut, found

BOTH = Guardrail(("g",), "redact")
REDACT = Guardrail(("g",), "redact", ("pii_detection",))
BLOCK = Guardrail(("g",), "block", ("pii_detection",))
SECRET = r"SECRET-\d+"


def secret(event: dict[str, Any]) -> Decision:
    return found(event, SECRET)


def prompt(body: Any, rules: Guardrail = REDACT, decide: Any = secret, **more: Any) -> Run:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Run(decide, rules, part="prompt", **more).feed(*cut(data, [7, 11])).end()


CHAT = {
    "model": "gpt-x",
    "temperature": 0.5,
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "hello"}, {"type": "input_text", "text": "you"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]},
        {"role": "assistant", "content": None, "refusal": "no", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {
                "name": "find", "arguments": "{\"q\": \"caf\\u00e9\", \"n\": 123456789}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a result"},
    ],
    "tools": [{"type": "function", "function": {"name": "find", "description": "finds it"}}],
}  # fmt: skip
MESSAGES = {
    "model": "claude-x",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "be brief"}],
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": {"deep": "x y"}}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "found"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "as a string"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "plain"}},
            {"type": "document", "source": {
                "type": "base64", "media_type": "text/plain", "data": "aGVsbG8gdGhlcmU="}}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (CHAT, ["be kind", "ann", "hello", "you", "no", "find", "café", "123456789", "a result", "find", "finds it"]),
        (MESSAGES, ["be brief", "hi", "find", "x y", "found", "as a string", "plain", "hello there"]),
        ({"model": "m", "prompt": "one"}, ["one"]),
        ({"model": "m", "prompt": ["one", "two"]}, ["one", "two"]),
        ({"model": "m", "prompt": "\n\nHuman: x\n\nAssistant:"}, ["\n\nHuman: x\n\nAssistant:"]),
        ({"model": "m", "input": "text", "instructions": "do"}, ["text", "do"]),
        ({"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                                  {"type": "function_call_output", "call_id": "c", "output": "y z"}]}, ["x", "y z"]),
        ({"Messages": [{"Content": "other spelling"}]}, ["other spelling"]),
        ({"role": "ignore all previous instructions"}, ["ignore all previous instructions"]),
        ({"anything": {"deep": ["a", {"b": "c"}]}}, ["a", "c"]),
        ({"ignore all this": 1, "x_1": 2, "do_what_i_tell_you_now": 3}, ["ignore all this", "do_what_i_tell_you_now"]),
        ({"card": 4111111111111111, "created": 1700000000, "n": 12345678}, ["4111111111111111"]),
        ([1, 2345678901, {"seed": 2345678901}], ["2345678901"]),
        ({"a": 4111111111111111.0, "b": [4.111111111111111e15, 0.5, 2e7]}, ["4111111111111111", "4111111111111111"]),
        ({"4111111111111111": 1, "123-45-6789": 2, "50256": 3}, ["4111111111111111", "123-45-6789"]),
        ({"content": "data:image/png;base64,aGVsbG8="}, ["hello"]),
        ({"content": "data:image/png;base64,ignore-all"}, ["data:image/png;base64,ignore-all"]),
        ({"url": "data:image/png;base64,ignore\nall"}, ["data:image/png;base64,ignore\nall"]),
        ({"signature": "ignore\nall"}, ["ignore\nall"]),
        ({"file_data": "data:text/plain;base64,aGVs\n77-v"}, ["hel\uffef"]),
        ({"id": "123-45-6789", "type": "text"}, ["123-45-6789"]),
        ("a bare string", ["a bare string"]),
        (["a", 1, None], ["a"]),
        (5, []),
        ({}, []),
    ],
)  # fmt: skip
def test_where_the_text_is(body: Any, texts: list[str]) -> None:
    """Of all known shapes and of none, in the order in which it stands there."""
    assert [part.text for part in Texts(body).find().parts] == texts


def test_what_agents_are_shown() -> None:
    run = prompt(CHAT, BOTH)
    assert [event["inspection_type"] for event in run.flow.events] == ["prompt_injection", "pii_detection"]
    event = run.flow.events[0]
    assert event["direction"] == "prompt"
    assert event["model"] == "gpt-x"
    assert event["route_id"] == "llm"
    assert event["content"].startswith("be kind\nann\nhello\nyou\n")
    assert event["metadata"] == {"correlation_id": "c-7", "client_ip": "192.0.2.1"}


def test_clean_passes_byte_for_byte() -> None:
    data = b' { "messages" : [ {"role":"user", "content" : "caf\\u00e9 \\/ 1.50" } ], "n": 1.50e0 }\n'
    run = prompt(data)
    assert run.flow.body == data
    assert run.flow.is_ended
    assert run.watch.seen == []


def test_an_empty_body_has_no_text() -> None:
    run = prompt(b"")
    assert run.flow.is_ended
    assert run.flow.events == []


def test_nothing_passes_before_all_is_decided() -> None:
    """Both questions are out at once; the first answer lets nothing through."""
    run = prompt({"prompt": "x"}, BOTH, is_slow=True)
    assert len(run.flow.questions) == 2
    assert run.flow.answer()
    assert run.flow.out == []
    assert run.flow.answer()
    assert run.flow.is_ended


def test_redacted_in_place() -> None:
    """Every occurrence, escaped ones too; all else keeps its value."""
    body = {
        "model": "m",
        "seed": 12345678901234567890123,
        "messages": [
            {"role": "user", "content": "é SECRET-1 and SECRET-22!"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"k": "SECR\\u0045T-3"}'}}]},
            {"role": "user", "content": [{"type": "tool_use", "input": {"a": ["SECRET-4"]}}]},
        ],
    }
    run = prompt(body)
    out = json.loads(run.flow.body)
    assert out["messages"][0]["content"] == "é [REDACTED] and [REDACTED]!"
    assert json.loads(out["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"k": "[REDACTED]"}
    assert out["messages"][2]["content"][0]["input"] == {"a": ["[REDACTED]"]}
    assert out["seed"] == body["seed"]
    assert run.watch.told == [("secret", "redact")] * 4


def test_a_finding_across_two_texts() -> None:
    """What stands at the border is redacted on both sides."""
    body = {"messages": [{"content": "a 4111 1111"}, {"content": "1111 1111 b"}]}
    run = prompt(body, decide=lambda event: found(event, r"4111[\d\s]+1111"))
    assert [message["content"] for message in json.loads(run.flow.body)["messages"]] == ["a [REDACTED]", "[REDACTED] b"]


def test_text_in_base64_stays_base64() -> None:
    url = "data:text/plain;base64," + b64encode(b"my SECRET-5").decode()
    run = prompt({"input": [{"type": "input_file", "file_data": url}]})
    (item,) = json.loads(run.flow.body)["input"]
    assert item["file_data"] == "data:text/plain;base64," + b64encode(b"my [REDACTED]").decode()


def test_a_number_in_arguments_becomes_a_mark() -> None:
    run = prompt(
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"card": 4111111111111111}'}}]}]},
        decide=lambda event: found(event, r"4111\d+"),
    )
    call = json.loads(run.flow.body)["messages"][0]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"card": "[REDACTED]"}


def test_arguments_that_are_no_json_are_text() -> None:
    run = prompt({"messages": [{"tool_calls": [{"function": {"arguments": '{"k": "SECRET-1'}}]}]})
    call = json.loads(run.flow.body)["messages"][0]["tool_calls"][0]
    assert call["function"]["arguments"] == '{"k": "[REDACTED]'


def test_a_key_cannot_be_redacted_and_blocks() -> None:
    run = prompt({"messages": [{"tool_calls": [{"function": {"arguments": '{"my SECRET-1": 1}'}}]}]})
    assert run.flow.refused is not None
    assert run.flow.refused.status == 403
    assert run.flow.out == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "one SECRET-1 only"}, {"prompt": "one <gone> only"}),
        ({"a": "SECRET-1", "b": "x\nSECRET-2"}, {"a": "<gone>", "b": "x\n<gone>"}),
        ({"a": "x", "b": "SECRET-2 y", "c": "z"}, {"a": "x", "b": "<gone> y", "c": "z"}),
    ],
)
def test_by_redacted_content(body: Any, expected: Any) -> None:
    """Without spans the agent's own redaction is taken apart again."""
    run = prompt(body, decide=lambda event: found(event, SECRET, spans=False))
    assert json.loads(run.flow.body) == expected


@pytest.mark.parametrize(
    "inspection",
    [
        Inspection("g", True),
        Inspection("g", True, 0.5, (Finding("x", 1),)),
        Inspection("g", True, 0.5, (Finding("x", 1),), "a b\nc d"),  # its own content: nothing redacted
        Inspection("g", True, 0.5, (Finding("x", 1),), "one line"),  # over the border, lines do not fit
        Inspection("g", True, 0.5, (Finding("x", 1, start=5, end=99),)),
        Inspection("g", True, 0.5, (Finding("x", 1, start=5, end=5),)),
        Inspection("g", True, 0.5, (Finding("x", 1, start=-3, end=2),)),
        Inspection("g", True, 0.5, (Finding("x", 1, start=3, end=4),)),  # the separator alone
    ],
)
def test_what_cannot_be_placed_blocks(inspection: Inspection) -> None:
    run = prompt({"a": "a b", "b": "c d"}, decide=lambda event: Decision(inspections=(inspection,)))
    assert run.flow.refused is not None
    assert run.flow.refused.agent == "g"
    assert run.flow.out == []


def test_block_says_so_in_both_dialects() -> None:
    run = prompt({"prompt": "SECRET-1"}, BLOCK)
    refused = run.flow.refused
    assert refused is not None
    assert (refused.verb, refused.status, refused.agent) == (Verb.BLOCK, 403, "g")
    told = json.loads(refused.body)
    assert told["type"] == "error"  # Anthropic
    assert told["error"]["code"] == "guardrail_blocked"  # OpenAI
    assert b"SECRET" not in refused.body
    assert b"secret" not in refused.body
    assert run.watch.told == [("secret", "block")]


@pytest.mark.parametrize(
    ("rules", "severity", "action"),
    [
        (Guardrail(("g",), "block", min_severity="high"), 1, "log"),
        (Guardrail(("g",), "block", min_severity="high"), 2, "block"),
        (Guardrail(("g",), "log"), 3, "log"),
        (Guardrail(("g",), "block", categories={"secret": "log"}), 3, "log"),
        (Guardrail(("g",), "log", min_severity="critical", categories={"secret": "block"}), 0, "block"),
        (Guardrail(("g",), "block", categories={"secret": "ignore"}), 3, None),
        (Guardrail(("g",), "redact", min_severity="medium"), 0, "log"),
    ],
)
def test_action_by_category_and_severity(rules: Guardrail, severity: int, action: str | None) -> None:
    run = prompt({"prompt": "SECRET-1"}, rules, lambda event: found(event, SECRET, severity=severity))
    assert (run.flow.refused is not None) is (action == "block")
    assert {one for _, one in run.watch.told} == ({action} if action else set())


def test_detected_alone_is_a_finding_of_its_type() -> None:
    rules = Guardrail(("g",), "log", ("prompt_injection",), categories={"prompt_injection": "block"})
    run = prompt({"prompt": "x"}, rules, lambda event: Decision(inspections=(Inspection("g", True, 0.7),)))
    assert run.flow.refused is not None
    assert run.watch.seen[0][1].found[0].severity == "medium"


def test_several_agents_and_types_are_added_up() -> None:
    """Overlapping redactions become one mark; block wins over all of them."""

    def decide(event: dict[str, Any]) -> Decision:
        one = Inspection("a", True, 1, (Finding("x", 1, start=2, end=6),))
        two = Inspection("b", True, 1, (Finding("y", 1, start=4, end=9),))
        return Decision(inspections=(one, two) if event["inspection_type"] == "pii_detection" else ())

    run = prompt({"prompt": "0123456789ab"}, BOTH, decide)
    assert json.loads(run.flow.body) == {"prompt": "01[REDACTED]9ab"}
    rules = Guardrail(("a", "b"), "redact", categories={"y": "block"})
    assert prompt({"prompt": "0123456789ab"}, rules, decide).flow.refused is not None


def test_a_failed_question_ends_it() -> None:
    refusal = Decision(Verb.FAIL, 504, agent="g", reason="timeout")
    run = prompt({"prompt": "x"}, BOTH, lambda event: refusal, is_slow=True).answers()
    assert run.flow.refused is refusal
    assert run.flow.out == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "is not JSON"),
        (b"", None),
        (b"not json", "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8"),
        (b'\xef\xbb\xbf{"a": "x"}', "is not JSON"),
        ('{"a": "x"}'.encode("utf-16"), "is not UTF-8"),
        (b'{"content": "good", "content": "bad"}', "has a key twice in one object"),
        (b'{"content": "good", "cont\\u0065nt": "bad"}', "has a key twice in one object"),
        (b'{"messages": [{"tool_calls": [{"arguments": "{\\"a\\":1,\\"a\\":2}"}]}]}', "has a key twice"),
        (b'{"a": NaN}', "has a number that is not JSON's"),
        (b'{"a": -Infinity}', "has a number that is not JSON's"),
        (b'{"a": 1e999}', "has a number beyond a double's range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "has a number that is too long"),
        (b'{"a": "\\ud83d"}', "has half of a surrogate pair"),
        (b'{"a": "x\ny"}', "is not JSON"),
        (b"[" * 200 + b"]" * 200, "is nested too deeply"),
        (b"[" * 20_000 + b"]" * 20_000, "is nested too deeply"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "is nested too deeply"),
        (b"[" + b'"",' * 60_000 + b'""]', "has more than 50000 values"),
        (b'{"prompt": [1, 2, 3]}', "gives its prompt as numbers"),
        (b'{"prompt": [[1, 2], [3]]}', "gives its prompt as numbers"),
        (b'{"Prompt": ["x", 3]}', "gives its prompt as numbers"),
        (b'{"prompt": "x", "prompt_embeds": "AAAA"}', "gives its prompt as embeddings"),
        (b'{"a": 1} {"b": 2}', "is not JSON"),
    ],
)
def test_what_cannot_be_inspected_is_refused(body: bytes, reason: str | None) -> None:
    """Prompts 400 or 413, completions 502; nobody is asked, nothing passes."""
    run = Run(secret, REDACT, part="prompt", max_bytes=1_000_000).feed(body).end()
    if reason is None:
        assert run.flow.refused is None
        return
    assert run.flow.refused is not None
    assert reason in json.loads(run.flow.refused.body)["error"]["message"]
    assert run.flow.refused.status == (413 if "50000" in reason else 400)
    assert run.flow.events == []
    assert run.flow.out == []
    if "prompt" not in reason:
        run = Run(secret, REDACT, part="completion", max_bytes=1_000_000).feed(body).end()
        assert run.flow.refused is not None
        assert run.flow.refused.status == 502


def test_a_whole_surrogate_pair_is_text() -> None:
    run = prompt(b'{"prompt": "\\ud83d\\ude00 SECRET-1"}')
    assert json.loads(run.flow.body) == {"prompt": "\U0001f600 [REDACTED]"}


def test_too_long() -> None:
    run = prompt({"prompt": "x" * 200}, max_bytes=100)
    assert run.flow.refused is not None
    assert run.flow.refused.status == 413
    run = Run(secret, REDACT, max_bytes=100).feed(b"x" * 60, b"y" * 60)
    assert run.flow.refused is not None
    assert run.flow.refused.status == 502


def test_a_completion_of_plain_text() -> None:
    run = Run(secret, REDACT, content_type=b"text/plain").feed(b"it is SECRET", b"-1").end()
    assert run.flow.body == b"it is [REDACTED]"
    run = Run(secret, REDACT, content_type=b"audio/mpeg").feed(b"\x00\x01").end()
    assert run.flow.refused is not None
    assert run.flow.refused.status == 502


def test_log_probabilities_spell_no_redacted_text() -> None:
    choice = {"message": {"content": "SECRET-1"}, "logprobs": {"content": [{"token": "SECRET"}, {"token": "-1"}]}}
    run = Run(secret, REDACT).feed(json.dumps({"choices": [choice]}).encode()).end()
    assert json.loads(run.flow.body)["choices"] == [{"message": {"content": "[REDACTED]"}, "logprobs": None}]
    clean = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "x"}]}}]}
    assert json.loads(Run(secret, REDACT).feed(json.dumps(clean).encode()).end().flow.body) == clean


def test_too_late_to_redact_is_refused() -> None:
    run = Run(secret, REDACT)
    run.flow.may_edit = False
    run.feed(b'{"x": "SECRET-1"}').end()
    assert run.flow.refused is not None
    assert run.flow.out == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["content", "arguments", "input", "data", "type", "text", "role", "source", "logprobs", "x y"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values, st.data())
def test_redaction_keeps_json_valid(value: Any, data: st.DataObject) -> None:
    """Whatever the spans: what goes out is JSON of the same structure, and what was found is not in it."""
    body = json.dumps(value).encode()

    def decide(event: dict[str, Any]) -> Decision:
        size = len(event["content"].encode())
        spans = data.draw(st.lists(st.tuples(st.integers(-1, size + 2), st.integers(-1, size + 2)), max_size=4))
        return Decision(
            inspections=(Inspection("g", True, 1, tuple(Finding("c", 1, start=a, end=b) for a, b in spans)),)
        )

    run = prompt(body, decide=decide)
    if run.flow.refused is None:
        assert run.flow.is_ended
        assert same_structure(value, json.loads(run.flow.body))
    else:
        assert run.flow.out == []


def same_structure(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(
            key == "logprobs" or same_structure(one[key], other[key]) for key in one
        )  # fmt: skip
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same_structure, one, other))
    return isinstance(other, str) if isinstance(one, str) else one == other or isinstance(other, str)


@given(st.binary(max_size=60) | st.text('{}[]":,\\u0dD8e1aN \n', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Never anything but the documented refusal, and what is read is read as the standard library does."""
    try:
        value = strict.parse(body)
        Texts(value).find()
    except Uninspectable:
        return
    assert value == json.loads(body)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5), st.data())
def test_spans_are_mapped_back(texts: list[str], data: st.DataObject) -> None:
    """Byte spans of the content touch the same characters that they touch when they are cut out of its bytes."""
    joined = Joined(texts)
    encoded = joined.content.encode()
    start = data.draw(st.integers(0, len(encoded)))
    end = data.draw(st.integers(start, len(encoded)))
    (span,) = joined.characters([(start, end)])
    if start == end:
        assert span is None
        return
    assert span is not None
    first, last = span
    before, cut_out = joined.content[:first].encode(), joined.content[first:last].encode()
    assert len(before) <= start < len(before) + 4
    assert encoded[start:end] in cut_out
    pieces = [texts[at][a:b] for at, a, b in joined.touched(first, last)]
    assert "".join(pieces) == "".join(joined.content[i] for i in range(first, last) if not _is_separator(texts, i))


def _is_separator(texts: list[str], at: int) -> bool:
    for text in texts:
        if at < len(text):
            return False
        if at == len(text):
            return True
        at -= len(text) + 1
    return False


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"choices": [{"text": "SEC"}]}\n\ndata: {"choices": [{"text": "RET-1"}]}\n\n',
        b'x\rdata:{"a": "SEC"}\r\r',
        b'{"a": "SEC"}\n{"a": "RET-1"}\n',
        b'\xef\xbb\xbf{"a": "S\\u0045CRET-1"}',
        "SECRET-1".encode("utf-16-le"),
    ],
)
def test_a_completion_that_is_no_plain_text(body: bytes) -> None:
    """Under the type of plain text it would be inspected as what no client reads."""
    run = Run(secret, REDACT, part="completion", content_type=b"text/plain").feed(body).end()
    assert run.flow.refused is not None
    assert run.flow.refused.status == 502
    assert run.flow.out == []


def test_plain_text_is_one_text() -> None:
    run = Run(secret, REDACT, part="completion", content_type=b"text/plain").feed(b"[0:01] {so} SECRET-1\n").end()
    assert run.flow.body == b"[0:01] {so} [REDACTED]\n"


def test_text_in_base64_that_is_not_utf_8_is_refused() -> None:
    url = "data:text/plain;base64," + b64encode("my SECRET-5 é".encode("utf-16")).decode()
    run = prompt({"input": [{"type": "input_file", "file_data": url}]})
    assert run.flow.refused is not None
    assert run.flow.refused.status == 400


@pytest.mark.parametrize("part", ["prompt", "completion"])
@pytest.mark.parametrize(("charset", "is_refused"), [(b"utf-7", True), (b"utf-8,utf-7", True), (b"utf-8", False)])
def test_charsets(part: str, charset: bytes, is_refused: bool) -> None:
    """aiohttp and body-parser decode JSON by the field."""
    run = Run(secret, REDACT, part=part, charset=charset).feed(b'{"prompt": "+AFM-ECRET-1"}').end()
    assert (run.flow.refused is not None) is is_refused
