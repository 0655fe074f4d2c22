"""agentd as a process with bodies: what a worker sends in pieces, what agents of both protocols make of it."""

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from shared.clock import S, now_ns
from shared.decision import ChunkAction, ChunkVerdict, Decision, Verb
from shared.defaults import AGENT_MAX_FRAMES, BODY_CHUNK_BYTES, HOP_BODY_MAX_BYTES
from shared.events import EventKind
from shared.plan import Ask, Plan
from shared.wire import envelope
from shared.wire.envelope import FLAG_FINAL, FLAG_LAST, NO_BODY, CancelReason, RecordType
from tests.agentd.test_daemon import Dealers, RawAgent, records, row
from tests.support import Agentd, wait_until

HEAD, CHUNK, COMPLETE = EventKind.REQUEST_HEADERS, EventKind.REQUEST_BODY_CHUNK, EventKind.REQUEST_COMPLETE
BODY = os.urandom(300 * 1024)
PIECES = [BODY[at : at + 64 * 1024] for at in range(0, len(BODY), 64 * 1024)]
MIB = 1 << 20
CONFIG = """
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9" }]
[[agents]]
name = "waf"
protocol = "zmq-v2"
timeout_ms = 2000
max_outstanding_bytes = 67108864
circuit_breaker.failure_threshold = 100
[[agents]]
name = "old"
protocol = "zmq-v1"
endpoint = "ipc://%s"
timeout_ms = 2000
[[routes]]
name = "all"
upstream = "app"
filters = [{ agent = "waf" }, { agent = "old" }]
"""


class OldAgent:
    """A v1 agent in a thread: answers by a function of the message, which it keeps."""

    def __init__(self, endpoint: str) -> None:
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda message: {}
        self.seen: list[dict[str, Any]] = []
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.bind(f"ipc://{endpoint}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(20):
                message = json.loads(self._socket.recv())
                self.seen.append(message)
                self._socket.send_json({"version": 1, "decision": "allow", **self.answer(message)})
        self._socket.close(0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.term()


class Worker:
    """A worker made of records: plans for the head, the chunks and the end, for both agents each."""

    def __init__(self, dealers: Dealers, agentd: Agentd, *names: str) -> None:
        self.socket = dealers.connect(agentd.runtime / "workers.sock")
        asks = tuple(Ask(name, "closed", False, 2000) for name in names)
        told = tuple(Ask(name, "closed", True, 2000) for name in names)
        self.mask = (1 << len(names)) - 1
        self.plans = [
            Plan(0, "all", HEAD, False, False, asks),
            Plan(1, "all", CHUNK, False, False, asks),
            Plan(2, "all", COMPLETE, False, False, told),
        ]
        register = envelope.Register(os.getpid(), 0, "d", "c-", tuple(self.plans))
        self.socket.send(envelope.pack_register(register))
        assert self._records()[0][0] == RecordType.REGISTERED
        self.events = 0

    def _records(self) -> list[tuple[int, bytes, list[bytes]]]:
        assert self.socket.poll(5000), "no message from agentd"
        first, *bodies = self.socket.recv_multipart()
        return [(kind, bytes(rest), bodies) for kind, rest in envelope.records(first)]

    def send(self, plan: int, exchange: int, body: bytes = b"", index: int = 0, flags: int = 0) -> int:
        """One event."""
        self.events += 1
        kind = self.plans[plan].kind
        event = b'{"event_type":"%b","chunk_index":%d}' % (kind.wire_name.encode(), index)
        head = envelope.pack_event_fields(
            self.events,
            exchange,
            self.mask,
            now_ns() + 2 * S,
            plan,
            kind,
            flags,
            len(event),
            0 if body else NO_BODY,
            index,
        )
        self.socket.send_multipart([head + event, body] if body else [head + event])
        return self.events

    def decision(self) -> Decision:
        """Of the latest event."""
        ((kind, rest, bodies),) = self._records()
        if kind == RecordType.DECISION_BODY:
            number, frame, decision = envelope.unpack_decision_body(rest)
            assert (number, frame, len(bodies)) == (self.events, 0, 1)
            return Decision(body=bodies[0], chunk=decision.chunk)
        assert kind == RecordType.DECISION
        number, decision = envelope.unpack_decision(rest)
        assert number == self.events
        return decision


@pytest.fixture
def dealers() -> Iterator[Dealers]:
    made = Dealers()
    yield made
    made.close()


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, CONFIG % (short_tmp_dir / "old")) as made:
        yield made.start()


@pytest.fixture
def old(short_tmp_dir: Path) -> Iterator[OldAgent]:
    made = OldAgent(str(short_tmp_dir / "old"))
    yield made
    made.close()


def joined(dealers: Dealers, agentd: Agentd, instance: str = "i1") -> RawAgent:
    """A v2 agent that is live."""
    made = RawAgent(dealers, agentd, instance)
    wait_until(lambda: (found := row(agentd)) is not None and found.live_instances == 1)
    return made


def asked(agent: RawAgent) -> tuple[str, dict[str, Any], bytes]:
    """The one event of the next EVENTS, with its body."""
    frames = agent.expect(b"EVENTS")
    ((call, _, event, *n),) = json.loads(frames[0])
    return call, event, frames[1 + n[0]] if n else b""


def answer(agent: RawAgent, call: str, body: bytes | None = None, **verdict: Any) -> None:
    entry: list[Any] = [call, {"decision": "allow", **verdict}]
    agent.send(b"VERDICTS", json.dumps([entry if body is None else [*entry, 0]]).encode(), *([body] if body else []))


def mutation(index: int, action: str = "replace") -> dict[str, Any]:
    return {"chunk_index": index, "action": action}


def rss_bytes(agentd: Agentd) -> int:
    pages = Path(f"/proc/{agentd.child.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_a_body_in_pieces_through_a_v2_agent(agentd: Agentd, dealers: Dealers) -> None:
    """Held, replaced, dropped, a wrong index, skipped; to one instance in order, then the end of the request."""
    agent = joined(dealers, agentd)
    worker = Worker(dealers, agentd, "waf")
    worker.send(0, 1)
    call, event, _ = asked(agent)
    assert event["event_type"] == "request_headers"
    answer(agent, call)
    assert worker.decision() == Decision()
    said: list[tuple[dict[str, Any], bytes | None, Any]] = [
        ({"needs_more": True}, None, ChunkVerdict(hold=1)),
        ({"request_body_mutation": mutation(1)}, b"n" * 100_000, ChunkVerdict(ChunkAction.REPLACE, 0)),
        ({"request_body_mutation": mutation(2, "drop")}, None, ChunkVerdict(ChunkAction.DROP, 0)),
        ({"request_body_mutation": mutation(2)}, b"late", "malformed"),
        ({"skip_body": True}, None, ChunkVerdict(skip=1)),
    ]
    for index, (piece, (verdict, body, expected)) in enumerate(zip(PIECES, said, strict=True)):
        worker.send(1, 1, piece, index, FLAG_LAST if index == len(PIECES) - 1 else 0)
        call, event, seen = asked(agent)
        assert (event["chunk_index"], seen) == (index, piece)
        answer(agent, call, body, **verdict)
        decision = worker.decision()
        if expected == "malformed":
            assert (decision.verb, decision.status, decision.reason) == (Verb.FAIL, 503, "malformed")
        else:
            assert decision.chunk == expected
            assert decision.body == (body or b"")
    worker.send(2, 1, flags=FLAG_FINAL)
    call, event, _ = asked(agent)
    assert event["event_type"] == "request_complete"
    answer(agent, call)
    worker.send(0, 2)
    answer(agent, asked(agent)[0])
    assert worker.decision() == Decision()
    found = wait_until(lambda: records(agentd))
    assert [(record["phase"], record["reason"]) for record in found] == [("request_body_chunk", "malformed")]
    assert found[0]["agents"][0]["message"] == "the mutation is of chunk 2, the event's is 3"


def test_a_body_in_pieces_through_a_v1_agent(agentd: Agentd, dealers: Dealers, old: OldAgent) -> None:
    """The same in base64; whatever it says to request_complete is no failure."""
    wait_until(lambda: (found := row(agentd, "old")) is not None and found.live_instances == 1)
    replies: list[dict[str, Any]] = [
        {},
        {"needs_more": True},
        {"request_body_mutation": {"chunk_index": 1, "data": base64.b64encode(b"n" * 100_000).decode()}},
        {"request_body_mutation": {"chunk_index": 2, "data": ""}},
        {"request_body_mutation": {"chunk_index": 2, "data": "AA=="}},
        {"skip_body": True},
        {"decision": "whatever"},
    ]
    old.answer = lambda message: replies.pop(0)
    worker = Worker(dealers, agentd, "old")
    worker.send(0, 1)
    assert worker.decision() == Decision()
    found = []
    for index, piece in enumerate(PIECES):
        worker.send(1, 1, piece, index, FLAG_LAST if index == len(PIECES) - 1 else 0)
        found.append(worker.decision())
    assert [decision.chunk for decision in found] == [
        ChunkVerdict(hold=1),
        ChunkVerdict(ChunkAction.REPLACE, 0),
        ChunkVerdict(ChunkAction.DROP, 0),
        None,
        ChunkVerdict(skip=1),
    ]
    assert found[1].body == b"n" * 100_000
    assert found[3].reason == "malformed"
    worker.send(2, 1, flags=FLAG_FINAL)
    wait_until(lambda: not replies)
    old.answer = lambda message: {}
    worker.send(0, 2)
    assert worker.decision() == Decision()
    chunks = [message["payload"] for message in old.seen if message["event_type"] == "request_body_chunk"]
    assert b"".join(base64.b64decode(payload["data"], validate=True) for payload in chunks) == BODY
    assert [message["event_type"] for message in old.seen[-2:]] == ["request_complete", "request_headers"]


def test_replacements_that_are_too_long(agentd: Agentd, dealers: Dealers) -> None:
    """The longest that fits the hop arrives; longer ones end as the agent's failure, never as silence."""
    agent = joined(dealers, agentd)
    worker = Worker(dealers, agentd, "waf")
    for size, reason in ((HOP_BODY_MAX_BYTES, ""), (HOP_BODY_MAX_BYTES + 1, "malformed"), (17 * MIB, "disconnected")):
        worker.send(1, size, b"piece", flags=FLAG_LAST)
        call, _, _ = asked(agent)
        answer(agent, call, bytes(size), request_body_mutation=mutation(0))
        decision = worker.decision()
        assert decision.reason == reason
        assert len(decision.body) == size if not reason else decision.verb is Verb.FAIL
        worker.socket.send(envelope.pack_end(size))


def test_a_message_without_end(agentd: Agentd, dealers: Dealers) -> None:
    """More bodies than any message has: cut, its calls fail, and another instance is served."""
    agent = joined(dealers, agentd)
    worker = Worker(dealers, agentd, "waf")
    worker.send(1, 1, b"piece")
    call, _, _ = asked(agent)
    verdicts = json.dumps([[call, {"decision": "allow"}]]).encode()
    agent.send(b"VERDICTS", verdicts, *[b"x"] * AGENT_MAX_FRAMES)
    assert worker.decision().reason == "disconnected"
    agentd.child.wait_for(f"message of more than {AGENT_MAX_FRAMES} frames")


def test_memory_stays_flat(agentd: Agentd, dealers: Dealers) -> None:
    """128 MiB in pieces that are all held by the worker: agentd keeps none of them."""
    agent = joined(dealers, agentd)
    worker = Worker(dealers, agentd, "waf")
    piece = os.urandom(BODY_CHUNK_BYTES)
    before = 0
    for index in range(512):
        worker.send(1, 1, piece, index)
        call, _, seen = asked(agent)
        assert len(seen) == len(piece)
        answer(agent, call, needs_more=True)
        assert worker.decision().chunk == ChunkVerdict(hold=1)
        if index == 32:
            before = rss_bytes(agentd)
    assert rss_bytes(agentd) - before < 8 * MIB


def test_the_client_leaves_in_the_middle(agentd: Agentd, dealers: Dealers) -> None:
    """CANCEL for the chunk; the last event still goes where the others went."""
    agent = joined(dealers, agentd)
    worker = Worker(dealers, agentd, "waf")
    worker.send(1, 1, b"piece")
    call, _, _ = asked(agent)
    worker.socket.send(envelope.pack_cancel(1, CancelReason.CLIENT_GONE, more_follows=True))
    assert json.loads(agent.expect(b"CANCEL")[0]) == [[call, "client_gone"]]
    worker.send(2, 1, flags=FLAG_FINAL)
    assert asked(agent)[1]["event_type"] == "request_complete"
