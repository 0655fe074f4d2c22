"""The agent headers: what every preset does, what configuration and routes change, and https."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardgate_agent.testing import TestClient
from wardgate_agents.headers.agent import HeadersAgent
from wardgate_agents.headers.presets import PRESETS
from wardgate_agents.headers.rules import Plans
from wardgate_agents.headers.settings import HeadersSettings
from wardgate_agents.settings import ConfigRejected, settings_of


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(HeadersAgent) as made:
        yield made


HSTS = "strict-transport-security"


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets(client: TestClient, preset: Any) -> None:
    """What is set wins, what is a default gives way to the application, what tells too much goes."""
    client.configure({"preset": preset})
    plain = client.response_headers(200, {"Server": "x/1", "X-Powered-By": "y", "Content-Type": "text/html"})
    expected = {name.lower(): [value] for name, value in (*PRESETS[preset].set, *PRESETS[preset].default)}
    kept = {"content-type": ["text/html"]}
    if preset == "none":
        kept |= {"server": ["x/1"], "x-powered-by": ["y"]}
    assert plain.response_headers == {**kept, **expected}
    own = dict.fromkeys(("content-security-policy", "x-content-type-options", "referrer-policy"), "own")
    answer = client.response_headers(200, own).response_headers
    for name, _ in PRESETS[preset].default:
        assert answer.get(name.lower()) == (["own"] if name.lower() in own else expected[name.lower()])
    for name, value in PRESETS[preset].set:
        assert answer[name.lower()] == [value]


def test_strict_transport_security_is_for_https(client: TestClient) -> None:
    """Known from the request: TLS of its connection, or what a terminator in front says."""
    client.configure({"preset": "strict"})
    for headers, tls, has in (
        ({}, None, False),
        ({}, "TLSv1.3", True),
        ({"X-Forwarded-Proto": "https"}, None, True),
        ({"X-Forwarded-Proto": "HTTPS "}, None, True),
        ({"X-Forwarded-Proto": "http"}, None, False),
        ({"X-Forwarded-Proto": "http, https"}, None, False),
    ):
        metadata = {"tls_version": tls} if tls else {}
        answer = client.request_headers("GET", "/", headers, **metadata).assert_allowed()
        expected = {HSTS: ["max-age=63072000; includeSubDomains"]} if has else {}
        assert answer.response_headers == expected, headers
        assert HSTS not in client.response_headers(200).response_headers
    client.configure({"preset": "strict", "https": "always"})
    assert HSTS in client.response_headers(200).response_headers
    assert client.request_headers("GET", "/", {"X-Forwarded-Proto": "https"}).response_headers == {}
    client.configure({"preset": "strict", "https": "never"})
    assert HSTS not in client.response_headers(200).response_headers
    assert client.request_headers("GET", "/", {"X-Forwarded-Proto": "https"}).response_headers == {}


def test_the_value_of_strict_transport_security(client: TestClient) -> None:
    """The route's own, else its preset's, else the table's, else the table's preset's."""
    routes = {"own": {"hsts": "max-age=1"}, "none": {"hsts": ""}, "basic": {"preset": "basic"}, "same": {}}
    client.configure({"preset": "strict", "https": "always", "hsts": "max-age=2", "routes": routes})
    found = {
        route: client.response_headers(200, route_id=route).response_headers.get(HSTS) for route in (*routes, "other")
    }
    assert found == {
        "own": ["max-age=1"],
        "none": None,
        "basic": ["max-age=31536000"],
        "same": ["max-age=2"],
        "other": ["max-age=2"],
    }


def test_changes_of_the_table_and_of_a_route(client: TestClient) -> None:
    """What a later layer says about a field replaces what an earlier one said."""
    client.configure(
        {
            "preset": "basic",
            "response": {
                "set": {"X-A": "1", "X-B": "1"},
                "default": {"X-C": "1"},
                "add": {"Link": ["<a>", "<b>"]},
                "remove": ["Referrer-Policy"],
            },
            "request": {"set": {"X-Real": "yes", "Host": "inner"}, "add": {"X-Tag": "t"}, "remove": ["Cookie"]},
            "routes": {
                "api": {
                    "preset": "none",
                    "response": {"remove": ["x-a"], "default": {"X-B": "2"}, "set": {"X-C": "2"}},
                    "request": {"remove": ["X-Real"]},
                }
            },
        }
    )
    general = client.response_headers(200, {"X-B": "up", "X-C": "up", "Link": "<up>"}).response_headers
    assert general == {
        "x-a": ["1"],
        "x-b": ["1"],
        "x-c": ["up"],
        "link": ["<up>", "<a>", "<b>"],
        "x-content-type-options": ["nosniff"],
        "x-frame-options": ["SAMEORIGIN"],
    }
    api = client.response_headers(200, {"X-A": "up", "X-B": "up"}, route_id="api").response_headers
    assert api == {"x-b": ["up"], "x-c": ["2"], "link": ["<a>", "<b>"]}
    asked = {"Cookie": "a", "X-Tag": "s", "X-Real": "no"}
    request = client.request_headers("GET", "/", asked)
    assert request.request_headers == {"x-real": ["yes"], "x-tag": ["s", "t"], "host": ["inner"]}
    request = client.request_headers("GET", "/", asked, route_id="api")
    assert request.request_headers == {"x-tag": ["s", "t"], "host": ["inner"]}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"response": {"set": {"Connection": "x"}}}, "config.response.set: Connection is the proxy's own"),
        ({"response": {"remove": ["content-length"]}}, "config.response.remove: content-length is the proxy's own"),
        ({"response": {"set": {"Host": "x"}}}, "config.response.set: Host can only be set, and"),
        ({"request": {"remove": ["host"]}}, "config.request.remove: host can only be set, and"),
        ({"response": {"set": {"X": "1"}, "remove": ["x"]}}, "config.response.remove: x stands in config.response.set"),
        ({"response": {"remove": ["x", "X"]}}, "stands in config.response.remove as well"),
        ({"response": {"set": {"Strict-Transport-Security": "max-age=1"}}}, "say hsts = 'max-age=1' instead"),
        ({"routes": {"a": {"request": {"add": {"TE": "x"}}}}}, "config.routes.a.request.add: TE is the proxy's own"),
        ({"request": {"default": {}}}, "there is no key 'default'"),
        ({"response": {"set": {"X_Y": "1"}}}, "config.response.set: 'X_Y' is no header name"),
        ({"response": {"set": {"X-A": "a\r\nb"}}}, "config.response.set: X-A: 'a\\r\\nb' is no header value"),
        ({"hsts": "max-age=1\n"}, "config.hsts: 'max-age=1\\n' is no header value"),
        ({"routes": {"a": {"hsts": "\0"}}}, "config.routes: hsts: '\\x00' is no header value"),
        ({"response": {"add": {"X": []}}}, "config.response.add[...]: expected `array` of length >= 1"),
    ],
)
def test_configurations_that_are_rejected(client: TestClient, config: Any, says: str) -> None:
    client.configure({"preset": "strict"})
    with pytest.raises(ConfigRejected) as caught:
        client.configure(config)
    assert says in caught.value.message
    assert "content-security-policy" in client.response_headers(200).response_headers


def test_before_it_is_configured_it_decides_nothing(client: TestClient) -> None:
    client.request_headers().assert_error("not_configured")
    client.response_headers().assert_error("not_configured")


names = st.sampled_from(
    ["X-A", "x-b", "Server", "Content-Security-Policy", "Referrer-Policy", "Via", "X C", "é", "X\n"]
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "set": st.dictionaries(names, st.text(alphabet="ab;\n ", max_size=5)),
        "default": st.dictionaries(names, st.text(alphabet="ab", max_size=3)),
        "add": st.dictionaries(names, st.text(alphabet="ab", max_size=3) | st.lists(st.just("v"), max_size=2)),
        "remove": st.lists(names, max_size=3),
    },
)


@given(changes, changes, st.sampled_from([*PRESETS, "other"]), st.sets(names))
def test_any_configuration_makes_plans_or_a_message(general: Any, route: Any, preset: str, there: set[str]) -> None:
    """And what plans it makes have a verdict for any response, the same for the same fields."""
    try:
        plans = Plans(
            settings_of(HeadersSettings, {"preset": preset, "response": general, "routes": {"r": {"response": route}}})
        )
    except ConfigRejected as error:
        assert error.message.startswith("config")
        return
    fields = {name.lower(): ["x"] for name in there}
    for name in ("r", "other"):
        assert plans.of(name).on_response(True, fields) is plans.of(name).on_response(True, dict(fields))


def test_verdicts_are_made_once(client: TestClient) -> None:
    """Constant verdicts are not encoded again."""
    plans = Plans(settings_of(HeadersSettings, {"preset": "strict"}))
    plan = plans.of("x")
    assert plan.on_response(False, {}) is plan.on_response(False, {"content-type": ["x"]})
    assert plan.on_response(False, {}) is not plan.on_response(False, {"referrer-policy": ["x"]})
