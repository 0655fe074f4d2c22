"""agentd as a process: what it makes, announces, survives and removes."""

import json
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import zmq

from shared.clock import MS, S, now_ns
from shared.decision import Decision, Verb
from shared.plan import Ask, Plan
from shared.segment import AgentdView, AgentRow, BreakerState
from shared.wire import envelope
from shared.wire.envelope import RecordType
from tests.support import Agentd, NotifySocket, wait_until

CONFIG = """
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9" }]
[[agents]]
name = "waf"
protocol = "zmq-v2"
events = ["request_headers"]
timeout_ms = 2000
[[routes]]
name = "all"
upstream = "app"
filters = [{ agent = "waf" }]
"""


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, CONFIG) as made:
        yield made


class Dealers:
    """ZeroMQ sockets of one test."""

    def __init__(self) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._open: list[zmq.Socket[Any]] = []

    def connect(self, path: Path) -> "zmq.Socket[Any]":
        made = self._context.socket(zmq.DEALER)
        self._open.append(made)
        made.setsockopt(zmq.LINGER, 0)
        made.connect(f"ipc://{path}")
        return made

    def close(self) -> None:
        for made in self._open:
            made.close()
        self._context.term()


@pytest.fixture
def dealers() -> Iterator[Dealers]:
    made = Dealers()
    yield made
    made.close()


def get(
    agentd: Agentd,
    path: str,
    method: str = "GET",
    over_tcp: bool = False,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    connection = HTTPConnection(*agentd.admin_address, timeout=5)
    if not over_tcp:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        connection.sock.connect(str(agentd.runtime / "admin.sock"))
    try:
        connection.request(method, path, body, headers={"Host": "localhost", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def row(agentd: Agentd, name: str = "waf") -> AgentRow | None:
    view = AgentdView(str(agentd.runtime / "agentd.seg"))
    try:
        return view.agents().get(name) if view.attach() and view.is_alive(now_ns()) else None
    finally:
        view.close()


def records(agentd: Agentd) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agentd.audit.read_text().splitlines()] if agentd.audit.exists() else []


class RawAgent:
    """A v2 agent made of frames: says HELLO, answers what it is told to."""

    def __init__(self, dealers: Dealers, agentd: Agentd, instance: str = "i1", **fields: Any) -> None:
        self.socket = dealers.connect(agentd.runtime / "agents" / "v2")
        hello = {"protocol": 2, "agent": "waf", "instance": instance, "events": ["request_headers"], **fields}
        self.send(b"HELLO", json.dumps(hello).encode())
        self.expect(b"WELCOME")
        version = json.loads(self.expect(b"CONFIG")[0])["config_version"]
        self.send(b"CONFIG_RESULT", json.dumps({"config_version": version, "accepted": True}).encode())

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def expect(self, verb: bytes, timeout_s: float = 5.0) -> list[bytes]:
        """The next message that is no PING."""
        end = time.monotonic() + timeout_s
        while self.socket.poll(max(0, int((end - time.monotonic()) * 1000))):
            frames: list[bytes] = self.socket.recv_multipart()
            if frames[0] == b"PING":
                self.send(b"PONG", *frames[1:])
                continue
            assert frames[0] == verb, frames
            return frames[1:]
        raise AssertionError(f"no {verb!r} in {timeout_s} s")


class RawWorker:
    """A worker made of records."""

    def __init__(self, dealers: Dealers, agentd: Agentd) -> None:
        self.socket = dealers.connect(agentd.runtime / "workers.sock")
        plan = Plan(0, "all", 1, False, False, (Ask("waf", "closed", False, 2000),))  # type: ignore[arg-type]
        self.socket.send(envelope.pack_register(envelope.Register(os.getpid(), 0, "d", "c-", (plan,))))
        kind, _ = self.receive()
        assert kind == RecordType.REGISTERED

    def receive(self, timeout_s: float = 5.0) -> tuple[int, memoryview]:
        assert self.socket.poll(int(timeout_s * 1000)), "no message from agentd"
        ((kind, rest),) = envelope.records(self.socket.recv())
        return kind, rest

    def ask(self, event_id: int, event: bytes = b'{"event_type":"request_headers"}') -> None:
        deadline_ns = now_ns() + 2 * S
        head = envelope.pack_event_fields(event_id, event_id, 1, deadline_ns, 0, 1, envelope.FLAG_FINAL, len(event))
        self.socket.send(head + event)

    def decision(self) -> tuple[int, Decision]:
        kind, rest = self.receive()
        assert kind == RecordType.DECISION
        return envelope.unpack_decision(rest)


# --- life ------------------------------------------------------------------------------------------


def test_it_makes_what_it_needs_tells_it_and_removes_it(agentd: Agentd, notify_socket: NotifySocket) -> None:
    """READY when everything is there; modes as documented; SIGTERM ends with 0 and leaves nothing but the log."""
    agentd.env["NOTIFY_SOCKET"] = notify_socket.path
    agentd.start()
    assert "READY=1" in wait_until(notify_socket.fields)
    modes = {name: stat.S_IMODE(os.stat(agentd.runtime / name).st_mode) for name in os.listdir(agentd.runtime)}
    assert modes == {
        "admin.addr": 0o600,
        "admin.sock": 0o600,
        "agentd.lock": 0o600,
        "agentd.seg": 0o640,
        "agents": 0o750,
        "workers.sock": 0o600,
    }
    assert stat.S_IMODE(os.stat(agentd.runtime / "agents" / "v2").st_mode) == 0o660
    assert stat.S_IMODE(os.stat(agentd.runtime).st_mode) == 0o711
    assert (agentd.runtime / "agentd.lock").read_text() == f"{agentd.child.pid}\n"
    assert agentd.child.stop() == 0
    assert "STOPPING=1" in notify_socket.fields()
    assert os.listdir(agentd.runtime) == ["agents"]
    assert os.listdir(agentd.runtime / "agents") == []
    assert "agentd has stopped" in agentd.child.output()


def test_the_heartbeat_comes_from_the_loop(agentd: Agentd) -> None:
    """It stops with the process (SIGSTOP: stale within a second or so) and goes on with it."""
    agentd.start()
    view = AgentdView(str(agentd.runtime / "agentd.seg"))
    assert view.attach()
    assert view.is_alive(now_ns())
    first = view.beat_ns
    wait_until(lambda: view.beat_ns > first)
    agentd.child.signal(signal.SIGSTOP)
    wait_until(lambda: not view.is_alive(now_ns()), 3)
    agentd.child.signal(signal.SIGCONT)
    wait_until(lambda: view.is_alive(now_ns()), 3)
    view.close()


def test_verdicts_that_came_while_it_stood_still_count(short_tmp_dir: Path, dealers: Dealers) -> None:
    """SIGSTOP beyond the deadline of 5,000 calls, all answered in time, each in a message of its own; more than a
    socket holds, more than the loop reads in a turn."""
    config = CONFIG.replace("timeout_ms = 2000", "timeout_ms = 2000\nmax_concurrent_calls = 10_000\nmax_queue = 10_000")
    instances, each = 10, 500
    with Agentd(short_tmp_dir, config) as agentd:
        agentd.start()
        fields: dict[str, Any] = {"max_concurrency": each, "max_batch": 256}
        agents = [RawAgent(dealers, agentd, f"i{number}", **fields) for number in range(instances)]
        wait_until(lambda: len(get(agentd, "/api/agents")[1]["agents"][0]["instances"]) == instances)
        worker = RawWorker(dealers, agentd)
        deadline_ns = now_ns() + 2 * S
        event = b'{"event_type":"request_headers"}'
        for first in range(0, instances * each, each):
            heads = (
                envelope.pack_event_fields(n, n, 1, deadline_ns, 0, 1, envelope.FLAG_FINAL, len(event))
                for n in range(first, first + each)
            )
            worker.socket.send(b"".join(head + event for head in heads))
        calls: list[list[str]] = [[] for _ in agents]
        for one, its in zip(agents, calls, strict=True):
            while len(its) < each:
                its += [entry[0] for entry in json.loads(one.expect(b"EVENTS")[0])]
        agentd.child.signal(signal.SIGSTOP)
        for one, its in zip(agents, calls, strict=True):
            for call in its:
                one.send(b"VERDICTS", json.dumps([[call, {"decision": "allow"}]]).encode())
        assert now_ns() < deadline_ns
        wait_until(lambda: now_ns() > deadline_ns + 200 * MS)
        agentd.child.signal(signal.SIGCONT)
        verbs: list[Verb] = []
        while len(verbs) < instances * each:
            assert worker.socket.poll(5_000)
            verbs += [envelope.unpack_decision(rest)[1].verb for _, rest in envelope.records(worker.socket.recv())]
        assert set(verbs) == {Verb.ALLOW}


def test_a_second_start_says_so_and_touches_nothing(agentd: Agentd, short_tmp_dir: Path) -> None:
    """Exit code 1 with the pid; the first one serves on, on the same sockets."""
    agentd.start()
    before = {name: os.stat(agentd.runtime / name).st_ino for name in os.listdir(agentd.runtime)}
    first = agentd.child
    second = agentd.start(wait=False).child
    assert second.ended() == 1
    assert f"agentd is already running in {agentd.runtime} with pid {first.pid}" in second.output()
    agentd.child = first
    assert {name: os.stat(agentd.runtime / name).st_ino for name in os.listdir(agentd.runtime)} == before
    assert get(agentd, "/health/live")[0] == 200


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('[[agents]]\nname = "waf"\nprotocol = "zmq-v3"\n', "agents"),
        ("[server]\nwokers = 2\n", "wokers"),
        ('[admin]\ntoken_file = "/nowhere/token"\n', "token_file"),
    ],
)
def test_a_configuration_error_starts_nothing(short_tmp_dir: Path, config: str, message: str) -> None:
    """Exit code 2, every problem on standard error, no directory made."""
    with Agentd(short_tmp_dir) as agentd:
        agentd.config.write_text(f'runtime.dir = "{agentd.runtime}"\n{config}')
        assert agentd.start(wait=False).child.ended() == 2
        assert message in agentd.child.output()
        assert not agentd.runtime.exists()


def test_an_address_in_use_ends_the_start_without_a_trace(short_tmp_dir: Path) -> None:
    """Exit code 1; what was made before is removed."""
    with socket.socket() as taken, Agentd(short_tmp_dir) as agentd:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        agentd.config.write_text(f'runtime.dir = "{agentd.runtime}"\nadmin.listen = ["127.0.0.1:{port}"]\n{CONFIG}')
        assert agentd.start(wait=False).child.ended() == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in agentd.child.output()
        assert os.listdir(agentd.runtime) == ["agents"]


def test_it_starts_over_what_a_killed_one_left(agentd: Agentd) -> None:
    """kill -9 frees the lock; sockets and segment are replaced."""
    agentd.start()
    nonce = os.stat(agentd.runtime / "agentd.seg").st_ino
    agentd.child.kill()
    assert (agentd.runtime / "admin.sock").exists()
    agentd.start()
    assert os.stat(agentd.runtime / "agentd.seg").st_ino != nonce
    assert get(agentd, "/health/live")[0] == 200
    assert get(agentd, "/health/live", over_tcp=True)[0] == 200


def test_sighup_brings_another_configuration_into_force(agentd: Agentd, notify_socket: NotifySocket) -> None:
    """RELOADING=1 with its time, then READY=1; agents, breakers, log, token, audit path; nothing is restarted."""
    agentd.env["NOTIFY_SOCKET"] = notify_socket.path
    agentd.start()
    assert get(agentd, "/api/breakers/waf/set", "PATCH", body=b'{"failure_threshold": 77}')[0] == 200
    nonce = os.stat(agentd.runtime / "agentd.seg").st_ino
    wait_until(lambda: len(records(agentd)) == 1)
    token = agentd.dir / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    changed = CONFIG.replace(
        "timeout_ms = 2000", "timeout_ms = 2000\nmax_queue = 7\ncircuit_breaker.failure_threshold = 9"
    )
    agentd.write(changed)
    text = agentd.config.read_text().replace(
        'logging.level = "debug"', 'logging.level = "info"\nlogging.format = "text"'
    )
    text = text.replace(str(agentd.audit.parent), str(agentd.dir / "other"))
    agentd.config.write_text(text.replace("admin.listen", f'admin.token_file = "{token}"\nadmin.listen'))
    agentd.child.signal(signal.SIGHUP)
    agentd.child.wait_for("info agentd.reload reloaded")
    fields = notify_socket.fields()
    states = [field for field in fields if field in ("READY=1", "RELOADING=1")]
    assert states == ["READY=1", "RELOADING=1", "READY=1"]
    began = next(field for field in fields if field.startswith("MONOTONIC_USEC="))
    assert 0 < now_ns() // 1000 - int(began.partition("=")[2]) < 30_000_000
    (waf,) = get(agentd, "/api/agents")[1]["agents"]
    assert waf["max_queue"] == 7
    (breaker,) = get(agentd, "/api/breakers")[1]["breakers"]
    assert breaker["failure_threshold"] == 9, "what was set by hand is gone"
    headers = {"Authorization": "Bearer s3cret"}
    assert get(agentd, "/api/breakers/waf/reset", "POST", over_tcp=True, headers=headers)[0] == 200
    other = agentd.dir / "other" / "audit.jsonl"
    wait_until(lambda: other.exists() and other.read_text().count("\n") == 1)
    assert len(records(agentd)) == 1, "the old file is left as it was"
    assert os.stat(agentd.runtime / "agentd.seg").st_ino == nonce
    view = AgentdView(str(agentd.runtime / "agentd.seg"))
    assert view.attach()
    assert (view.reload.result.word, view.reload.applied, view.reload.is_under_way) == ("applied", 1, False)
    view.close()
    status = get(agentd, "/api/reload", "POST")
    assert (status[0], status[1]["result"], status[1]["applied"]) == (200, "applied", 2)
    audited = wait_until(lambda: [r for r in map(json.loads, other.read_text().splitlines()) if r["phase"] == "reload"])
    assert audited[0]["agents"][0]["message"].startswith("applied: ")


def test_a_breaker_opened_by_hand_stays_open_when_its_agent_comes_back(agentd: Agentd) -> None:
    """Taken out of the configuration and put in again; meanwhile another one is opened and closed."""
    other = '[[agents]]\nname = "other"\nprotocol = "zmq-v1"\nendpoint = "ipc:///nowhere"\n'
    agentd.write(CONFIG + other)
    agentd.start()
    assert get(agentd, "/api/breakers/other/open", "POST")[0] == 200
    agentd.write(CONFIG)
    assert get(agentd, "/api/reload", "POST")[0] == 200
    assert [agent["name"] for agent in get(agentd, "/api/agents")[1]["agents"]] == ["waf"]
    for action in ("open", "reset"):
        assert get(agentd, f"/api/breakers/waf/{action}", "POST")[0] == 200
    agentd.write(CONFIG + other)
    assert get(agentd, "/api/reload", "POST")[0] == 200
    states = {row["agent"]: row["state"] for row in get(agentd, "/api/breakers")[1]["breakers"]}
    assert states == {"waf": "closed", "other": "forced_open"}
    found = row(agentd, "other")
    assert found is not None
    assert found.breaker is BreakerState.FORCED_OPEN


def test_what_needs_a_restart_is_refused_by_name(agentd: Agentd) -> None:
    """Nothing of the file acts, also not what could; the API says why."""
    agentd.start()
    agentd.write(CONFIG.replace("timeout_ms = 2000", "max_queue = 7"))
    agentd.config.write_text(agentd.config.read_text().replace('["127.0.0.1:0"]', "[]"))
    status, answer = get(agentd, "/api/reload", "POST")
    assert status == 409
    assert answer["error"]["message"] == "admin.listen: changed, and that needs a restart of agentd"
    assert get(agentd, "/api/agents")[1]["agents"][0]["max_queue"] == 200
    found = get(agentd, "/api/reload")[1]
    assert (found["agentd"]["result"], found["agentd"]["refused"], found["proxy"]) == ("refused", 1, None)
    assert found["agentd"]["problems"] == [answer["error"]["message"]]
    assert get(agentd, "/api/reload/proxy", "POST")[0] == 409


def test_the_watchdog_is_fed_from_the_loop(agentd: Agentd, notify_socket: NotifySocket) -> None:
    """Several times within the manager's patience of 0.8 s."""
    agentd.env |= {"NOTIFY_SOCKET": notify_socket.path, "WATCHDOG_USEC": "800000"}
    agentd.start()
    wait_until(lambda: notify_socket.fields().count("WATCHDOG=1") >= 3, 3)


# --- agents and workers ----------------------------------------------------------------------------


def test_a_worker_gets_its_agents_decision_and_the_audit_tells_of_it(agentd: Agentd, dealers: Dealers) -> None:
    """Ingress, dispatcher, lane, transport and sink, wired together."""
    agentd.start()
    agent = RawAgent(dealers, agentd)
    wait_until(lambda: (found := row(agentd)) is not None and found.live_instances == 1)
    worker = RawWorker(dealers, agentd)
    worker.ask(1)
    ((call, _, event),) = json.loads(agent.expect(b"EVENTS")[0])
    assert event == {"event_type": "request_headers"}
    agent.send(b"VERDICTS", json.dumps([[call, {"decision": {"block": {"status": 403, "body": "no"}}}]]).encode())
    event_id, decision = worker.decision()
    assert (event_id, decision.verb, decision.status, decision.body) == (1, Verb.BLOCK, 403, b"no")
    (record,) = wait_until(lambda: records(agentd))
    assert (record["decision"], record["decided_by"], record["correlation_id"]) == ("block", "waf", "c-1")
    status, found = get(agentd, "/api/agents")
    (waf,) = found["agents"]
    assert status == 200
    assert (waf["outcomes"]["decision"], waf["instances"][0]["name"], waf["p50_ms"] > 0) == (1, "i1", True)
    assert waf["last_calls"][0]["outcome"] == "decision"


def test_an_event_ends_at_its_deadline_by_the_one_timer(agentd: Agentd, dealers: Dealers) -> None:
    """An agent that never answers: Timeout, not later than the worker's own patience."""
    agentd.write(CONFIG.replace("timeout_ms = 2000", "timeout_ms = 100"))
    agentd.start()
    RawAgent(dealers, agentd)
    wait_until(lambda: (found := row(agentd)) is not None and found.live_instances == 1)
    worker = RawWorker(dealers, agentd)
    began = time.monotonic()
    event = b"{}"
    head = envelope.pack_event_fields(7, 7, 1, now_ns() + 100 * MS, 0, 1, envelope.FLAG_FINAL, len(event))
    worker.socket.send(head + event)
    event_id, decision = worker.decision()
    took_s = time.monotonic() - began
    assert (event_id, decision.verb, decision.status, decision.reason) == (7, Verb.FAIL, 504, "timeout")
    assert 0.09 < took_s < 0.5


def test_an_operators_change_is_in_the_mirror_when_it_is_answered(agentd: Agentd, dealers: Dealers) -> None:
    """Published at once to all workers, obeyed by the lane, audited with who did it; and it survives kill -9."""
    agentd.start()
    RawAgent(dealers, agentd)
    worker = RawWorker(dealers, agentd)
    assert get(agentd, "/api/breakers/waf/open", "POST")[1]["state"] == "forced_open"
    found = row(agentd)
    assert found is not None
    assert found.breaker is BreakerState.FORCED_OPEN
    worker.ask(1)
    assert worker.decision()[1].reason == "breaker_open"
    audited = wait_until(lambda: [r for r in records(agentd) if r["decision"] == "admin"])
    assert audited[0]["decided_by"] == f"uid {os.getuid()} pid {os.getpid()}"
    agentd.child.kill()
    agentd.start()
    found = row(agentd)
    assert found is not None
    assert found.breaker is BreakerState.FORCED_OPEN
    assert get(agentd, "/api/breakers/waf/reset", "POST")[1]["state"] == "closed"
    assert agentd.child.stop() == 0
    agentd.start()
    found = row(agentd)
    assert found is not None
    assert found.breaker is BreakerState.CLOSED


def test_changed_numbers_act_at_once_and_are_checked(agentd: Agentd) -> None:
    """Ranges are those of the configuration; over TCP without a token nothing changes."""
    agentd.start()
    assert get(agentd, "/api/breakers/waf/open", "POST", over_tcp=True)[0] == 403
    connection = HTTPConnection("localhost")
    for body, status in (('{"failure_threshold": 3}', 200), ('{"failure_threshold": 0}', 400)):
        connection = HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(agentd.runtime / "admin.sock"))
        connection.request("PATCH", "/api/breakers/waf/set", body)
        response = connection.getresponse()
        response.read()
        connection.close()
        assert response.status == status
    ((breaker,),) = [get(agentd, "/api/breakers")[1]["breakers"]]
    assert (breaker["failure_threshold"], breaker["success_threshold"], breaker["state"]) == (3, 2, "closed")


def test_stopping_drains_the_agents(agentd: Agentd, dealers: Dealers) -> None:
    """DRAIN; the pinned call is still answered; new ones are refused at once; then BYE and the end."""
    agentd.start()
    agent = RawAgent(dealers, agentd)
    wait_until(lambda: (found := row(agentd)) is not None and found.live_instances == 1)
    worker = RawWorker(dealers, agentd)
    worker.ask(1)
    ((call, *_),) = json.loads(agent.expect(b"EVENTS")[0])
    agentd.child.signal(signal.SIGTERM)
    agent.expect(b"DRAIN")
    assert get(agentd, "/health/ready")[0] == 503
    began = time.monotonic()
    worker.ask(2)
    event_id, decision = worker.decision()
    assert (event_id, decision.verb, decision.reason) == (2, Verb.FAIL, "queue_full")
    assert time.monotonic() - began < 1
    agent.send(b"VERDICTS", json.dumps([[call, {"decision": "allow"}]]).encode())
    assert worker.decision() == (1, Decision())
    agent.expect(b"BYE")
    assert agentd.child.ended() == 0
    assert os.listdir(agentd.runtime) == ["agents"]


def test_a_second_signal_ends_the_patience(agentd: Agentd, dealers: Dealers) -> None:
    """With a call that would hold the drain for its two seconds."""
    agentd.start()
    agent = RawAgent(dealers, agentd)
    wait_until(lambda: (found := row(agentd)) is not None and found.live_instances == 1)
    worker = RawWorker(dealers, agentd)
    worker.ask(1)
    agent.expect(b"EVENTS")
    began = time.monotonic()
    agentd.child.signal(signal.SIGTERM)
    agent.expect(b"DRAIN")
    agentd.child.signal(signal.SIGINT)
    assert worker.decision()[1].reason == "disconnected"
    assert agentd.child.ended() == 0
    assert time.monotonic() - began < 1.9


# --- bad times -------------------------------------------------------------------------------------


def test_a_full_disk_is_seen_and_survived(agentd: Agentd) -> None:
    """The audit cannot grow: degraded in health, agentd serves on; with room again everything is written."""
    agentd.start()
    assert get(agentd, "/api/breakers/waf/open", "POST")[0] == 200
    wait_until(lambda: len(records(agentd)) == 1)
    size = agentd.audit.stat().st_size
    limits = resource.prlimit(agentd.child.pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    assert get(agentd, "/api/breakers/waf/reset", "POST")[0] == 200

    def audit() -> dict[str, Any]:
        return next(c for c in get(agentd, "/health")[1]["components"] if c["name"] == "audit")

    assert "File too large" in wait_until(lambda: audit() if audit()["status"] == "degraded" else None)["message"]
    assert len(records(agentd)) == 1, "no half line"
    resource.prlimit(agentd.child.pid, resource.RLIMIT_FSIZE, limits)
    wait_until(lambda: len(records(agentd)) == 2, 10)
    wait_until(lambda: audit()["status"] == "healthy")


def test_sigusr1_opens_the_audit_file_anew(agentd: Agentd) -> None:
    """For logrotate's postrotate."""
    agentd.start()
    get(agentd, "/api/breakers/waf/open", "POST")
    wait_until(lambda: len(records(agentd)) == 1)
    os.rename(agentd.audit, agentd.audit.with_suffix(".1"))
    agentd.child.signal(signal.SIGUSR1)
    wait_until(agentd.audit.exists)
    get(agentd, "/api/breakers/waf/reset", "POST")
    wait_until(lambda: len(records(agentd)) == 1)
    assert records(agentd)[0]["phase"] == "breaker.reset"


def test_garbage_from_a_worker_is_counted_and_kills_nobody(agentd: Agentd, dealers: Dealers) -> None:
    """Logged with the peer; the next message is served."""
    agentd.start()
    worker = RawWorker(dealers, agentd)
    worker.socket.send(b"\xff" * 100)
    worker.socket.send_multipart([b"a", b"b"])
    agentd.child.wait_for("unusable message from a worker")
    worker.ask(1)
    assert worker.decision()[1].reason == "disconnected"
    status, _ = get(agentd, "/health/live")
    assert status == 200
