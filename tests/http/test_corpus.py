"""Every case of this folder against the real listener, and what reaches the upstream, byte by byte."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.corpus import Answer, Case, Client, Upstream, cases, one_chunk, pieces
from tests.product import Proxy, proxy_config
from tests.support import wait_until

CASES = cases()
# As written, in small pieces, byte by byte: the parser's view must not depend on the network's.
SPLITS = {"whole": 1 << 30, "pieces": 7, "bytes": 1}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxy(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    config = proxy_config(
        upstream.address,
        server={"trusted_proxies": [], "max_body_bytes": 1000},
        routes=[
            {"name": "any", "upstream": "up"},
            {"name": "posts", "upstream": "up", "match": {"path_prefix": "/posts", "methods": ["POST"]}},
        ],
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as made:
        yield made


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.path.relative_to(Path(__file__).parent))[:-5])
def test_case(case: Case, split: str, proxy: Proxy, upstream: Upstream) -> None:
    with Client(proxy.address) as client:
        for segment in case.segments:
            for piece in pieces(segment, SPLITS[split]):
                if not client.send(piece):
                    break  # refused before it was all sent: the answer tells
        answers = [client.answer(is_head="head" in case.flags) for _ in case.statuses]
        assert [answer.status for answer in answers] == case.statuses, (case.claim, answers)
        for line in case.fields:
            assert line.encode().lower() in answers[-1].head.lower(), case.claim
        if "closed" in case.flags:
            assert client.is_closed(), case.claim
        if "open" in case.flags:
            client.send(SYNC)
            assert client.answer().status == 200, f"connection is not usable after: {case.claim}"
    if answers[-1].status >= 400:
        one_log_line(proxy, answers[-1])
    seen, aborted = reached(proxy, upstream)
    if case.upstream == b"nothing":
        assert not seen, case.claim
        assert not aborted, case.claim
    elif case.upstream == b"aborted":
        assert not seen, case.claim
    else:
        got = b"".join(map(one_chunk, seen))
        assert re.fullmatch(case.upstream, got), f"{case.claim}\nwant {case.upstream!r}\n got {got!r}"


def one_log_line(proxy: Proxy, answer: Answer) -> None:
    """A refusal is logged once, with the correlation id that its client got."""
    found = re.search(rb"x-correlation-id: (\S+)", answer.head)
    assert found
    quoted = f'"{found[1].decode()}"'
    wait_until(lambda: quoted in proxy.child.output(), what=f"a log line with {quoted}")
    assert proxy.child.output().count(quoted) == 1


SYNC = b"GET /sync HTTP/1.1\r\nHost: a\r\n\r\n"


def reached(proxy: Proxy, upstream: Upstream) -> tuple[list[bytes], list[bytes]]:
    """What the upstream got since the last call, whole and cut. A request of our own tells that all is there."""
    with Client(proxy.address) as client:
        client.send(SYNC)
        assert client.answer().status == 200
    seen = [message for message in upstream.seen if not message.startswith(b"GET /sync ")]
    aborted = upstream.aborted[:]
    upstream.seen.clear()
    upstream.aborted.clear()
    return seen, aborted
