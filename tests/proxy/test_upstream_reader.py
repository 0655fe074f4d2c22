"""What an upstream's bytes are taken for, however the network cuts them."""

import random
from itertools import pairwise

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.upstream.reader import ResponseReader
from proxy.upstream.response import ResponseHead
from shared.defaults import MAX_RESPONSE_HEADER_BYTES
from shared.errors import UpstreamFailed
from tests.http.upstream.cases import Case, cases

CASES = cases()
READ_MAX_BYTES = 262_144  # what uvloop and asyncio give at most in one read


class Seen:
    """Everything a reader told about one response."""

    def __init__(self) -> None:
        self.outcome = "open"
        self.fate = ""
        self.informational: list[int] = []
        self.head: ResponseHead | None = None
        self.body = b""


def read(segments: list[bytes], *, is_head: bool = False, is_closed_after: bool = False) -> Seen:
    """Feed the segments as a connection does: what follows a complete response is poison."""
    seen = Seen()
    reader = ResponseReader()
    reader.begin(is_head)
    has_extra = False
    try:
        for segment in segments:
            if reader.is_complete:
                has_extra = True
                break
            was_told = reader.head is not None
            reader.feed(segment)
            if not was_told:
                seen.informational += [status for status, _ in reader.informational or ()]
            seen.head = reader.head
            seen.body += reader.body
        if is_closed_after and not reader.is_complete and not reader.eof():
            seen.outcome = "closed_early"
    except UpstreamFailed as failure:
        assert failure.status == 502
        seen.outcome = failure.reason
        return seen
    if reader.is_complete:
        seen.outcome = "complete"
        is_poisoned = reader.has_extra or has_extra
        seen.fate = "poisoned" if is_poisoned else "reused" if reader.is_keep_alive else "closed"
    return seen


def check(case: Case, seen: Seen) -> None:
    assert seen.outcome == case.outcome
    assert seen.fate == case.fate
    if case.outcome != "complete":
        assert seen.head is None or seen.head.status == case.status
        assert case.body.startswith(seen.body)
        return
    assert seen.informational == case.informational
    assert seen.head is not None
    assert seen.head.status == case.status
    assert seen.body == case.body
    if case.fields:
        assert seen.head.headers == case.fields
    assert seen.head.raw in case.raw
    assert seen.head.raw.endswith(b"\r\n\r\n")
    if not seen.head.has_body:
        assert not seen.body


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def whole(case: Case) -> list[bytes]:
    return cut(case.raw, list(range(READ_MAX_BYTES, len(case.raw), READ_MAX_BYTES)))


def run(case: Case, segments: list[bytes]) -> Seen:
    return read(segments, is_head=case.method == b"HEAD", is_closed_after=case.is_closed_after)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
class TestCorpus:
    """Each case means the same in one read, in two, and byte by byte."""

    def test_whole(self, case: Case) -> None:
        check(case, run(case, whole(case)))

    def test_whole_again(self, case: Case) -> None:
        """A head that was seen before is not parsed again, and means the same."""
        first, again = (read(whole(case), is_head=False) for _ in range(2))
        assert vars(first) == vars(again)

    def test_cut_in_two_at_every_place(self, case: Case) -> None:
        step = max(1, len(case.raw) // 400)
        for place in range(1, len(case.raw), step):
            check(case, run(case, cut(case.raw, [place, *range(READ_MAX_BYTES, len(case.raw), READ_MAX_BYTES)])))

    def test_byte_by_byte(self, case: Case) -> None:
        step = max(1, len(case.raw) // 4_000)  # the long ones have nothing to cut in their middle
        check(case, run(case, cut(case.raw, list(range(step, len(case.raw), step)))))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_cut_at_random(data: st.DataObject) -> None:
    """Any segmentation of any case tells the same."""
    case = data.draw(st.sampled_from([case for case in CASES if len(case.raw) < 4_000]))
    places = data.draw(st.lists(st.integers(0, len(case.raw)), max_size=40))
    check(case, run(case, cut(case.raw, places)))


_FRAGMENTS = [b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n", b"abc"]
_FRAGMENTS += [
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"X-A: b\r\n",
    b" ",
    b"\n",
    b"\r",
    b"\0",
]
_FRAGMENTS += [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 101 S\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n", b"5\r\n", b":"]


@settings(max_examples=1_000, deadline=None)
@given(
    segments=st.lists(st.one_of(st.sampled_from(_FRAGMENTS), st.binary(min_size=1, max_size=40)), max_size=20),
    is_head=st.booleans(),
)
def test_arbitrary_bytes(segments: list[bytes], is_head: bool) -> None:
    """Whatever comes, the reader answers or raises UpstreamFailed, and in one read it is the same answer."""
    cut_up = read(segments, is_head=is_head, is_closed_after=True)
    together = read([b"".join(segments)] if segments else [], is_head=is_head, is_closed_after=True)
    assert (cut_up.outcome, cut_up.fate) == (together.outcome, together.fate)
    if cut_up.outcome == "complete":
        assert cut_up.body == together.body


def test_mutated_responses() -> None:
    """One byte changed, left out or doubled in a good response never raises anything else."""
    rng = random.Random(20261120)
    good = [case for case in CASES if case.outcome == "complete" and len(case.raw) < 4_000]
    for _ in range(4_000):
        case = rng.choice(good)
        raw = bytearray(case.raw)
        place = rng.randrange(len(raw))
        match rng.randrange(3):
            case 0:
                raw[place] = rng.randrange(256)
            case 1:
                del raw[place]
            case _:
                raw.insert(place, raw[place])
        read([bytes(raw)], is_head=case.method == b"HEAD", is_closed_after=True)


def test_is_reusable_for_the_next_response() -> None:
    """After `begin` nothing of the response before is left."""
    reader = ResponseReader()
    for number in range(3):
        reader.begin(False)
        assert reader.is_untouched
        reader.feed(b"HTTP/1.1 20%d OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n%d\r\n" % (number, number))
        assert not reader.is_untouched
        assert reader.body == b"%d" % number
        reader.feed(b"0\r\n\r\n")
        assert reader.is_complete
        assert reader.is_keep_alive
        assert not reader.has_extra
        assert not reader.is_untouched
        assert reader.head is not None
        assert reader.head.status == 200 + number


class Watch:
    """What the parser says where the documentation of the trap says to ask it."""

    def __init__(self) -> None:
        self.said: list[bool] = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        self.said.append(self.parser.should_keep_alive())


def test_keep_alive_is_what_the_parser_says_at_the_end() -> None:
    """Read when the head is complete, it equals what the parser says in on_message_complete."""
    for case in CASES:
        if case.outcome != "complete" or case.method == b"HEAD" or case.is_closed_after:
            continue
        watch = Watch()
        try:
            watch.parser.feed_data(case.raw)
        except httptools.HttpParserError:
            pass  # poison behind it
        assert watch.said[len(case.informational) + case.name.count("good-100")] is (case.fate != "closed"), case.name


def test_head_limit_is_exact() -> None:
    """A head of exactly the limit passes, one byte more does not, in one read or many."""
    frame = b"HTTP/1.1 204 N\r\nX: %b\r\n\r\n"
    room = MAX_RESPONSE_HEADER_BYTES - len(frame % b"")
    for extra, outcome in ((0, "complete"), (1, "too_large_head")):
        raw = frame % (b"a" * (room + extra))
        assert read([raw]).outcome == outcome
        assert read(cut(raw, list(range(0, len(raw), 1_000)))).outcome == outcome


def test_bodies_are_not_copied() -> None:
    """A read that holds nothing but body is handed on as the very same object."""
    reader = ResponseReader()
    reader.begin(False)
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
    data = b"x" * 1_000
    reader.feed(data)
    assert reader.body is data
    reader.feed(data)
    assert reader.body is data
    assert reader.is_complete


def test_chunks_of_one_read_are_one_body() -> None:
    """Many small chunks in one read are told once."""
    reader = ResponseReader()
    reader.begin(False)
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50)
    assert reader.body == b"a" * 50
    reader.feed(b"1\r")
    assert reader.body == b""
    assert not reader.is_complete


def test_anything_after_the_end_is_extra() -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 204 N\r\n\r\n")
    assert reader.is_complete
    assert not reader.has_extra
    reader.feed(b"\r\n")
    assert reader.has_extra
    assert reader.body == b""
    assert not reader.eof()


def known(raw: bytes) -> ResponseReader:
    """A reader that is to read another response, after one with the same head was read by another."""
    read([raw])
    reader = ResponseReader()
    reader.begin(False)
    return reader


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_whole_response_with_a_known_head_is_what_it_was_read_as(case: Case) -> None:
    """Recognised only where reading it says: complete, to the byte, without anything before it. Then it is the same."""
    reader = known(case.raw)
    head = reader.whole(case.raw)
    seen = read([case.raw])
    if head is None:
        assert reader.is_untouched
        return
    assert (seen.outcome, seen.informational) == ("complete", [])
    assert seen.fate == ("reused" if reader.is_keep_alive else "closed")
    assert seen.head is head
    assert reader.body == seen.body
    assert reader.whole(case.raw) is head, "and is ready for the next one"


def test_usual_responses_are_recognised() -> None:
    """With a length, with the length 0, without a body; one after the other in any order."""
    raws = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n",
    ]
    for raw in raws:
        read([raw])
    reader = ResponseReader()
    for raw in raws + raws[::-1]:
        head = reader.whole(raw)
        assert head is not None
        assert head.raw + reader.body == raw


def test_what_is_not_all_of_a_response_is_not_recognised() -> None:
    """Less, more, never seen, of a HEAD, after an upgrade was asked for, behind the beginning of another read."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Seen: yes\r\n\r\nabc"
    for other in (raw[:-1], raw + b"d", raw + raw, raw[:-3], raw[1:], raw.replace(b"yes", b"no!"), b""):
        assert known(raw).whole(other) is None
    of_head = known(raw)
    of_head.begin(True)
    assert of_head.whole(raw) is None
    upgrading = known(raw)
    upgrading.may_upgrade = True
    assert upgrading.whole(raw) is None
    for begun in (b"HTTP/1.1", b"HTTP/1.1 100 Continue\r\n\r\nH", raw[:-1], raw):
        reader = known(raw)
        reader.feed(begun)
        assert reader.whole(raw) is None
