"""Which WebSocket handshakes are believed, of clients and of upstreams."""

import pytest

from proxy.head import Field, Head, normalise
from proxy.upgrade import Deflate, Upgrade, accept_of, check_answer, decodable, read_upgrade
from proxy.upstream.response import ResponseHead, read_head
from shared.errors import RequestRefused, UpstreamFailed

EXTENSION = b"Sec-WebSocket-Extensions: permessage-deflate"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 1.3
ASKS: list[Field] = [
    (b"Host", b"a"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Sec-WebSocket-Key", KEY),
    (b"Sec-WebSocket-Version", b"13"),
]


def asked(*more: Field, without: bytes = b"", method: bytes = b"GET", version: str = "1.1") -> Head:
    fields = [field for field in ASKS if field[0] != without] + list(more)
    return normalise(method, b"/chat", version, fields, True, 0)


def answer(*lines: bytes, without: bytes = b"", first: bytes = b"HTTP/1.1 101 Switching Protocols") -> ResponseHead:
    common = [b"Upgrade: WebSocket", b"Connection: upgrade", b"Sec-WebSocket-Accept: " + accept_of(KEY)]
    kept = [line for line in common if not without or not line.startswith(without)]
    return read_head(b"\r\n".join((first, *kept, *lines, b"", b"")))


def test_the_example_of_the_rfc() -> None:
    assert accept_of(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class TestRequest:
    def test_what_was_asked_for(self) -> None:
        head = asked(
            (b"Sec-WebSocket-Protocol", b"chat, superchat"),
            (b"sec-websocket-protocol", b"v2"),
            (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits, x-webkit"),
        )
        assert head.is_websocket
        assert read_upgrade(head) == Upgrade(
            KEY,
            frozenset((b"chat", b"superchat", b"v2")),
            (("permessage-deflate", [("client_max_window_bits", None)]), ("x-webkit", [])),
        )

    def test_only_of_http_1_1(self) -> None:
        """RFC 9110 7.8: a server ignores Upgrade in HTTP/1.0."""
        assert not asked(version="1.0").is_websocket

    def test_only_where_connection_says_so(self) -> None:
        assert not asked((b"Connection", b"close"), without=b"Connection").is_websocket

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (asked(method=b"POST"), 400),
            (asked((b"Content-Length", b"3")), 400),
            (asked((b"Content-Length", b"0")), 400),
            (asked((b"Transfer-Encoding", b"chunked")), 400),
            (asked(without=b"Sec-WebSocket-Key"), 400),
            (asked((b"Sec-WebSocket-Key", KEY)), 400),
            (asked((b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ"), without=b"Sec-WebSocket-Key"), 400),
            (asked((b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZQ=="), without=b"Sec-WebSocket-Key"), 400),
            (asked(without=b"Sec-WebSocket-Version"), 426),
            (asked((b"Sec-WebSocket-Version", b"8"), without=b"Sec-WebSocket-Version"), 426),
            (asked((b"Sec-WebSocket-Extensions", b"a;;b")), 400),
        ],
    )
    def test_refused(self, head: Head, status: int) -> None:
        with pytest.raises(RequestRefused) as refused:
            read_upgrade(head)
        assert refused.value.status == status

    def test_empty_list_elements_are_none(self) -> None:
        assert read_upgrade(asked((b"Sec-WebSocket-Extensions", b", ,"))).extensions == ()

    def test_of_the_offers_only_what_can_be_decoded_goes_on(self) -> None:
        head = asked((b"Sec-WebSocket-Extensions", b'x-a, permessage-deflate; server_max_window_bits="10"'))
        fields = decodable(head.kept, read_upgrade(head))
        assert fields[-1] == (b"sec-websocket-extensions", b"permessage-deflate; server_max_window_bits=10")
        assert [name for name, _ in fields].count(b"Sec-WebSocket-Extensions") == 0
        head = asked((b"Sec-WebSocket-Extensions", b"x-a"))
        assert not [f for f in decodable(head.kept, read_upgrade(head)) if b"extensions" in f[0].lower()]


class TestAnswer:
    upgrade = read_upgrade(
        asked((b"Sec-WebSocket-Extensions", b"permessage-deflate, x-a"), (b"Sec-WebSocket-Protocol", b"v1, v2"))
    )

    def test_a_plain_one(self) -> None:
        assert check_answer(answer(), self.upgrade, is_decoded=True) is None
        assert check_answer(answer(b"Sec-WebSocket-Protocol: v2"), self.upgrade, is_decoded=False) is None

    def test_what_was_accepted(self) -> None:
        response = answer(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9")
        assert check_answer(response, self.upgrade, is_decoded=True) == Deflate(server_max_window_bits=9)
        response = answer(b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover")
        assert check_answer(response, self.upgrade, is_decoded=True) == Deflate(client_no_context_takeover=True)

    def test_in_a_tunnel_any_extension_that_was_offered(self) -> None:
        assert check_answer(answer(b"Sec-WebSocket-Extensions: x-a; b=1"), self.upgrade, is_decoded=False) is None

    @pytest.mark.parametrize(
        ("response", "is_decoded"),
        [
            (answer(first=b"HTTP/1.0 101 x"), False),
            (answer(without=b"Upgrade"), False),
            (answer(b"Upgrade: h2c", without=b"Upgrade"), False),
            (answer(without=b"Connection"), False),
            (answer(without=b"Sec-WebSocket-Accept"), False),
            (answer(b"Sec-WebSocket-Accept: x", without=b"Sec-WebSocket-Accept"), False),
            (answer(b"Sec-WebSocket-Accept: " + accept_of(KEY)), False),
            (answer(b"Transfer-Encoding: chunked"), False),
            (answer(b"Content-Length: 3"), False),
            (answer(b"Sec-WebSocket-Protocol: v3"), False),
            (answer(b"Sec-WebSocket-Protocol: v1, v2"), False),
            (answer(b"Sec-WebSocket-Protocol: v1", b"Sec-WebSocket-Protocol: v2"), False),
            (answer(b"Sec-WebSocket-Extensions: x-b"), False),
            (answer(b"Sec-WebSocket-Extensions: ;"), False),
            (answer(b"Sec-WebSocket-Extensions: x-a"), True),  # was not passed on
            (answer(b"Sec-WebSocket-Extensions: permessage-deflate, permessage-deflate"), True),
            (answer(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=16"), True),
            (answer(b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits"), True),
            (answer(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=9"), True),
            (answer(b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover=1"), True),
            (answer(b"Sec-WebSocket-Extensions: permessage-deflate; x"), True),
            (answer(EXTENSION + b"; x; x"), True),
            (answer(EXTENSION + b"; client_no_context_takeover" * 2), True),
        ],
    )
    def test_not_believed(self, response: ResponseHead, is_decoded: bool) -> None:
        with pytest.raises(UpstreamFailed) as failed:
            check_answer(response, self.upgrade, is_decoded=is_decoded)
        assert (failed.value.status, failed.value.reason) == (502, "bad_upgrade")
