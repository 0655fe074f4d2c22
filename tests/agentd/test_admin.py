"""agentd/admin.py: who may read and change what, and what a request is answered."""

import json
from typing import Any

import pytest

from agentd.admin import ROUTES, Admin, Peer, Request, Response
from shared.wire import admin as wire
from tests.agentd.fake_state import BREAKER, FakeState

UNIX = Peer(True, uid=1000, pid=42)
TCP = Peer(False, address="127.0.0.1:5555")


def ask(
    state: FakeState, method: str, path: str, peer: Peer = UNIX, body: bytes = b"", token: str = "", **headers: str
) -> tuple[Response, Any]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = Admin(state, token).handle(Request(method, path, {"host": "localhost", **names}, peer, body))
    text = response.body if response.pieces is None else b"".join(response.pieces)
    return response, json.loads(text) if response.content_type == "application/json" else None


# --- what may be done ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "is_ready", "health", "ready"),
    [
        (wire.Status.HEALTHY, True, 200, 200),
        (wire.Status.DEGRADED, True, 200, 200),
        (wire.Status.UNHEALTHY, False, 503, 503),
    ],
)
def test_health_says_its_result_in_the_status(status: wire.Status, is_ready: bool, health: int, ready: int) -> None:
    """A load balancer looks at the status alone; degraded still serves."""
    state = FakeState()
    state.status, state.is_ready = status, is_ready
    assert ask(state, "GET", "/health")[0].status == health
    response, body = ask(state, "GET", "/health/ready")
    assert response.status == ready
    assert body["components"][0] == {
        "name": "agentd",
        "status": status,
        "message": "pid 1",
        "required": True,
        "latency_ms": None,
        "last_check": "",
    }
    assert ask(state, "GET", "/health/live")[1] == {"status": "live", "pid": 1, "uptime_s": 2.0}


@pytest.mark.parametrize("action", ["open", "close", "reset"])
def test_a_breaker_is_changed_over_the_unix_socket(action: str) -> None:
    """Its peers were admitted by uid; what was done is audited with who did it."""
    state = FakeState()
    response, body = ask(state, "POST", f"/api/breakers/waf/{action}")
    assert response.status == 200
    assert body["agent"] == "waf"
    assert state.changes == [("waf", action, wire.BreakerChange())]
    assert state.audited == [("uid 1000 pid 42", f"breaker.{action}", "waf", "closed")]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_numbers_are_changed_by_name(method: str) -> None:
    """What is absent stays as it is."""
    state = FakeState()
    assert ask(state, method, "/api/breakers/waf/set", body=b'{"failure_threshold": 9}')[0].status == 200
    assert state.changes == [("waf", "set", wire.BreakerChange(failure_threshold=9))]
    assert state.audited == [("uid 1000 pid 42", "breaker.set", "waf", '{"failure_threshold":9}')]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"failure_treshold": 9}', b'{"failure_threshold": "9"}', b"{", b"\xff"]
)
def test_a_change_that_cannot_be_understood_changes_nothing(body: bytes) -> None:
    """A mistyped name is an error, not a success without effect."""
    state = FakeState()
    response, problem = ask(state, "POST", "/api/breakers/waf/set", body=body)
    assert response.status == 400
    assert problem["error"]["code"] == "bad_request"
    assert problem["error"]["message"].startswith("body: ")
    assert state.changes == []
    assert state.audited == []


def test_an_unknown_agent_is_404_and_a_body_where_none_belongs_is_400() -> None:
    """Both say why."""
    state = FakeState()
    assert ask(state, "POST", "/api/breakers/vaf/open")[0].status == 404
    assert ask(state, "POST", "/api/breakers/waf/open", body=b'{"for": "ever"}')[0].status == 400


TOKEN = "correct horse"


@pytest.mark.parametrize(
    ("configured", "authorization", "status"),
    [
        ("", f"Bearer {TOKEN}", 403),
        (TOKEN, "", 401),
        (TOKEN, "Bearer wrong", 401),
        (TOKEN, f"Basic {TOKEN}", 401),
        (TOKEN, f"Bearer {TOKEN}x", 401),
        (TOKEN, "Bearer", 401),
        (TOKEN, "Bearer \xe4", 401),
        (TOKEN, f"Bearer {TOKEN}", 200),
        (TOKEN, f"bearer {TOKEN}", 200),
        ("t\xf6k\xe9n\xa0", "Bearer t\xf6k\xe9n\xa0", 200),
        ("t\xf6k\xe9n", "Bearer t\xc3\xb6k\xc3\xa9n", 401),
    ],
)
def test_a_change_over_tcp_needs_the_token(configured: str, authorization: str, status: int) -> None:
    """Without a configured token no change over TCP at all."""
    state = FakeState()
    response, _ = ask(state, "POST", "/api/breakers/waf/open", TCP, token=configured, authorization=authorization)
    assert response.status == status
    assert len(state.changes) == (status == 200)
    assert state.audited == ([("token from 127.0.0.1:5555", "breaker.open", "waf", "closed")] if status == 200 else [])
    assert (("www-authenticate", 'Bearer realm="wardgate"') in response.headers) == (status == 401)


@pytest.mark.parametrize("row", [row for row in ROUTES if not row.is_change], ids=lambda row: str(row.path))
def test_reading_over_tcp_is_open(row: Any) -> None:
    """Whoever can connect may look."""
    assert ask(FakeState(), "GET", row.path, TCP)[0].status == 200


@pytest.mark.parametrize("peer", [UNIX, TCP])
@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "same-site"}]
)
def test_a_web_page_changes_nothing(peer: Peer, headers: dict[str, str]) -> None:
    """Browsers send Origin with every POST of a page; nobody else does."""
    state = FakeState()
    response, _ = ask(
        state, "POST", "/api/breakers/waf/open", peer, token=TOKEN, authorization=f"Bearer {TOKEN}", **headers
    )
    assert response.status == 403
    assert state.changes == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9900", 200),
        ("127.0.0.1", 200),
        ("[::1]:9900", 200),
        ("10.0.0.7:9900", 200),
        ("evil.example:9900", 421),
        ("", 421),
        ("1.2.3.evil", 421),
    ],
)
def test_a_name_that_was_made_to_resolve_to_us_reads_nothing(host: str, status: int) -> None:
    """DNS rebinding: the page's own name stands in Host."""
    request = Request("GET", "/api/agents", {"host": host}, TCP, is_loopback=True)
    assert Admin(FakeState()).handle(request).status == status
    other = Request("GET", "/api/agents", {"host": host}, TCP, is_loopback=False)
    assert Admin(FakeState()).handle(other).status == 200, "on a public address its name is its own"


def test_http_1_0_names_no_host() -> None:
    """h11 wants Host from HTTP/1.1; what comes without one is no browser."""
    request = Request("GET", "/api/agents", {}, TCP, is_loopback=True)
    assert Admin(FakeState()).handle(request).status == 200


@pytest.mark.parametrize(
    ("deadline", "status"),
    [("101", 200), ("100", 408), ("99", 408), ("", 400), ("soon", 400), ("-5", 400), ("²", 400), ("9" * 5_000, 400)],
)
def test_a_change_past_its_deadline_is_not_made(deadline: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """The client has said by then that it failed; reading does no harm."""
    state = FakeState()
    admin = Admin(state, clock=lambda: 100)
    headers = {wire.DEADLINE: deadline}
    response = admin.handle(Request("POST", "/api/breakers/waf/open", headers, UNIX))
    assert response.status == status
    assert len(state.changes) == len(state.audited) == (status == 200)
    if status != 200:
        assert "admin change refused: POST /api/breakers/waf/open by uid 1000 pid 42" in caplog.text
    assert admin.handle(Request("GET", "/api/breakers", headers, UNIX)).status == 200


def test_a_change_whose_client_has_hung_up_is_not_made() -> None:
    """Nobody would learn of it."""
    state = FakeState()
    request = Request("POST", "/api/breakers/waf/open", {}, UNIX, is_gone=lambda: True)
    assert Admin(state).handle(request).status == 408
    assert state.changes == []


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/health/", 404, None),
        ("GET", "/api/breakers/waf", 404, None),
        ("POST", "/api/breakers/waf/explode", 404, None),
        ("POST", "/api/breakers/a/b/open", 404, None),
        ("POST", "/api/breakers/%ff/open", 400, None),
        ("POST", "/health", 405, "GET, HEAD"),
        ("DELETE", "/api/breakers", 405, "GET, HEAD"),
        ("GET", "/api/breakers/waf/open", 405, "POST"),
        ("PUT", "/api/breakers/waf/set", 405, "POST, PATCH"),
    ],
)
def test_unknown_paths_and_wrong_methods(method: str, path: str, status: int, allow: str | None) -> None:
    """404, or 405 with Allow, as JSON."""
    response, body = ask(FakeState(), method, path)
    assert response.status == status
    assert dict(response.headers).get("allow") == allow
    assert body["error"]["message"]


def test_an_agents_name_is_one_segment_decoded_once() -> None:
    """breaker_path quotes what the table takes apart again."""
    seen: list[str] = []

    class Names(FakeState):
        def change_breaker(self, agent: str, action: wire.BreakerAction, change: wire.BreakerChange) -> wire.Breaker:
            seen.append(agent)
            return BREAKER

    for name in ("waf", "a/b", "ä ?#%41", ".."):
        assert ask(Names(), "POST", wire.breaker_path(name, "open"))[0].status == 200
    assert seen == ["waf", "a/b", "ä ?#%41", ".."]


def test_a_defect_is_500_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the traceback, the client does not."""
    response, body = ask(FakeState(), "POST", "/api/breakers/explode/open")
    assert response.status == 500
    assert "ZeroDivisionError" not in str(body)
    assert "ZeroDivisionError" in caplog.text


# --- reloads and drains ----------------------------------------------------------------------------


async def finished(response: Response) -> tuple[int, Any]:
    assert response.later is not None
    made = await Admin(FakeState()).finish(response.later)
    return made.status, json.loads(made.body)


async def test_a_reload_is_answered_when_it_has_ended() -> None:
    """200 with how it went; 202 while it goes on; 409 with every problem."""
    state = FakeState()
    for reloaded, status in (
        (state.reloaded, 200),
        (wire.Reload("agentd", "d", is_under_way=True), 202),
        (wire.Reload("agentd", "d", result="refused", message="a", problems=("a: b", "c: d")), 409),
    ):
        state.reloaded = reloaded
        found, body = await finished(Admin(state).handle(Request("POST", "/api/reload", {}, UNIX)))
        assert found == status
        if status == 409:
            assert body["error"] == {"code": "conflict", "message": "a: b\nc: d"}
        else:
            assert body["under_way"] is (status == 202)
    response, body = ask(state, "GET", "/api/reload")
    assert (response.status, body["agentd"]["result"], body["proxy"]) == (200, "refused", None)
    assert ask(state, "POST", "/api/reload", body=b"{}")[0].status == 400
    assert ask(state, "POST", "/api/reload/proxy")[0].status == 409
    assert ask(state, "DELETE", "/api/reload")[0].headers == (("allow", "GET, POST, HEAD"),)
    assert ask(state, "POST", "/api/reload", TCP)[0].status == 403


async def test_what_goes_wrong_later_is_an_answer_too() -> None:
    async def explode() -> Response:
        raise ZeroDivisionError

    assert (await Admin(FakeState()).finish(explode)).status == 500


def test_a_drain_is_begun_and_audited() -> None:
    """Its body is checked; who asked is written down."""
    state = FakeState()
    response, body = ask(state, "POST", "/api/agents/waf/drain", body=b'{"instance":"i7","timeout_s":2.5,"force":true}')
    assert (response.status, body["drains"][0]["instance"]) == (200, "i7")
    assert state.drained == [("waf", wire.DrainRequest("i7", 2.5, True))]
    assert state.audited == [("uid 1000 pid 42", "agent.drain", "waf", "i7, within 2.5 s")]
    assert ask(state, "POST", "/api/agents/waf/drain")[0].status == 200
    assert state.drained[1] == ("waf", wire.DrainRequest())
    for bad in (b"{", b'{"timeout_s":-1}', b'{"instances":"i1"}'):
        assert ask(state, "POST", "/api/agents/waf/drain", body=bad)[0].status == 400
    assert ask(state, "POST", "/api/agents/none/drain")[0].status == 404
    assert ask(state, "GET", "/api/drains")[1] == {"drains": []}


def test_a_limit_is_changed_by_name_and_numbers() -> None:
    """The name's slash percent-encoded; audited; nothing given, unknown fields and bodies of a reset are refused."""
    state = FakeState()

    def post(path: str, body: bytes = b"") -> int:
        return ask(state, "POST", f"/api/limits/{path}", UNIX, body)[0].status

    assert post("r%2Fa/set", b'{"capacity": 5}') == 200
    assert post("r%2Fa/set", b'{"keep": true}') == 200
    assert post("r%2Fa/reset") == 200
    assert [(name, action, change.capacity) for name, action, change in state.limited[:1]] == [("r/a", "set", 5)]
    assert [audited[1:3] for audited in state.audited] == [("limit.set", "r/a")] * 2 + [("limit.reset", "r/a")]
    for path, body, status in (
        ("r%2Fa/set", b"{}", 400),
        ("r%2Fa/set", b'{"capacty": 5}', 400),
        ("r%2Fa/set", b'{"capacity": "x"}', 400),
        ("r%2Fa/reset", b"{}", 400),
        ("r/a/reset", b"", 404),
        ("x/reset", b"", 404),
    ):
        assert post(path, body) == status, (path, body)
    assert len(state.limited) == 3
