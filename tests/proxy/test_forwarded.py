"""Who the client is, and what the upstream is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.forwarded import Trust, client_of, peer_lines, trusted_lines, untrusted_lines
from proxy.head import Head, normalise

TRUST = Trust(["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"])


def head(*fields: tuple[bytes, bytes]) -> Head:
    return normalise(b"GET", b"/", "1.1", [(b"Host", b"h.example"), *fields], True, 0)


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ((), "127.0.0.1"),
        (((b"X-Forwarded-For", b"1.2.3.4"),), "1.2.3.4"),
        (((b"X-Forwarded-For", b"6.6.6.6, 1.2.3.4, 10.0.0.9"),), "1.2.3.4"),
        (((b"X-Forwarded-For", b"6.6.6.6"), (b"X-Forwarded-For", b"1.2.3.4")), "1.2.3.4"),
        (((b"X-Forwarded-For", b"10.1.1.1, 10.0.0.9"),), "10.1.1.1"),
        (((b"X-Forwarded-For", b"rubbish, 10.0.0.9"),), "10.0.0.9"),
        (((b"X-Forwarded-For", b"[2001:db8::1]:99"),), "2001:db8::1"),
        (((b"X-Forwarded-For", b"1.2.3.4:99"),), "1.2.3.4"),
        (((b"Forwarded", b'for="[2001:db8::1]:99";proto=https, for=10.0.0.1'),), "2001:db8::1"),
        (((b"Forwarded", b"for=6.6.6.6"), (b"X-Forwarded-For", b"1.2.3.4")), "1.2.3.4"),
        (((b"Forwarded", b"for=_hidden"),), "127.0.0.1"),
    ],
)
def test_client_behind_trusted_proxies(fields: tuple[tuple[bytes, bytes], ...], client: str) -> None:
    """From the right, past trusted hops; Forwarded only without X-Forwarded-For."""
    assert client_of(head(*fields), "127.0.0.1", TRUST) == client


def test_untrusted_peer_replaces() -> None:
    lines = untrusted_lines(b"h.example", peer_lines("9.9.9.9", "http"))
    assert lines == (
        b"x-forwarded-for: 9.9.9.9\r\nx-forwarded-proto: http\r\nx-forwarded-host: h.example\r\n"
        b"forwarded: for=9.9.9.9;proto=http;host=h.example\r\n"
    )
    with_port = untrusted_lines(b"h:1", peer_lines("2001:db8::1", "http"))
    assert b'forwarded: for="[2001:db8::1]";proto=http;host="h:1"\r\n' in with_port


def test_trusted_peer_continues() -> None:
    got = trusted_lines(
        head((b"X-Forwarded-For", b"1.2.3.4"), (b"X-Forwarded-Proto", b"https"), (b"Forwarded", b"for=1.2.3.4")),
        "10.0.0.1",
        "http",
    )
    assert b"x-forwarded-for: 1.2.3.4, 10.0.0.1\r\n" in got
    assert b"x-forwarded-proto: https\r\n" in got
    assert b'forwarded: for=1.2.3.4, for=10.0.0.1;proto=http;host="h.example"\r\n' in got


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\r" not in b and b"\n" not in b), max_size=4))
def test_any_chain_gives_an_address(values: list[bytes]) -> None:
    """Whatever stands in the fields, the answer is a valid address and never an exception."""
    import ipaddress

    for name in (b"X-Forwarded-For", b"Forwarded"):
        ipaddress.ip_address(client_of(head(*((name, value) for value in values)), "127.0.0.1", TRUST))
