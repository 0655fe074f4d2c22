"""The agents of agents/ as an operator runs them: their programs, a real proxy and agentd, real requests."""

import base64
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from agents.tests.makers import AUDIENCE, ISSUER, cheap_hash, ec_key, ed_key, jwk, jwks, token
from tests.http.corpus import Answer, Client, Upstream
from tests.product import System, proxy_config
from tests.support import Child, wait_until
from wardgate_agents.auth.api_keys import hash_key

NAMES = ("denylist", "auth", "headers")
KEY = "wgk_0123456789abcdef0123456789abcdef"


class World:
    """Three routes, each behind one of the agents."""

    def __init__(self, tmp: Path, stack: ExitStack) -> None:
        self.tmp = tmp
        self.upstream = Upstream()
        stack.callback(self.upstream.close)
        (tmp / "networks").write_text("198.51.100.0/24\n")
        (tmp / "paths").write_text("prefix /denylist/admin\nglob /**/*.bak\n")
        (tmp / "jwks.json").write_text(jwks(jwk(ec_key(), kid="1")))
        (tmp / "keys").write_text(f"ci {hash_key(KEY)}\n")
        (tmp / "users").write_text(f"alice:{cheap_hash('secret')}\n")
        configs = {
            "denylist": {
                "networks": [f"{tmp}/networks"],
                "paths": [f"{tmp}/paths"],
                "check_interval_s": 0.05,
            },
            "auth": {
                "realm": "shop",
                "check_interval_s": 0.05,
                "jwt": {"jwks_file": f"{tmp}/jwks.json", "issuer": ISSUER, "audience": AUDIENCE},
                "api_keys": {"file": f"{tmp}/keys"},
                "basic": {"file": f"{tmp}/users"},
            },
            "headers": {"preset": "strict", "request": {"set": {"X-Through": "wardgate"}}},
        }
        for name in NAMES:
            (tmp / f"{name}.secret").write_text(f"secret of {name}")
            (tmp / f"{name}.secret").chmod(0o600)
        agents = [
            {
                "name": name,
                "protocol": "zmq-v2",
                "secret_file": f"{tmp}/{name}.secret",
                "timeout_ms": 5000,
                "config": configs[name],
            }
            for name in NAMES
        ]
        limit = {"name": "one-each", "key": "identity", "capacity": 1, "refill_rate": 0.001}
        routes = [
            {"name": name, "upstream": "up", "match": {"path_prefix": f"/{name}"}, "filters": [{"agent": name}]}
            for name in NAMES
        ]
        limited = {**routes[1], "name": "limited", "match": {"path_prefix": "/limited"}, "rate_limits": [limit]}
        config = proxy_config(
            self.upstream.address,
            server={"trusted_proxies": ["127.0.0.1/32"]},
            routes=[*routes, limited],
            agents=agents,
        )
        self.system = stack.enter_context(System(config, tmp))
        self.agents = {name: stack.enter_context(self.start(name)) for name in NAMES}
        for child in self.agents.values():
            child.wait_for("configured, version", 20)
        self.system.registered()
        for name in NAMES:
            wait_until(lambda name=name: self.get(f"/{name}").status != 503, 10)  # type: ignore[misc]

    def start(self, name: str) -> Child:
        """The console script, as the unit runs it."""
        program = Path(sys.executable).parent / f"wardgate-agent-{name}"
        options = ["--connect", self.system.agents_endpoint, "--secret-file", f"{self.tmp}/{name}.secret"]
        return Child([sys.executable, "-P", program, *options], self.tmp / f"{name}.log")

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self.upstream.seen.clear()
        with Client(self.system.address) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n".encode())
            return client.answer()

    def seen(self) -> dict[str, str]:
        """The fields that the upstream got with the last request."""
        (head,) = self.upstream.seen
        lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    tmp = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, tmp, ignore_errors=True)
        yield World(tmp, stack)


def field(answer: Answer, name: str) -> str | None:
    found = re.search(rb"(?mi)^" + re.escape(name.encode()) + rb": *(.*?)\r$", answer.head + b"\r\n")
    return found[1].decode() if found else None


def test_denylist(world: World) -> None:
    """By path in any spelling and by address; a list that changes is in force a moment later."""
    assert world.get("/denylist/x").status == 200
    for path in ("/denylist/admin", "/denylist/%61dmin/", "/denylist//admin", "/denylist/admin;a=b", "/denylist/x.bak"):
        answer = world.get(path)
        assert (answer.status, answer.body) == (403, b"forbidden\n"), path
        assert not world.upstream.seen
    assert world.get("/denylist/x", {"X-Forwarded-For": "198.51.100.9"}).status == 403
    assert world.get("/denylist/x", {"X-Forwarded-For": "203.0.113.9"}).status == 200
    (world.tmp / "draft").write_text("203.0.113.0/24\n")
    (world.tmp / "draft").rename(world.tmp / "networks")
    wait_until(lambda: world.get("/denylist/x", {"X-Forwarded-For": "203.0.113.9"}).status == 403, 20)
    assert world.get("/denylist/x", {"X-Forwarded-For": "198.51.100.9"}).status == 200
    record = wait_until(lambda: next((r for r in world.system.audit() if r.get("decision") == "block"), None))
    assert f"{world.tmp}/" in str(record), "the rule, by file and line"


def test_a_list_that_is_lost_is_no_open_door(world: World) -> None:
    """The last good list goes on; the agent tells."""
    paths = world.tmp / "paths"
    kept = paths.read_text()
    paths.unlink()
    world.agents["denylist"].wait_for("the last good version stays in force", 20)
    assert world.get("/denylist/admin").status == 403
    paths.write_text(kept)
    world.agents["denylist"].wait_for("lists: in order again", 20)


def test_auth(world: World) -> None:
    """Three ways in; what the upstream is told, what it is not told, and what the others are told."""
    basic = {"Authorization": "Basic " + base64.b64encode(b"alice:secret").decode()}
    bearer = {"Authorization": "Bearer " + token(ec_key(), "ES256", "1")}
    for credential, user, method in (
        (basic, "alice", "basic"),
        (basic, "alice", "basic"),
        (bearer, "alice", "jwt"),
        ({"X-API-Key": KEY}, "ci", "api_key"),
    ):
        assert world.get("/auth", {**credential, "X-User": "root", "X.User": "root"}).status == 200
        seen = world.seen()
        assert (seen["x-user"], seen["x-auth-method"]) == (user, method)
        assert not {"authorization", "x-api-key", "x.user"} & seen.keys()
    assert world.get("/auth", {"X_User": "root"}).status == 400, "the proxy's own: no underscores"
    answer = world.get("/auth", {"X-User": "root"})
    assert answer.status == 401
    assert answer.head.lower().count(b"www-authenticate: ") == 3
    assert b'Bearer realm="shop"' in answer.head
    late = {"Authorization": "Bearer " + token(ec_key(), "ES256", "1", exp=1)}
    assert field(world.get("/auth", late), "www-authenticate") == 'Bearer realm="shop", error="invalid_token"'
    wrong = {"Authorization": "Basic " + base64.b64encode(b"alice:wrong").decode()}
    assert field(world.get("/auth", wrong), "www-authenticate") == 'Basic realm="shop", charset="UTF-8"'
    assert not world.upstream.seen
    new = {"Authorization": "Bearer " + token(ed_key(), "EdDSA", "2")}
    assert world.get("/auth", new).status == 401
    (world.tmp / "draft").write_text(jwks(jwk(ec_key(), kid="1"), jwk(ed_key(), kid="2")))
    (world.tmp / "draft").rename(world.tmp / "jwks.json")
    wait_until(lambda: world.get("/auth", new).status == 200, 20)


def test_a_load_of_wrong_passwords_keeps_nobody_else_out(world: World) -> None:
    """Every one of them is decided by the agent, and tokens are served meanwhile."""
    bearer = {"Authorization": "Bearer " + token(ec_key(), "ES256", "1")}

    def attack(number: int) -> tuple[int, bytes]:
        wrong = base64.b64encode(b"alice:wrong-%d" % number).decode()
        answer = world.get("/auth", {"Authorization": f"Basic {wrong}", "X-Forwarded-For": f"203.0.113.{number % 20}"})
        return answer.status, answer.body

    with ThreadPoolExecutor(60) as pool:
        attacks = [pool.submit(attack, number) for number in range(150)]
        served = [world.get("/auth", bearer).status for _ in range(20)]
        answers = {one.result() for one in attacks}
    assert served == [200] * 20
    assert answers <= {
        (401, b"authentication required\n"),
        (429, b"too many logins at the moment\n"),
        (503, b"too many logins at the moment\n"),
    }
    assert (401, b"authentication required\n") in answers


def test_the_identity_is_what_rate_limits_count(world: World) -> None:
    """Not the address, and not the name alone: a key and a user may have the same."""
    basic = {"Authorization": "Basic " + base64.b64encode(b"alice:secret").decode()}
    bearer = {"Authorization": "Bearer " + token(ec_key(), "ES256", "1")}
    assert [world.get("/limited", one).status for one in (basic, basic, bearer, bearer)] == [200, 429, 200, 429]


def test_headers(world: World) -> None:
    """The preset on the response, https where it is true, a field on the request."""
    answer = world.get("/headers")
    assert world.seen()["x-through"] == "wardgate"
    assert field(answer, "x-content-type-options") == "nosniff"
    assert "frame-ancestors 'none'" in str(field(answer, "content-security-policy"))
    assert field(answer, "strict-transport-security") is None
    answer = world.get("/headers", {"X-Forwarded-Proto": "https"})
    assert field(answer, "strict-transport-security") == "max-age=63072000; includeSubDomains"


def test_an_agent_that_stops_closes_its_door(world: World) -> None:
    """SIGTERM drains and ends with 0; then nobody passes until it is back. (The last test: it ends all of them.)"""
    assert {name: child.stop(20) for name, child in world.agents.items()} == dict.fromkeys(NAMES, 0)
    wait_until(lambda: world.get("/headers").status == 503, 10)
    with world.start("headers"):
        wait_until(lambda: world.get("/headers").status == 200, 20)
