"""Which fields are the client's, and what of a head is said to the driver. The refusals are in the corpus."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.reader import ResponseReader
from proxy.upstream.response import Field, ResponseHead, end_to_end, read_head
from shared.errors import UpstreamFailed


def head(*fields: Field, line: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    raw = b"\r\n".join([line, *(b"%b: %b" % field for field in fields), b"", b""])
    return read_head(raw)


def parsed(raw: bytes) -> ResponseHead:
    reader = ResponseReader()
    reader.feed(raw)
    assert reader.head is not None
    return reader.head


class TestEndToEnd:
    """RFC 9110 7.6.1."""

    def test_hop_by_hop_fields_go(self) -> None:
        gone = [b"Connection", b"Keep-Alive", b"TE", b"Trailer", b"Transfer-Encoding", b"Upgrade"]
        gone += [b"Proxy-Connection", b"Proxy-Authenticate", b"proxy-anything"]
        fields = [(name, b"x") for name in gone] + [(name.upper(), b"x") for name in gone] + [(b"A", b"1")]
        assert end_to_end(fields) == [(b"A", b"1")]

    def test_what_connection_names_goes(self) -> None:
        fields = [(b"X-Secret", b"1"), (b"Connection", b"close, X-SECRET ,\tx-b"), (b"x-secret", b"2"), (b"X-B", b"3")]
        assert end_to_end([*fields, (b"X-C", b"4")]) == [(b"X-C", b"4")]

    def test_every_connection_field_counts(self) -> None:
        fields = [(b"connection", b"a"), (b"CONNECTION", b"b"), (b"A", b"1"), (b"B", b"2"), (b"C", b"3")]
        assert end_to_end(fields) == [(b"C", b"3")]

    def test_content_length_stays_even_when_named(self) -> None:
        fields = [(b"Connection", b"content-length"), (b"Content-Length", b"3")]
        assert end_to_end(fields) == [(b"Content-Length", b"3")]

    def test_order_spelling_and_duplicates_stay(self) -> None:
        fields = [(b"set-cookie", b"a"), (b"Set-Cookie", b"b"), (b"X_u", b""), (b"set-cookie", b"a")]
        kept = end_to_end(fields)
        assert kept == fields
        assert kept is not fields

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"Connection", b"connection", b"A", b"b", b"C-D", b"Keep-Alive", b"te", b"Upgrade"]),
                st.sampled_from([b"close", b"a", b"B, c-d", b"keep-alive", b"", b",, a ,", b"te"]),
            )
        )
    )
    def test_it_is_what_the_definition_says(self, fields: list[Field]) -> None:
        """The cached version equals the naive one, whatever was asked before."""
        named = {b"connection", b"keep-alive", b"te", b"upgrade"}
        for name, value in fields:
            if name.lower() == b"connection":
                named |= {token.strip().lower() for token in value.split(b",")}
        assert end_to_end(fields) == [field for field in fields if field[0].lower() not in named]

    def test_a_flood_of_spellings_does_not_fill_memory(self) -> None:
        from proxy.upstream import response

        for number in range(3_000):
            end_to_end([(b"X-%d" % number, b"1"), (b"Connection", b"x-%d" % number)])
        assert len(response._meanings) <= 1_024
        assert len(response._named) <= 1_024
        assert end_to_end([(b"X-5000", b"1"), (b"Connection", b"x-5000"), (b"TrAiLeR", b"x"), (b"Y-1", b"")]) == [
            (b"Y-1", b"")
        ]


class TestLines:
    """The block of lines says what `end_to_end` says."""

    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            (b"", b""),
            (b"A: 1\r\nb:2\r\n", b"A: 1\r\nb:2\r\n"),
            (b"Connection: keep-alive\r\n", b""),
            (b"A: 1\r\nConnection: keep-alive\r\nB: 2\r\n", b"A: 1\r\nB: 2\r\n"),
            (b"Connection: close\r\nKeep-Alive: 5\r\nA: 1\r\nTransfer-Encoding: chunked\r\n", b"A: 1\r\n"),
            (b"Connection: close\r\nConnection: close\r\nA: 1\r\n", b"A: 1\r\n"),
            (b"Connection:close\r\nA:  1\r\n", b"A:  1\r\n"),
            (b"x-correlation-id: 7\r\nA: 1\r\n", b"A: 1\r\n"),
            (b"X-B: 1\r\nConnection: x-b\r\nA: 1\r\n", b"A: 1\r\n"),
            (b"X-Connection: close\r\nConnection: close\r\n", b"X-Connection: close\r\n"),
            (b"A: Connection: close\r\nConnection: close\r\n", b"A: Connection: close\r\n"),
            (b"Connection: close\r\nContent-Length: 0\r\n", b"Content-Length: 0\r\n"),
        ],
    )
    def test_examples(self, sent: bytes, kept: bytes) -> None:
        seen = parsed(b"HTTP/1.1 200 OK\r\n" + sent + b"\r\n")
        assert seen.lines() == kept

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([b"Connection", b"A", b"b", b"X-Connection", b"Keep-Alive", b"Upgrade"]),
                st.sampled_from([b": ", b":", b":  ", b": \t"]),
                st.sampled_from([b"close", b"a", b"B", b"keep-alive", b"", b"Connection: close", b"x "]),
            ),
            max_size=8,
        )
    )
    def test_it_is_what_end_to_end_says(self, lines: list[tuple[bytes, bytes, bytes]]) -> None:
        sent = b"".join(name + colon + value + b"\r\n" for name, colon, value in lines)
        seen = parsed(b"HTTP/1.1 200 OK\r\n" + sent + b"Content-Length: 0\r\n\r\n")
        again = parsed(b"HTTP/1.1 200 OK\r\n" + seen.lines() + b"\r\n")
        assert again.headers == end_to_end(seen.headers)


class TestFields:
    """llhttp is not asked for the fields; what is found without it is what it would have said."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [
                        b"Content-Length",
                        b"content-lengthX",
                        b"X",
                        b"Te",
                        b"TE",
                        b"t",
                        b"Proxy-X",
                        b"proxy",
                        b"Upgrade",
                        b"Connection",
                        b"cONNECTION",
                        b"Connections",
                        b"Trailer",
                        b"Keep-Alive",
                        b"Set-Cookie",
                        b"A_b",
                    ]
                ),
                st.sampled_from([b":", b": ", b":\t ", b":  "]),
                st.sampled_from([b"", b"1", b"a:b", b"connection: close", b"\xff", b"a, b", b"\ttab\t", b"1 ", b":"]),
            ),
            max_size=8,
        )
    )
    def test_they_are_what_llhttp_says(self, lines: list[tuple[bytes, bytes, bytes]]) -> None:
        raw = b"HTTP/1.1 304 OK\r\n" + b"".join(b"%b%b%b\r\n" % line for line in lines) + b"\r\n"
        said: list[Field] = []

        class Watch:
            def on_header(self, name: bytes, value: bytes) -> None:
                said.append((name, value.strip(b" \t")))

        try:
            httptools.HttpResponseParser(Watch()).feed_data(raw)
            seen = read_head(raw)
        except (httptools.HttpParserError, UpstreamFailed):
            return
        assert seen.headers == said
        assert seen.headers is seen.headers
        hop_by_hop = {b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-x"}
        special = [(name, value) for name, value in said if name.lower() in hop_by_hop]
        assert [(name, value.strip(b" \t")) for name, value in seen.hop_by_hop] == special
        assert seen.is_plain is (special == [])
        lengths = [int(value) for name, value in said if name.lower() == b"content-length"]
        assert seen.content_length == (lengths[0] if lengths else None)


class TestReadHead:
    def test_length(self) -> None:
        seen = head((b"Content-Length", b"12"))
        assert (seen.status, seen.reason, seen.http_1_0) == (200, b"OK", False)
        assert (seen.content_length, seen.is_chunked, seen.has_body, seen.is_plain) == (12, False, True, True)
        assert seen.raw == b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"
        assert "length=12" in str(seen)

    def test_chunked_is_not_plain(self) -> None:
        seen = head((b"Transfer-Encoding", b"chunked"))
        assert (seen.content_length, seen.is_chunked, seen.is_plain) == (None, True, False)
        assert "chunked" in str(seen)

    @pytest.mark.parametrize("name", [b"Connection", b"keep-alive", b"Upgrade", b"Proxy-Connection", b"TRAILER"])
    def test_hop_by_hop_is_not_plain(self, name: bytes) -> None:
        assert not head((name, b"x")).is_plain

    @pytest.mark.parametrize("status", [204, 304])
    def test_no_body_by_status(self, status: int) -> None:
        seen = head((b"Content-Length", b"5"), line=b"HTTP/1.1 %d X" % status)
        assert not seen.has_body
        assert seen.content_length == 5

    def test_http_1_0(self) -> None:
        assert head(line=b"HTTP/1.0 200 OK").http_1_0

    def test_status_lines_are_cached_by_their_bytes(self) -> None:
        """Same status, other reason: told as sent."""
        for _ in range(2):
            assert head(line=b"HTTP/1.1 299 One").reason == b"One"
            assert head(line=b"HTTP/1.1 299 Two").reason == b"Two"

    def test_a_refused_status_line_is_not_cached(self) -> None:
        for _ in range(2):
            with pytest.raises(UpstreamFailed):
                head(line=b"HTTP/1.1 200 \x07")

    @pytest.mark.parametrize(
        "fields",
        [
            [(b"Content-Length", b"x")],
            [(b"Content-Length", b"")],
            [(b"Content-Length", b"1"), (b"content-length", b"1")],
            [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
            [(b"Transfer-Encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        ],
    )
    def test_framing_is_refused_here_too(self, fields: list[Field]) -> None:
        """What llhttp refuses today would be refused without it."""
        with pytest.raises(UpstreamFailed):
            head(*fields)
