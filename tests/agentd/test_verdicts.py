"""agentd/transport/verdicts.py: verdicts that repeat are looked up, and the memory stays small."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.transport.verdicts import VerdictReader
from shared.defaults import HOP_BODY_MAX_BYTES, VERDICT_CACHE_BYTES, VERDICT_CACHE_ENTRIES
from shared.events import EventKind
from shared.wire.agent_zmq import decode_v1_verdict
from shared.wire.verdict import HEAD, HEAD_AND_HOST, Question, Verdict, decode_verdict, screen

BLOCK = b'{"decision":{"block":{"status":403,"body":"text"}}}'
ALLOW = b'{"decision":"allow"}'
CHUNK = EventKind.REQUEST_BODY_CHUNK


def chunk(index: int = 0, *, is_last: bool = False, kind: EventKind = CHUNK) -> Question:
    return Question(kind, False, index, is_last)


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data: bytes) -> Verdict:
        self.calls += 1
        return decode_verdict(data)


def test_the_same_bytes_are_decoded_once() -> None:
    decode = Counting()
    reader = VerdictReader("waf", decode)
    first = reader.read(BLOCK)
    assert reader.read(msgspec.Raw(BLOCK), HEAD) is first
    assert decode.calls == 1


def test_not_across_routes_that_may_set_host() -> None:
    decode = Counting()
    reader = VerdictReader("waf", decode)
    verdict = b'{"decision":"allow","request_headers":[{"set":{"name":"host","value":"b"}}]}'
    may, may_not = reader.read(verdict, HEAD_AND_HOST), reader.read(verdict, HEAD)
    assert (may.refused_ops, may_not.refused_ops) == ((), ("host",))
    assert reader.read(verdict, HEAD_AND_HOST) is may


def test_a_body_is_never_remembered() -> None:
    reader = VerdictReader("waf")
    one, two = reader.read(BLOCK, HEAD, b"one"), reader.read(BLOCK, HEAD, b"two")
    plain = reader.read(BLOCK)
    assert [s.decision.body for s in (one, two, plain) if s.decision] == [b"one", b"two", b"text"]


def test_bounded_in_number_and_size() -> None:
    decode = Counting()
    reader = VerdictReader("waf", decode)
    for number in range(3 * VERDICT_CACHE_ENTRIES):
        reader.read(b'{"decision":"allow","x":%d}' % number)
        reader.read(b'{"decision":"allow","x":%d}' % number, chunk(number))
        assert len(reader.plain) <= VERDICT_CACHE_ENTRIES
        assert all(len(memory) <= VERDICT_CACHE_ENTRIES for memory in reader._others.values())
    decode.calls = 0
    for _ in range(2):
        reader.read(b'{"decision":"allow","x":"' + b"x" * VERDICT_CACHE_BYTES + b'"}')
    assert decode.calls == 2


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b'{"decision":' * 50_000, b'{"decision":"allow\xff"}', b"9" * 10_000], ids=len
)
def test_whatever_cannot_be_read_is_malformed(data: bytes) -> None:
    for reader in (VerdictReader("waf"), VerdictReader("old", decode_v1_verdict)):
        for question in (HEAD, chunk(), chunk(kind=EventKind.GUARDRAIL_INSPECT)):
            screened = reader.read(data, question)
            assert screened.malformed
            assert screened.decision is None


def test_chunks_share_a_memory_whatever_their_index() -> None:
    """Allow and needs_more of a streamed body are looked up; what the last chunk may not say is not mixed in."""
    decode = Counting()
    reader = VerdictReader("waf", decode)
    more = b'{"decision":"allow","needs_more":true}'
    for index in range(5):
        assert reader.read(ALLOW, chunk(index)).is_quiet
        held = reader.read(more, chunk(index))
        assert held.decision is not None
        assert held.decision.chunk is not None
        assert (held.decision.chunk.hold, held.is_quiet) == (1, True)
    assert decode.calls == 2
    assert reader.read(more, chunk(5, is_last=True)).malformed == "needs_more on the last chunk"
    assert reader.read(more, chunk(5)) is held


def test_what_names_a_chunk_is_looked_at_each_time() -> None:
    """The right one acts, the same bytes for the next chunk are malformed, and the other way round."""
    reader = VerdictReader("waf")
    drop = b'{"decision":"allow","request_body_mutation":{"chunk_index":3,"action":"drop"}}'
    for _ in range(2):
        for index in (2, 3, 4):
            screened = reader.read(drop, chunk(index))
            assert bool(screened.malformed) == (index != 3)
    other = reader.read(drop, chunk(3, kind=EventKind.RESPONSE_BODY_CHUNK))
    assert other.malformed == "the mutation is of the other direction"


def test_a_mutation_is_never_quiet() -> None:
    """Of two of one frame the second is a failure, which the audit has to tell."""
    reader = VerdictReader("waf")
    for verdict, is_quiet in ((b'{"websocket_decision":"drop"}', False), (b'{"websocket_decision":"allow"}', True)):
        screened = reader.read(verdict, chunk(kind=EventKind.WEBSOCKET_FRAME))
        assert (screened.is_kept, screened.is_quiet) == (True, is_quiet)


def test_a_replacement_that_fits_no_message_of_the_hop_is_malformed() -> None:
    reader = VerdictReader("waf")
    replace = b'{"decision":"allow","request_body_mutation":{"chunk_index":0,"action":"replace"}}'
    fits = reader.read(replace, chunk(), bytes(HOP_BODY_MAX_BYTES))
    assert fits.decision is not None
    over = reader.read(replace, chunk(), bytes(HOP_BODY_MAX_BYTES + 1))
    assert over.malformed == f"a replacement of {HOP_BODY_MAX_BYTES + 1} bytes, at most {HOP_BODY_MAX_BYTES} are taken"


_MUTATION = st.fixed_dictionaries(
    {"chunk_index": st.integers(0, 3)}, optional={"action": st.sampled_from(["pass", "drop", "replace"])}
)
_VERDICTS = st.fixed_dictionaries(
    {},
    optional={
        "decision": st.sampled_from(["allow", {"block": {"status": 403}}, {"redirect": {"url": "/x"}}, "deny"]),
        "needs_more": st.booleans(),
        "skip_body": st.booleans(),
        "request_body_mutation": _MUTATION,
        "response_body_mutation": _MUTATION,
        "websocket_decision": st.sampled_from(["allow", "drop", "replace", {"close": {"code": 1008}}]),
        "guardrail_response": st.fixed_dictionaries({"detected": st.booleans()}),
        "request_headers": st.just([{"set": {"name": "host", "value": "b"}}]),
        "error": st.just({"code": "x", "message": "y"}),
    },
)
_QUESTIONS = st.one_of(
    st.sampled_from([HEAD, HEAD_AND_HOST]),
    st.builds(
        Question,
        st.sampled_from([kind for kind in EventKind if kind.value in (2, 4, 6, 7)]),
        st.booleans(),
        st.integers(0, 3),
        st.booleans(),
    ),
)


@given(st.lists(st.tuples(_VERDICTS, _QUESTIONS), max_size=30))
def test_the_memory_says_what_reading_anew_says(asked: list[tuple[dict[str, Any], Question]]) -> None:
    """Whatever came before, for whatever events."""
    reader = VerdictReader("waf")
    for verdict, question in [*asked, *asked]:
        data = json.dumps(verdict).encode()
        found = reader.read(data, question)
        try:
            fresh = screen(decode_verdict(data), "waf", question)
        except ValueError:
            assert found.malformed
            continue
        assert (found.decision, found.malformed, found.error) == (fresh.decision, fresh.malformed, fresh.error)
        assert found.refused_ops == fresh.refused_ops
