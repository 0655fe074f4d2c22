"""The demo's agents do what the banner promises, as hooks and as processes."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq

import proxy.demo.agents as folder
from proxy.demo.agents.policy_agent import PolicyAgent
from wardgate_agent.testing import TestClient

FOLDER = Path(folder.__file__).parent
PATIENCE_MS = 10_000


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(PolicyAgent) as made:
        yield made


@pytest.mark.parametrize(
    "uri", ["/admin", "/admin/", "/admin/users?x=1", "/administrator", "/%61dmin", "http://h/admin"]
)
def test_admin_is_blocked_with_the_agents_own_answer(client: TestClient, uri: str) -> None:
    answer = client.request_headers(uri=uri).assert_blocked(403)
    assert b"/admin is closed" in answer.body
    assert answer.headers["x-blocked-by"] == ["policy"]


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("/old/page", "/page"),
        ("/old/", "/"),
        ("/old/a/b?c=d&e", "/a/b?c=d&e"),
        ("/old/a%20b%3Fc", "/a%20b%3Fc"),
        ("/old//evil.example", "/evil.example"),
        ("/old/%5C/evil.example", "/evil.example"),
        ("/old/%0d%0aset-cookie:x", "/%0D%0Aset-cookie:x"),
    ],
)
def test_old_pages_have_moved_but_never_to_another_host(client: TestClient, uri: str, target: str) -> None:
    assert client.request_headers(uri=uri).assert_redirected(target).status == 302


@pytest.mark.parametrize("uri", ["/members", "/members/list", "/members?x"])
def test_members_are_challenged(client: TestClient, uri: str) -> None:
    answer = client.request_headers(uri=uri).assert_challenged("basic")
    assert (answer.status, answer.challenge_params) == (401, {"realm": "members"})


def test_x_block_blocks_any_request(client: TestClient) -> None:
    answer = client.request_headers("POST", "/echo", {"X-Block": "1"}).assert_blocked(403)
    assert answer.headers["x-blocked-by"] == ["policy"]
    client.request_headers(uri="/old/x", headers={"x-block": "1"}).assert_blocked()
    client.request_headers(headers={"x-block": "0"}).assert_allowed()


@pytest.mark.parametrize("uri", ["/", "/echo", "/old", "/oldest/x", "/membership", "/adm", "*"])
def test_all_others_pass_with_both_headers(client: TestClient, uri: str) -> None:
    answer = client.request_headers(uri=uri, headers={"X-Agent": "mine"}).assert_allowed()
    assert answer.request_headers["x-agent"] == ["ok"]
    assert answer.response_headers["x-served-through"] == ["wardgate"]


@pytest.fixture
def endpoint() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="wg-", dir="/tmp")
    yield f"ipc://{path}/s"
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a demo agent as people start it; what is left at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def run(script: str, *args: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, str(FOLDER / script), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        children.append(child)
        return child

    yield run
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def socket() -> Iterator[Callable[[int], Any]]:
    """A socket of the given type; receiving is bounded in time."""
    context = zmq.Context()
    sockets: list[Any] = []

    def make(kind: int) -> Any:
        made = context.socket(kind)
        sockets.append(made)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        return made

    yield make
    for one in sockets:
        one.close(0)
    context.term()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_tag_agent_answers_whatever_comes_and_stops_quietly(
    endpoint: str, start: Any, socket: Any, number: int
) -> None:
    child = start("tag_agent.py", endpoint)
    asker = socket(zmq.REQ)
    asker.connect(endpoint)
    requests = [
        b'{"version":1,"event_type":"configure","payload":{"event_type":"configure","config":null}}',
        b'{"version":1,"event_type":"request_headers","payload":{"event_type":"request_headers"}}',
        b"\xff\x00 no JSON at all",
        b"",
    ]
    for request in requests:
        asker.send(request)
        verdict = json.loads(asker.recv())
        assert (verdict["version"], verdict["decision"]) == (1, "allow")
        assert verdict["request_headers"] == [{"set": {"name": "X-Demo-Tag", "value": "v1"}}]
    asker.send_multipart([b"two", b"frames"])
    asker.recv()
    child.send_signal(number)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (0, "", "")


def test_the_policy_agent_decides_as_a_process(endpoint: str, start: Any, socket: Any) -> None:
    router = socket(zmq.ROUTER)
    router.bind(endpoint)
    child = start("policy_agent.py", "--connect", endpoint)
    peer, verb, hello = router.recv_multipart()
    assert verb == b"HELLO"
    assert orjson.loads(hello)["agent"] == "policy"
    assert orjson.loads(hello)["events"] == ["request_headers"]
    router.send_multipart([peer, b"WELCOME", b'{"protocol":2,"session":"s","heartbeat_ms":10000}'])
    router.send_multipart([peer, b"CONFIG", b'{"config":null,"config_version":"1"}'])
    assert router.recv_multipart()[1] == b"CONFIG_RESULT"
    event = {"event_type": "request_headers", "metadata": {}, "method": "GET", "uri": "/admin", "headers": {}}
    router.send_multipart([peer, b"EVENTS", orjson.dumps([["c1", 200, event]])])
    _, verb, verdicts = router.recv_multipart()
    assert verb == b"VERDICTS"
    assert orjson.loads(verdicts)[0][1]["decision"]["block"]["status"] == 403
    child.send_signal(signal.SIGTERM)
    assert router.recv_multipart()[1] == b"DRAIN"
    router.send_multipart([peer, b"BYE"])
    assert router.recv_multipart()[1] == b"BYE"
    assert child.wait(10) == 0
