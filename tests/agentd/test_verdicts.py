"""agentd/transport/verdicts.py: verdicts that repeat are looked up, and the memory stays small."""

import msgspec
import pytest

from agentd.transport.verdicts import VerdictReader
from shared.defaults import VERDICT_CACHE_BYTES, VERDICT_CACHE_ENTRIES
from shared.wire.agent_zmq import decode_v1_verdict
from shared.wire.messages import Verdict, decode_verdict

BLOCK = b'{"decision":{"block":{"status":403,"body":"text"}}}'


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data: bytes) -> Verdict:
        self.calls += 1
        return decode_verdict(data)


def test_the_same_bytes_are_decoded_once() -> None:
    decode = Counting()
    reader = VerdictReader("waf", decode)
    first = reader.read(BLOCK, False)
    assert reader.read(msgspec.Raw(BLOCK), False) is first
    assert decode.calls == 1


def test_not_across_routes_that_may_set_host() -> None:
    decode = Counting()
    reader = VerdictReader("waf", decode)
    verdict = b'{"decision":"allow","request_headers":[{"set":{"name":"host","value":"b"}}]}'
    may, may_not = reader.read(verdict, True), reader.read(verdict, False)
    assert (may.refused_ops, may_not.refused_ops) == ((), ("host",))
    assert reader.read(verdict, True) is may


def test_a_body_is_never_remembered() -> None:
    reader = VerdictReader("waf")
    one, two = reader.read(BLOCK, False, b"one"), reader.read(BLOCK, False, b"two")
    plain = reader.read(BLOCK, False)
    assert [s.decision.body for s in (one, two, plain) if s.decision] == [b"one", b"two", b"text"]


def test_bounded_in_number_and_size() -> None:
    decode = Counting()
    reader = VerdictReader("waf", decode)
    for number in range(3 * VERDICT_CACHE_ENTRIES):
        reader.read(b'{"decision":"allow","x":%d}' % number, False)
        assert len(reader._plain) <= VERDICT_CACHE_ENTRIES
    decode.calls = 0
    for _ in range(2):
        reader.read(b'{"decision":"allow","x":"' + b"x" * VERDICT_CACHE_BYTES + b'"}', False)
    assert decode.calls == 2


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b'{"decision":' * 50_000, b'{"decision":"allow\xff"}', b"9" * 10_000], ids=len
)
def test_whatever_cannot_be_read_is_malformed(data: bytes) -> None:
    for reader in (VerdictReader("waf"), VerdictReader("old", decode_v1_verdict)):
        screened = reader.read(data, False)
        assert screened.malformed
        assert screened.decision is None
