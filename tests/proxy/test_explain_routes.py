"""Every route's reason: never another result than the table's, and the reason that decided."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.explain_head import read
from proxy.explain_routes import Standing, standings
from proxy.head import Head
from proxy.routing import RoutingTable
from shared.config.schema import Server
from shared.config.schema_routes import Match, Route
from shared.errors import RequestRefused

HOSTS = ("a.example.com", "b.a.example.com", "*.example.com", "*.a.example.com", "[::1]")
PATHS = ("/", "/v1", "/v1/", "/v1/x", "/w;p")


def head_of(method: str, target: str, host: str) -> Head:
    reading = read(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), Server())
    assert reading.head is not None, reading.refusal
    return reading.head


def route(name: str, *hosts: str, path: str = "/", methods: tuple[str, ...] = ()) -> Route:
    return Route(name, "up", match=Match(hosts, path, methods))


def reasons(routes: list[Route], method: str, target: str, host: str) -> dict[str, str]:
    """Route -> why, the chosen one's with a plus in front."""
    _, _, found = standings(routes, head_of(method, target, host))
    return {one.route: "+" * one.is_chosen + one.why for one in found}


def test_each_reason() -> None:
    routes = [
        route("exact", "a.example.com", path="/v1"),
        route("methods", "a.example.com", path="/v1/x", methods=("GET", "POST")),
        route("same", "a.example.com", path="/v1/x"),
        route("wild", "*.example.com", path="/v1/x"),
        route("any", path="/v1/x"),
        route("other", "c.example.com", "*.c.example.com"),
        route("deep", path="/v1/x/y/z"),
        route("segment", path="/v1/xx"),
    ]
    assert reasons(routes, "GET", "/v1/x/y", "A.Example.com:8080") == {
        "exact": "less specific: /v1; methods has /v1/x",
        "methods": "+a.example.com, /v1/x, GET, POST",
        "same": "less specific: any method; methods has GET, POST",
        "wild": "less specific: *.example.com; methods has a.example.com",
        "any": "less specific: any host; methods has a.example.com",
        "other": "host: only c.example.com, *.c.example.com",
        "deep": "path: not /v1/x/y/z or below it",
        "segment": "path: not /v1/xx or below it",
    }


def test_405_names_the_route_and_its_methods() -> None:
    """The others do not get it, wider as they may be."""
    routes = [route("any"), route("api", path="/v1", methods=("GET",)), route("post", path="/v1/x", methods=("POST",))]
    chosen, refusal, _ = standings(routes, head_of("DELETE", "/v1/x", "h"))
    assert chosen == 2
    assert refusal is not None
    assert refusal.status == 405
    assert reasons(routes, "DELETE", "/v1/x", "h")["post"] == "+any host, /v1/x, but only POST"
    assert reasons(routes, "DELETE", "/v1/x", "h")["any"] == "less specific: /; post has /v1/x"


def test_404() -> None:
    assert reasons([route("a", "a.example.com")], "GET", "/", "h") == {"a": "host: only a.example.com"}
    assert standings([], head_of("GET", "/", "h"))[2] == []


def test_an_ambiguous_path() -> None:
    routes = [route("any"), route("admin", path="/admin")]
    for target in ("//admin", "/admin;x"):
        chosen, refusal, _ = standings(routes, head_of("GET", target, "h"))
        assert chosen is None
        assert refusal is not None
        assert refusal.status == 400
        found = reasons(routes, "GET", target, "h")
        assert found["any"] == "fits, but the request is refused"
        assert found["admin"] == "path: /admin fits one way to read it and not the other"


def test_wildcards_by_the_longest() -> None:
    routes = [route("short", "*.example.com"), route("long", "*.example.com", "*.a.example.com"), route("any")]
    assert reasons(routes, "GET", "/", "b.a.example.com") == {
        "short": "less specific: *.example.com; long has *.a.example.com",
        "long": "+*.a.example.com, /, any method",
        "any": "less specific: any host; long has *.a.example.com",
    }
    assert reasons(routes, "GET", "/", "example.com")["short"] == "host: only *.example.com"


def test_an_ipv6_literal_and_options_star() -> None:
    assert reasons([route("six", "[::1]"), route("any")], "GET", "/", "[::1]:80")["six"] == "+[::1], /, any method"
    routes = [route("any"), route("deep", path="/v1")]
    assert reasons(routes, "OPTIONS", "*", "h") == {
        "any": "+any host, /, any method",
        "deep": "path: not /v1 or below it",
    }


matches = st.builds(
    Match,
    st.lists(st.sampled_from(HOSTS), max_size=3, unique=True).map(tuple),
    st.sampled_from(PATHS),
    st.sampled_from([(), ("GET",), ("POST", "PUT")]),
)


def rank(match: Match) -> list[tuple[str, str, bool]]:
    """What `wardgate check` refuses two routes to share."""
    return [(host, match.path_prefix, bool(match.methods)) for host in match.hosts or ("",)]


@given(
    st.lists(matches, max_size=6),
    st.sampled_from(["GET", "PUT", "DELETE"]),
    st.sampled_from(["/", "/v1", "/v1/x", "/v1/x/y", "/v10", "//v1", "/w", "/w;p", "/w;q/x"]),
    st.sampled_from(["a.example.com", "b.a.example.com", "x.b.a.example.com", "example.com", "[::1]", "h"]),
)
def test_always_the_tables_result(kept: list[Match], method: str, target: str, host: str) -> None:
    seen: set[tuple[str, str, bool]] = set()
    routes = []
    for match in kept:
        if not seen & set(rank(match)):
            seen |= set(rank(match))
            routes.append(Route(f"r{len(routes)}", "up", match=match))
    head = head_of(method, target, host)
    expected: int | RequestRefused
    try:
        expected = RoutingTable(routes).choose(head.host_name, head.path, head.method)
    except RequestRefused as raised:
        expected = raised
    chosen, refusal, found = standings(routes, head)
    assert [one.route for one in found] == [one.name for one in routes]
    marked = [index for index, one in enumerate(found) if one.is_chosen]
    if isinstance(expected, int):
        assert (chosen, refusal) == (expected, None)
        assert marked == [expected]
    else:
        assert refusal is not None
        assert (refusal.status, refusal.reason, refusal.allow) == (expected.status, expected.reason, expected.allow)
        assert marked == ([] if chosen is None else [chosen])
        assert (chosen is not None) == (expected.status == 405)
    if chosen is not None:
        assert found[chosen].fits
        assert all(one.why.startswith(("host: ", "path: ", "less specific: ")) for one in others(found))


def others(found: list[Standing]) -> list[Standing]:
    return [one for one in found if not one.is_chosen]
