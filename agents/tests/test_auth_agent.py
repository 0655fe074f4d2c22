"""The agent auth: who is let in, with which headers and identity, and what the others are told."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.tests.makers import AUDIENCE, ISSUER, cheap_hash, ec_key, ed_key, jwk, jwks, token
from tests.support import until
from wardgate_agent.testing import AsyncTestClient, TestClient
from wardgate_agents.auth.agent import AuthAgent
from wardgate_agents.auth.api_keys import hash_key
from wardgate_agents.auth.gate import Crowded, Gate
from wardgate_agents.auth.settings import BasicSettings
from wardgate_agents.settings import ConfigRejected

KEY = "wgk_0123456789abcdef0123456789abcdef"


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(offered: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {offered}"}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "jwks.json").write_text(jwks(jwk(ec_key(), kid="1")))
    (tmp_path / "keys").write_text(f"ci {hash_key(KEY)}\n")
    (tmp_path / "users").write_text(f"alice:{cheap_hash('secret')}\n")
    return {
        "realm": "shop",
        "check_interval_s": 0.01,
        "optional_routes": ["public"],
        "strip_headers": ["X-Tenant"],
        "jwt": {
            "jwks_file": str(tmp_path / "jwks.json"),
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "claim_headers": {"X-Mail": "mail"},
        },
        "api_keys": {"file": str(tmp_path / "keys")},
        "basic": {"file": str(tmp_path / "users")},
    }


@pytest.fixture
def client(config: dict[str, Any]) -> Iterator[TestClient]:
    with TestClient(AuthAgent) as made:
        made.configure(config)
        yield made


# --- let in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "method", "user"),
    [
        (lambda: bearer(token(ec_key(), "ES256", "1")), "jwt", "alice"),
        (lambda: {"X-API-Key": KEY}, "api_key", "ci"),
        (lambda: basic("alice", "secret"), "basic", "alice"),
    ],
)
def test_who_is_known_gets_in(client: TestClient, credential: Any, method: str, user: str) -> None:
    """With headers for the upstream and an identity for rate limits; a second time from what is remembered."""
    for _ in range(2):
        answer = client.request_headers("GET", "/", credential()).assert_allowed()
        assert answer.request_headers == {"x-user": [user], "x-auth-method": [method]}, "credentials stay here"
        assert answer.routing == {"identity": f"{method}:{user}"}


def test_claims_go_with_the_user(client: TestClient) -> None:
    answer = client.request_headers("GET", "/", bearer(token(ec_key(), "ES256", "1", mail="a@b.example")))
    assert answer.request_headers["x-mail"] == ["a@b.example"]


def test_credentials_can_be_forwarded(client: TestClient, config: dict[str, Any]) -> None:
    client.configure({**config, "forward_credentials": True})
    assert client.request_headers("GET", "/", {"X-API-Key": KEY}).request_headers["x-api-key"] == [KEY]


FORGED = {
    "X-User": "root",
    "x-auth-method": "jwt",
    "X-Mail": "root@shop.example",
    "X-Tenant": "other",
    "X.User": "root",
    "x!auth-method": "jwt",
    "X-Other": "stays",
    "X~Free": "stays",
}


@pytest.mark.parametrize(
    ("credential", "route", "expected"),
    [
        (lambda: {"X-API-Key": KEY}, "default", {"x-user": ["ci"], "x-auth-method": ["api_key"]}),
        (lambda: basic("alice", "secret"), "default", {"x-user": ["alice"], "x-auth-method": ["basic"]}),
        (
            lambda: bearer(token(ec_key(), "ES256", "1")),
            "default",
            {"x-user": ["alice"], "x-auth-method": ["jwt"]},
        ),
        (dict, "public", {}),
    ],
)
def test_a_client_cannot_say_who_it_is(client: TestClient, credential: Any, route: str, expected: Any) -> None:
    """Every identity header is set or gone, also those that have nothing to say this time, in any spelling."""
    answer = client.request_headers("GET", "/", {**FORGED, **credential()}, route_id=route).assert_allowed()
    assert answer.request_headers == {**expected, "x-other": ["stays"], "x~free": ["stays"]}


def test_optional_routes_are_open_to_nobody_but_not_to_the_wrong(client: TestClient) -> None:
    """No identity, so no rate limit by one; a credential that will not do is refused there as well."""
    answer = client.request_headers("GET", "/", route_id="public").assert_allowed()
    assert answer.routing == {}
    client.request_headers("GET", "/", {"X-API-Key": "wrong"}, route_id="public").assert_blocked(401)
    client.request_headers("GET", "/", {"Authorization": "Digest x"}, route_id="public").assert_challenged()


# --- turned away ------------------------------------------------------------------------------------------


def test_nobody_is_told_every_way(client: TestClient) -> None:
    answer = client.request_headers().assert_challenged("bearer")
    assert answer.challenge_params == {"realm": "shop"}
    assert answer.response_headers["www-authenticate"] == [
        'Basic realm="shop", charset="UTF-8"',
        'ApiKey realm="shop", header="X-API-Key"',
    ]
    assert answer.audit["reason_codes"] == ["no_credential"]


@pytest.mark.parametrize(
    ("offered", "code"),
    [
        (lambda: token(ec_key(), "ES256", "1", exp=1), "expired"),
        (lambda: token(ed_key(), "EdDSA", "1"), "wrong_algorithm"),
        (lambda: "x", "malformed"),
    ],
)
def test_a_bad_token(client: TestClient, offered: Any, code: str) -> None:
    """RFC 6750: invalid_token; why it is, is for the audit."""
    answer = client.request_headers("GET", "/", bearer(offered())).assert_challenged("bearer")
    assert answer.challenge_params == {"realm": "shop", "error": "invalid_token"}
    assert answer.audit["reason_codes"] == [code]


def test_a_wrong_password_and_a_name_that_is_not_there(client: TestClient) -> None:
    """The same answer, and both are compared with a hash."""
    first = client.request_headers("GET", "/", basic("alice", "wrong")).assert_challenged("basic")
    second = client.request_headers("GET", "/", basic("nobody", "secret")).assert_challenged("basic")
    assert first.verdict == second.verdict
    assert first.challenge_params == {"realm": "shop", "charset": "UTF-8"}


def test_more_than_one_credential(client: TestClient) -> None:
    """Whatever each of them is worth: the upstream might believe the other one."""
    headers = {**basic("alice", "secret"), "X-API-Key": KEY}
    client.request_headers("GET", "/", headers).assert_blocked(400)


def test_keys_alone(config: dict[str, Any]) -> None:
    """A 401 has to name a scheme, registered or not."""
    with TestClient(AuthAgent) as client:
        client.configure({"realm": 'a "b"', "api_keys": config["api_keys"]})
        answer = client.request_headers("GET", "/", {"X-API-Key": "wrong"}).assert_blocked(401)
        assert answer.headers == {"www-authenticate": ['ApiKey realm="a \\"b\\"", header="X-API-Key"']}
        client.request_headers("GET", "/", bearer(token(ec_key(), "ES256", "1"))).assert_blocked(401)


def test_before_it_is_configured_it_decides_nothing() -> None:
    with TestClient(AuthAgent) as client:
        client.request_headers("GET", "/", basic("alice", "secret")).assert_error("not_configured")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"jwt": None, "api_keys": None, "basic": None}, "config: nobody could get in"),
        ({"basic": {"file": "/nowhere"}}, "config.basic.file: /nowhere: No such file"),
        ({"user_header": "Connection"}, "config: Connection is the proxy's own"),
        ({"user_header": "X_User"}, "config: 'X_User' is no header name"),
        ({"realm": "a\r\nb"}, "config.realm: 'a\\r\\nb' is no header value"),
        ({"strip_headers": ["X-A\n"]}, "config: 'X-A\\n' is no header name"),
        ({"user_header": "Authorization"}, "authorization cannot be an identity header"),
        ({"user_header": "X-API-Key"}, "x-api-key cannot be an identity header"),
        ({"method_header": "x-user"}, "x-user is named twice"),
        ({"user_heder": "X"}, "did you mean user_header?"),
    ],
)
def test_configurations_that_are_rejected(client: TestClient, config: dict[str, Any], change: Any, says: str) -> None:
    """And the one in force stays."""
    changed = {name: value for name, value in {**config, **change}.items() if value is not None}
    with pytest.raises(ConfigRejected) as caught:
        client.configure(changed)
    assert says in caught.value.message
    client.request_headers("GET", "/", {"X-API-Key": KEY}).assert_allowed()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("jwks.json", "{}", "config.jwt.jwks_file: {dir}/jwks.json: no JWKS"),
        ("keys", "# x\nci secretkey\n", "config.api_keys.file: {dir}/keys:2: not `NAME sha256:HEX`"),
        ("users", "alice:secret\n", "config.basic.file: {dir}/users:1: not `$scrypt$"),
    ],
)
def test_a_bad_line_is_named(config: dict[str, Any], tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with TestClient(AuthAgent) as client, pytest.raises(ConfigRejected) as caught:
        client.configure(config)
    assert caught.value.message.startswith(says.format(dir=tmp_path))
    assert "secret" not in caught.value.message


# --- while it runs ----------------------------------------------------------------------------------------


async def test_keys_that_are_replaced(config: dict[str, Any], tmp_path: Path) -> None:
    """A new kid is taken; with the old key go the tokens that it vouched for, remembered or not."""
    old, new = token(ec_key(), "ES256", "1"), token(ed_key(), "EdDSA", "2")
    async with AsyncTestClient(AuthAgent) as client:
        await client.configure(config)
        ways = client.agent._ways
        (await client.request_headers("GET", "/", bearer(old))).assert_allowed()
        (await client.request_headers("GET", "/", bearer(new))).assert_challenged()
        (tmp_path / "jwks.json").write_text(jwks(jwk(ec_key(), kid="1"), jwk(ed_key(), kid="2")))
        await until(lambda: ways.tokens._keys.find("2"), 20)
        (await client.request_headers("GET", "/", bearer(old))).assert_allowed()
        (await client.request_headers("GET", "/", bearer(new))).assert_allowed()
        (tmp_path / "jwks.json").write_text(jwks(jwk(ed_key(), kid="2")))
        await until(lambda: not ways.tokens._keys.find("1"), 20)
        (await client.request_headers("GET", "/", bearer(old))).assert_challenged()
        (tmp_path / "jwks.json").unlink()
        await until(lambda: "No such file" in str(client.agent.session.greeting()), 20)
        (await client.request_headers("GET", "/", bearer(new))).assert_allowed()
        client.agent._files.stop()


async def test_a_password_that_is_changed(config: dict[str, Any], tmp_path: Path) -> None:
    """The old one is forgotten, although it was right a moment ago; and so is who is not there any more."""
    async with AsyncTestClient(AuthAgent) as client:
        await client.configure(config)
        logins = client.agent._ways.logins
        (await client.request_headers("GET", "/", basic("alice", "secret"))).assert_allowed()
        (tmp_path / "users").write_text(f"alice:{cheap_hash('other')}\n")
        await until(lambda: logins.files.value.find("alice") == cheap_hash("other"), 20)
        (await client.request_headers("GET", "/", basic("alice", "secret"))).assert_challenged()
        (await client.request_headers("GET", "/", basic("alice", "other"))).assert_allowed()
        (tmp_path / "users").write_text(f"bob:{cheap_hash('other')}\n")
        await until(lambda: logins.files.value.find("bob"), 20)
        (await client.request_headers("GET", "/", basic("alice", "other"))).assert_challenged()
        client.agent._files.stop()


def test_a_token_is_not_remembered_longer_than_it_lives(config: dict[str, Any]) -> None:
    now = time.time()
    with TestClient(AuthAgent(clock_s=lambda: now)) as client:
        client.configure(config)
        offered = token(ec_key(), "ES256", "1", exp=int(now) - 10)  # within the leeway
        client.request_headers("GET", "/", bearer(offered)).assert_allowed()
        (remembered,) = client.agent._ways.tokens._verified._rows.values()
        assert remembered[0] == int(now) - 10 + 30
        now += 25
        assert client.agent._ways.tokens._verified.get(next(iter(client.agent._ways.tokens._verified._rows))) is None


class Doors:
    """A gate whose comparisons end when they are told to."""

    def __init__(self, **changes: Any) -> None:
        self.open = threading.Event()
        self.compared: list[str] = []
        self.now = 0.0
        self.gate = Gate(BasicSettings(file="x", **changes), clock_s=lambda: self.now, compare=self._compare)
        self.hashed = cheap_hash("secret")

    def _compare(self, password: str, hashed: Any) -> bool:
        self.compared.append(password)
        assert self.open.wait(20)
        return password == "secret"

    def ask(self, password: str, client: str = "c") -> "asyncio.Task[bool]":
        question = self.gate.question("alice", password, self.hashed)
        return asyncio.get_running_loop().create_task(self.gate.ask(question, password, self.hashed, client))

    def knows(self, password: str) -> bool:
        return self.gate.is_known(self.gate.question("alice", password, self.hashed))


async def test_the_gate_is_bounded() -> None:
    """Two at a time, four in all, three of one client; the same question again is no new comparison, but a request."""
    doors = Doors(max_concurrent=2, max_waiting=4, max_waiting_per_client=3)
    asked = [doors.ask(password) for password in ("secret", "secret", "b")]
    await until(lambda: len(doors.compared) == 2)
    for password in ("c", "secret"):
        with pytest.raises(Crowded) as caught:
            await doors.ask(password)
        assert caught.value.is_client
    asked.append(doors.ask("c", "other"))
    await asyncio.sleep(0)
    with pytest.raises(Crowded) as caught:
        await doors.ask("d", "third")
    assert not caught.value.is_client
    assert doors.gate.waiting == 4
    doors.open.set()
    assert await asyncio.gather(*asked) == [True, True, False, False]
    assert sorted(doors.compared) == ["b", "c", "secret"]
    assert doors.gate.waiting == 0
    assert not doors.gate._by_client
    assert await doors.ask("secret", "third")
    doors.gate.close()


async def test_a_gate_that_is_closed_refuses_who_waits() -> None:
    """Another configuration came: they are told to come again, and nothing is an error."""
    doors = Doors(max_concurrent=1)
    running = doors.ask("a")
    await until(lambda: doors.compared)
    waiting = doors.ask("b")
    await asyncio.sleep(0)
    doors.gate.close()
    with pytest.raises(Crowded):
        await waiting
    doors.open.set()
    assert not await running


async def test_a_client_of_ipv6_is_a_subnet() -> None:
    """It has 2 to the 64 addresses to ask from."""
    doors = Doors(max_waiting_per_client=1)
    asked = doors.ask("a", "2001:db8::1")
    await until(lambda: doors.compared)
    with pytest.raises(Crowded):
        await doors.ask("b", "2001:db8::ffff:1")
    other = doors.ask("b", "2001:db8:0:1::1")
    doors.open.set()
    assert await asyncio.gather(asked, other) == [False, False]
    doors.gate.close()


async def test_the_gate_remembers_who_was_right_for_a_while() -> None:
    """By a keyed hash, never the password; who was wrong is compared again."""
    doors = Doors(cache_ttl_s=300)
    doors.open.set()
    assert await doors.ask("secret")
    assert not await doors.ask("wrong")
    assert doors.knows("secret")
    assert not doors.knows("wrong")
    assert b"secret" not in b"".join(doors.gate._right._rows)
    doors.now = 300.0
    assert not doors.knows("secret")
    doors.gate.close()


async def test_who_gives_up_waiting_does_not_lose_the_answer() -> None:
    """A login that takes longer than the agent's timeout works the second time."""
    doors = Doors()
    asked = doors.ask("secret")
    await until(lambda: doors.compared)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    doors.open.set()
    await until(lambda: doors.knows("secret"))
    doors.gate.close()


async def test_too_many_logins_are_refused_not_let_through(config: dict[str, Any]) -> None:
    """503, and 429 for whom it is the own fault; a session that is known goes on meanwhile."""
    async with AsyncTestClient(AuthAgent) as client:
        await client.configure({**config, "basic": {**config["basic"], "max_waiting_per_client": 1, "max_waiting": 2}})
        gate = client.agent._ways.logins.gate
        (await client.request_headers("GET", "/", basic("alice", "secret"))).assert_allowed()
        release = threading.Event()
        gate._compare = lambda password, hashed: release.wait(20)
        waiting = [asyncio.get_running_loop().run_in_executor(gate._threads, gate._compare, "", None) for _ in range(2)]
        for number, client_ip in ((1, "192.0.2.1"), (2, "192.0.2.2")):
            question = gate.question(f"u{number}", "x", cheap_hash("x"))
            waiting.append(asyncio.ensure_future(gate.ask(question, "x", cheap_hash("x"), client_ip)))
        await asyncio.sleep(0)
        answer = await client.request_headers("GET", "/", basic("alice", "w"), client_ip="192.0.2.3")
        answer.assert_blocked(503)
        assert answer.headers == {"retry-after": ["1"]}
        gate._settings = BasicSettings(file="x", max_waiting_per_client=1)
        (await client.request_headers("GET", "/", basic("alice", "w"), client_ip="192.0.2.1")).assert_blocked(429)
        (await client.request_headers("GET", "/", basic("alice", "secret"))).assert_allowed()
        release.set()
        await asyncio.gather(*waiting)
        client.agent._files.stop()
        gate.close()


async def test_a_comparison_that_takes_too_long_is_refused_in_time(config: dict[str, Any]) -> None:
    """No timeout, which would count against the agent; and once it is done, the next request gets in."""
    async with AsyncTestClient(AuthAgent) as client:
        await client.configure(config)
        gate = client.agent._ways.logins.gate
        release = threading.Event()
        gate._compare = lambda password, hashed: release.wait(20)
        answer = await client.request_headers("GET", "/", basic("alice", "secret"))
        answer.assert_blocked(503)
        assert answer.audit["reason_codes"] == ["out_of_time"]
        release.set()
        await until(lambda: not gate.waiting)
        (await client.request_headers("GET", "/", basic("alice", "secret"))).assert_allowed()
        client.agent._files.stop()
        gate.close()


def test_it_counts(client: TestClient) -> None:
    """Labels are of ours: what a client writes becomes none."""
    client.request_headers("GET", "/", {"Authorization": "Evil-7 x"})
    client.request_headers("GET", "/", {"X-API-Key": KEY})
    text = json.dumps(client.agent.session.metrics.snapshot())
    assert '"labels": {"code": "unknown_scheme", "method": "other"}' in text
    assert '"labels": {"method": "api_key"}, "value": 1' in text
