"""Which route a request gets (semantics 14)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing import RoutingTable
from shared.config.schema_routes import Match, Route
from shared.errors import RequestRefused


def table(*routes: tuple[str, tuple[str, ...], str, tuple[str, ...]]) -> RoutingTable:
    return RoutingTable(
        [
            Route(name, "up", Match(hosts=hosts, path_prefix=prefix, methods=methods))
            for name, hosts, prefix, methods in routes
        ]
    )


ROUTES = table(
    ("any", (), "/", ()),
    ("any-api", (), "/api/", ()),
    ("wild", ("*.example.com",), "/", ()),
    ("deep-wild", ("*.b.example.com",), "/", ()),
    ("exact", ("a.example.com",), "/", ()),
    ("exact-v1", ("a.example.com",), "/v1", ()),
    ("exact-v1-get", ("a.example.com",), "/v1", ("GET", "HEAD")),
    ("exact-x", ("a.example.com",), "/v1/x/", ("POST",)),
)
NAMES = ["any", "any-api", "wild", "deep-wild", "exact", "exact-v1", "exact-v1-get", "exact-x"]


@pytest.mark.parametrize(
    ("host", "path", "method", "name"),
    [
        ("other.org", b"/", b"GET", "any"),
        ("", b"/", b"GET", "any"),
        ("other.org", b"/api/x", b"GET", "any-api"),
        ("other.org", b"/api", b"GET", "any"),
        ("z.example.com", b"/api/x", b"GET", "wild"),
        ("example.com", b"/", b"GET", "any"),
        ("z.b.example.com", b"/", b"GET", "deep-wild"),
        ("a.example.com", b"/v10", b"GET", "exact"),
        ("a.example.com", b"/v1", b"GET", "exact-v1-get"),
        ("a.example.com", b"/v1/x", b"HEAD", "exact-v1-get"),
        ("a.example.com", b"/v1/x/y", b"POST", "exact-x"),
        ("a.example.com", b"*", b"OPTIONS", "exact"),
    ],
)
def test_most_specific_wins(host: str, path: bytes, method: bytes, name: str) -> None:
    assert NAMES[ROUTES.choose(host, path, method)] == name


def test_methods_never_fall_through() -> None:
    """The winner by host and path decides: 405 with Allow, not a wider route."""
    with pytest.raises(RequestRefused) as caught:
        ROUTES.choose("a.example.com", b"/v1/x/y", b"GET")
    assert (caught.value.status, caught.value.allow) == (405, "POST")


def test_no_route() -> None:
    with pytest.raises(RequestRefused) as caught:
        table(("only", ("a",), "/x/", ())).choose("a", b"/y", b"GET")
    assert caught.value.status == 404


@pytest.mark.parametrize("path", [b"/v1//x/y", b"//v1", b"/v1;a/x/y", b"/v1/x;p/y"])
def test_ambiguous_path(path: bytes) -> None:
    """What merging // or cutting ;... would route elsewhere is refused, whichever way the upstream reads it."""
    with pytest.raises(RequestRefused) as caught:
        ROUTES.choose("a.example.com", path, b"POST")
    assert caught.value.status == 400


def test_harmless_double_slash_passes() -> None:
    assert NAMES[ROUTES.choose("other.org", b"/a//b;c", b"GET")] == "any"


@given(st.text("/ab;.", max_size=8).map(lambda t: b"/" + t.encode()), st.sampled_from(["a.example.com", "x.org", ""]))
def test_choice_does_not_depend_on_order_of_routes(path: bytes, host: str) -> None:
    """Specificity alone decides: the same routes listed backwards choose the same."""
    rows = [("any", (), "/", ()), ("a", (), "/a", ()), ("aa", (), "/a/a/", ()), ("h", ("a.example.com",), "/b/", ())]
    forward, backward = table(*rows), table(*reversed(rows))

    def choice(which: RoutingTable, names: list[str]) -> str:
        try:
            return names[which.choose(host, path, b"GET")]
        except RequestRefused as refusal:
            return str(refusal.status)

    assert choice(forward, [r[0] for r in rows]) == choice(backward, [r[0] for r in reversed(rows)])
