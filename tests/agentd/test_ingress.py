"""Workers' messages over a real socket: who may speak, what is dropped, how replies leave."""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq

from agentd.call import CallState
from agentd.dispatcher import Dispatcher
from agentd.ingress import Ingress, _split
from shared.clock import S, now_ns
from shared.decision import ALLOW, Decision, Verb
from shared.defaults import HOP_MAX_MESSAGE_BYTES, WIRE_VERSION
from shared.plan import Plan
from shared.wire.envelope import (
    CancelReason,
    RecordType,
    Register,
    Registered,
    pack_audit,
    pack_cancel,
    pack_decision,
    pack_end,
    pack_event_fields,
    pack_register,
    records,
    unpack_decision,
    unpack_registered,
)
from shared.wire.verdict import Screened
from tests.agentd.fakes import ALLOWED, BLOCKED, FakeInstance, agent, ask, plan
from tests.support import Child, python, until

EVENT = b'{"event_type":"request_headers"}'


def event(number: int, *, exchange: int = 1, final: bool = True, plan_number: int = 0, kind: int = 1) -> bytes:
    """An EVENT record, a second from its deadline."""
    fields = pack_event_fields(number, exchange, 1, now_ns() + S, plan_number, kind, int(final), len(EVENT))
    return fields + EVENT


class WorkerEnd:
    """A worker's DEALER; keeps every message it got."""

    def __init__(self, context: zmq.Context, path: str, identity: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, identity)
        self.socket.connect(f"ipc://{path}")
        self.identity = identity
        self.messages: list[bytes] = []

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def read(self) -> list[tuple[int, bytes]]:
        """(type, rest) of every record so far."""
        while self.socket.poll(0):
            self.messages.append(self.socket.recv())
        return [(kind, bytes(rest)) for message in self.messages for kind, rest in records(message)]

    def kinds(self) -> list[int]:
        return [kind for kind, _ in self.read()]

    def decisions(self) -> list[tuple[int, Decision]]:
        return [unpack_decision(memoryview(rest)) for kind, rest in self.read() if kind == RecordType.DECISION]

    async def register(self, *plans: Plan, pid: int = 1) -> None:
        """Introduce ourselves and wait for the answer."""
        before = self.kinds().count(RecordType.REGISTERED)
        self.send(pack_register(Register(pid, 0, "digest", "corr-", plans or (plan(ask("waf")),))))
        await until(lambda: self.kinds().count(RecordType.REGISTERED) > before)


class Hop:
    """An ingress with one agent behind it, and workers before it."""

    def __init__(self, directory: Path) -> None:
        self.context = zmq.Context()
        self.path = str(directory / "workers.sock")
        self.audit: list[bytes] = []
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher("n-", now_ns, lambda deadline: None, lambda record: None)
        self.dispatcher.configure([agent()])
        self.instance = FakeInstance(self.dispatcher.lanes["waf"]).up()
        self.ingress = Ingress(
            self.context, loop, self.path, self.dispatcher, self.audit.append, nonce="n1", config_digest="d1"
        )
        self.workers: list[WorkerEnd] = []

    def worker(self, identity: bytes = b"w1") -> WorkerEnd:
        made = WorkerEnd(self.context, self.path, identity)
        self.workers.append(made)
        return made

    async def registered(self, identity: bytes = b"w1") -> WorkerEnd:
        made = self.worker(identity)
        await made.register()
        return made


@pytest.fixture
async def hop(short_tmp_dir: Path) -> AsyncIterator[Hop]:
    made = Hop(short_tmp_dir)
    yield made
    for worker in made.workers:
        worker.socket.close(0)
    made.ingress.close()
    made.context.term()


async def test_socket_is_ours_alone(hop: Hop) -> None:
    """Mode 0600, whatever the umask; the umask is as before."""
    assert stat.S_IMODE(os.stat(hop.path).st_mode) == 0o600
    mask = os.umask(0o022)
    os.umask(mask)
    assert mask != 0o177


async def test_no_zmtp_heartbeats(hop: Hop) -> None:
    """With them libzmq 4.3.5 aborts the process when a connection ends that it has stopped to read."""
    assert hop.ingress._pump.socket.getsockopt(zmq.HEARTBEAT_IVL) == 0


async def test_register_and_decide(hop: Hop) -> None:
    """REGISTERED names this start and its config; an event's bytes reach the agent, its decision comes back."""
    worker = await hop.registered()
    ((_, rest),) = worker.read()
    assert unpack_registered(memoryview(rest)) == Registered("n1", "d1")
    worker.send(event(5))
    await until(lambda: hop.instance.calls)
    assert bytes(hop.instance.sent[0].event) == EVENT
    hop.instance.answer(BLOCKED)
    await until(worker.decisions)
    assert worker.decisions() == [(5, BLOCKED.decision)]
    assert (hop.ingress.messages, hop.ingress.malformed, hop.ingress.replies_dropped) == (2, 0, 0)


async def test_replies_of_a_tick_are_one_message(hop: Hop) -> None:
    """Two workers with three events each: one message for each of them."""
    workers = [await hop.registered(b"w1"), await hop.registered(b"w2")]
    for worker in workers:
        worker.send(event(1) + event(2) + event(3))
    await until(lambda: len(hop.instance.calls) == 6)
    for _ in range(6):
        hop.instance.answer()
    for worker in workers:
        await until(lambda worker=worker: len(worker.decisions()) == 3)
        assert [number for number, _ in worker.decisions()] == [1, 2, 3]
        assert all(decision is ALLOW for _, decision in worker.decisions())
        assert len(worker.messages) == 2  # REGISTERED, decisions


async def test_unknown_worker_is_told_to_register(hop: Hop) -> None:
    """One UNKNOWN per message, nothing is asked; after registering it is served."""
    worker = hop.worker()
    worker.send(event(1) + event(2))
    await until(lambda: worker.kinds() == [RecordType.UNKNOWN])
    assert hop.ingress.unknown == 1
    assert hop.instance.sent == []
    await worker.register()
    worker.send(event(3))
    await until(lambda: hop.instance.sent)


async def test_register_and_events_in_one_message(hop: Hop) -> None:
    """What follows the REGISTER in the same tick is served."""
    worker = hop.worker()
    worker.send(pack_register(Register(1, 0, "d", "c-", (plan(ask("waf")),))) + event(1))
    await until(lambda: hop.instance.sent)


async def test_cancel_end_audit(hop: Hop) -> None:
    """CANCEL reaches the agents with its reason, END frees the pin, AUDIT goes to the sink as it is."""
    worker = await hop.registered()
    worker.send(event(1, exchange=1, final=False) + event(2, exchange=2, final=False))
    await until(lambda: len(hop.instance.calls) == 2)
    assert hop.instance.pins == 2
    worker.send(pack_cancel(1, CancelReason.CLIENT_GONE) + pack_end(2) + pack_audit(b'{"a":1}'))
    await until(lambda: hop.audit)
    assert [(call.exchange_key, reason) for call, reason in hop.instance.cancelled] == [
        ((b"w1", 1), CancelReason.CLIENT_GONE),
        ((b"w1", 2), CancelReason.DECIDED),
    ]
    assert hop.instance.pins == 0
    assert hop.audit == [b'{"a":1}']


BAD = {
    "empty length": b"\x00\x00\x00\x00\x01",
    "short record": b"\x01\x00",
    "length beyond the message": b"\xff\xff\xff\xff\x02",
    "event without fields": b"\x02\x00\x00\x00\x02\x00",
    "cancel without fields": b"\x01\x00\x00\x00\x03",
    "cancel for no known reason": b"\x0a\x00\x00\x00\x03" + b"\x01" + b"\x00" * 7 + b"\xff",
    "end without fields": b"\x01\x00\x00\x00\x04",
    "register without JSON": b"\x03\x00\x00\x00\x01" + WIRE_VERSION.to_bytes(2, "little"),
    "register with a table that cannot be run": pack_register(Register(1, 0, "d", "c-", (plan(),))),
    "register of a future worker": b"\x05\x00\x00\x00\x01\xff\xff{}",
    "event of no plan": event(9, plan_number=44),
    "event of another kind": event(9, kind=3),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input(hop: Hop, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Counted, logged with the peer, dropped; the worker stays registered, agentd goes on."""
    worker = await hop.registered()
    capfd.readouterr()
    worker.send(BAD[name])
    worker.send(event(1))
    await until(lambda: hop.instance.sent)
    assert hop.ingress.malformed == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "unusable message from a worker" in line
    assert f"pid {os.getpid()} uid {os.getuid()}" in line


async def test_bad_input_of_a_stranger(hop: Hop, capfd: pytest.CaptureFixture[str]) -> None:
    """Who has not registered is named by its routing id; an empty message is only a message."""
    worker = hop.worker(b"nobody")
    worker.send(b"\x01")
    worker.send(b"")
    await until(lambda: hop.ingress.messages == 2)
    assert "unregistered b'nobody'" in capfd.readouterr().err
    assert hop.ingress.malformed == 1


async def test_frames_within_the_limit(hop: Hop) -> None:
    """Bodies travel as frames of their own; the event is served."""
    worker = await hop.registered()
    worker.send(event(1), bytes(100_000), bytes(100_000))
    await until(lambda: hop.instance.sent)
    assert hop.ingress.malformed == 0


async def test_good_records_beside_a_bad_one(hop: Hop) -> None:
    """A record that fits no plan is dropped alone; one that breaks the framing ends its message."""
    worker = await hop.registered()
    worker.send(event(1) + event(2, plan_number=7) + event(3))
    worker.send(event(4) + b"\xff\xff\xff\xff\x02" + event(5))
    await until(lambda: hop.ingress.malformed == 2)
    assert len(hop.instance.sent) == 3


async def test_many_frames_over_the_limit(hop: Hop) -> None:
    """Frames that are each within the limit but not together: dropped before they are looked at."""
    worker = await hop.registered()
    half = bytes(HOP_MAX_MESSAGE_BYTES // 2)
    worker.send(event(1), half, half)
    await until(lambda: hop.ingress.malformed == 1)
    assert hop.instance.sent == []


async def test_a_frame_over_the_limit_disconnects(hop: Hop) -> None:
    """libzmq ends the connection; the worker's calls are cancelled, and after reconnecting it registers anew."""
    worker = await hop.registered()
    worker.send(event(1))
    await until(lambda: hop.instance.calls)
    worker.send(bytes(HOP_MAX_MESSAGE_BYTES + 1))
    await until(lambda: hop.instance.cancelled)
    assert hop.dispatcher.workers == {}

    def served() -> bool:
        worker.send(event(2))
        return RecordType.UNKNOWN in worker.kinds()

    await until(served)
    await worker.register()
    assert list(hop.dispatcher.workers) == [b"w1"]


async def test_unknown_record_is_skipped(hop: Hop) -> None:
    """A newer worker may say more; what we know of it is served."""
    worker = await hop.registered()
    worker.send(b"\x03\x00\x00\x00\x63ab" + event(1))
    await until(lambda: hop.instance.sent)
    assert hop.ingress.malformed == 0


async def test_another_wire_version_is_told_ours(hop: Hop) -> None:
    """It is not registered, but learns our version and can use its failure table."""
    worker = hop.worker()
    worker.send(b"\x05\x00\x00\x00\x01\xff\xff{}")
    await until(worker.read)
    (kind, rest) = worker.read()[0]
    assert kind == RecordType.REGISTERED
    assert int.from_bytes(rest[:2], "little") == WIRE_VERSION
    assert hop.dispatcher.workers == {}
    hop.ingress.tick(now_ns() + 10 * S)
    assert not any(peer.is_cut for peer in hop.ingress._peers.by_fd.values())


async def test_whoever_does_not_register_is_cut(hop: Hop, capfd: pytest.CaptureFixture[str]) -> None:
    """Two seconds after connecting, not before; who has registered stays."""
    await hop.registered()
    silent = hop.worker(b"silent")
    await until(lambda: len(hop.ingress._peers.by_fd) == 2)
    quiet = next(peer for peer in hop.ingress._peers.by_fd.values() if peer.owner is None)
    hop.ingress.tick(quiet.accepted_ns + 2 * S)
    assert not quiet.is_cut
    hop.ingress.tick(quiet.accepted_ns + 2 * S + 1)
    assert "did not register" in capfd.readouterr().err
    await until(lambda: quiet not in hop.ingress._peers.by_fd.values())
    await silent.register()  # libzmq reconnects by itself
    assert sorted(hop.dispatcher.workers) == [b"silent", b"w1"]


async def test_a_dead_connection_cancels_its_calls_at_once(hop: Hop) -> None:
    """Only its own; the other worker does not notice."""
    dying, other = await hop.registered(b"w1"), await hop.registered(b"w2")
    dying.send(event(1, final=False) + event(2, final=False))
    other.send(event(1, final=False))
    await until(lambda: len(hop.instance.calls) == 3)
    dying.socket.close(0)
    await until(lambda: len(hop.instance.cancelled) == 2)
    assert {call.exchange_key for call, _ in hop.instance.cancelled} == {(b"w1", 1)}
    assert all(reason is CancelReason.CLIENT_GONE for _, reason in hop.instance.cancelled)
    assert all(call.state is CallState.ENDED for call, _ in hop.instance.cancelled)
    assert list(hop.dispatcher.workers) == [b"w2"]
    hop.instance.answer()
    await until(other.decisions)


async def test_a_killed_worker_process(hop: Hop, short_tmp_dir: Path) -> None:
    """kill -9: its calls are cancelled without any timeout."""
    program = f"""
import zmq, sys
from tests.agentd.test_ingress import event, pack_register, Register, plan, ask
s = zmq.Context().socket(zmq.DEALER)
s.connect("ipc://{hop.path}")
s.send(pack_register(Register(1, 0, "d", "c-", (plan(ask("waf")),))) + event(1))
s.recv()
print("registered", flush=True)
s.recv()
"""
    env = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with Child(python("-c", program), short_tmp_dir / "out", env) as child:
        await until(lambda: hop.instance.calls, 20.0)
        (link,) = hop.ingress.links.values()
        assert link.peer.pid == child.pid
        child.kill()
        await until(lambda: hop.instance.cancelled, 2.0)
    assert hop.dispatcher.workers == {}


async def test_registering_twice(hop: Hop) -> None:
    """The same table again is only answered; another table replaces it and cancels what was under way."""
    worker = await hop.registered()
    worker.send(event(1))
    await until(lambda: hop.instance.calls)
    await worker.register()
    assert hop.instance.cancelled == []
    await worker.register(plan(ask("waf")), plan(ask("waf"), number=1))
    assert len(hop.instance.cancelled) == 1
    assert len(hop.dispatcher.workers[b"w1"].plans) == 2


async def test_a_routing_id_cannot_be_taken_over(hop: Hop) -> None:
    """A second connection under a live worker's id gets nothing, and changes nothing for the first."""
    worker = await hop.registered(b"w1")
    thief = hop.worker(b"w1")
    thief.send(pack_register(Register(2, 0, "d", "evil-", (plan(ask("waf")),))) + event(66))
    await until(lambda: len(hop.ingress._peers.by_fd) == 2)
    worker.send(event(1))
    await until(lambda: hop.instance.calls)
    hop.instance.answer()
    await until(worker.decisions)
    assert thief.read() == []
    assert len(hop.instance.sent) == 1
    assert hop.dispatcher.workers[b"w1"].register.correlation_prefix == "corr-"


async def test_a_worker_that_is_back_under_the_same_id(hop: Hop) -> None:
    """libzmq may still hold the id and then swallows what the new connection says: cut, it comes back and is heard."""
    first = await hop.registered(b"w1")
    first.socket.close(0)
    second = hop.worker(b"w1")

    def registered() -> bool:
        second.send(pack_register(Register(1, 0, "digest", "corr-", (plan(ask("waf")),))))
        for peer in list(hop.ingress._peers.by_fd.values()):
            if peer.owner is None:
                hop.ingress.tick(peer.accepted_ns + 3 * S)
        return RecordType.REGISTERED in second.kinds()

    await until(registered)
    second.send(event(1))
    await until(lambda: hop.instance.calls)
    assert list(hop.dispatcher.workers) == [b"w1"]


async def test_a_worker_that_does_not_read(hop: Hop) -> None:
    """Its replies are dropped at the high-water mark, counted; another worker is served as before."""
    deaf = hop.worker(b"deaf")
    deaf.socket.setsockopt(zmq.RCVHWM, 1)
    await deaf.register()
    other = await hop.registered(b"w2")
    link = hop.ingress.links[b"deaf"]
    page = Decision(Verb.BLOCK, 403, body=bytes(1_000_000), agent="waf", reason="block")
    for number in range(1_200):
        link.reply(number, page)
        hop.ingress._flush()
        if hop.ingress.replies_dropped:
            break
    assert hop.ingress.replies_dropped
    other.send(event(1))
    await until(lambda: hop.instance.calls)
    hop.instance.answer(ALLOWED)
    await until(other.decisions)


async def test_a_refusal_too_big_for_a_message_loses_its_page(hop: Hop) -> None:
    """It must arrive as a refusal all the same."""
    worker = await hop.registered()
    worker.send(event(1))
    await until(lambda: hop.instance.calls)
    big = Decision(Verb.BLOCK, 451, body=bytes(HOP_MAX_MESSAGE_BYTES), agent="waf", reason="block")
    hop.instance.answer(Screened(big))
    await until(worker.decisions)
    ((_, decision),) = worker.decisions()
    assert (decision.verb, decision.status, decision.body) == (Verb.BLOCK, 451, b"")


def test_replies_over_the_limit_are_several_messages() -> None:
    """In order, each within the limit, none lost."""
    third = pack_decision(1, Decision(Verb.BLOCK, 403, body=bytes(HOP_MAX_MESSAGE_BYTES // 3)))
    messages = _split([third] * 7)
    assert [count for _, count in messages] == [2, 2, 2, 1]
    assert all(len(message) <= HOP_MAX_MESSAGE_BYTES for message, _ in messages)
    assert _split([third]) == [(third, 1)]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
async def test_another_users_process_is_cut(hop: Hop, short_tmp_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Even where the file's mode would let it in: counted, logged with uid and pid, never registered."""
    os.chmod(short_tmp_dir, 0o711)
    os.chmod(hop.path, 0o666)
    hello = pack_register(Register(1, 0, "d", "evil-", (plan(ask("waf")),))) + event(1)
    program = f"""
import os, zmq
os.setuid(65534)
s = zmq.Context().socket(zmq.DEALER)
s.connect("ipc://{hop.path}")
s.send({hello!r})
s.recv()
"""
    with Child(python("-c", program), short_tmp_dir / "out") as child:
        await until(lambda: hop.ingress.malformed, 20.0)
        assert f"pid {child.pid} uid 65534" in capfd.readouterr().err
        await until(lambda: not child.popen.poll() and hop.ingress._peers.refused)
    assert hop.ingress.links == {}
    assert hop.dispatcher.workers == {}
    assert hop.instance.sent == []


async def test_close_removes_the_socket(short_tmp_dir: Path) -> None:
    """Workers see the end; calls are cancelled; a bind that fails leaves nothing open."""
    hop = Hop(short_tmp_dir)
    worker = await hop.registered()
    worker.send(event(1))
    await until(lambda: hop.instance.calls)
    hop.ingress.close()
    assert len(hop.instance.cancelled) == 1
    worker.socket.close(0)
    hop.context.term()
    assert not os.listdir(short_tmp_dir)
    context = zmq.Context()
    with pytest.raises(zmq.ZMQError):
        Ingress(
            context,
            asyncio.get_running_loop(),
            str(short_tmp_dir / "no" / "such"),
            hop.dispatcher,
            hop.audit.append,
            nonce="n",
        )
    context.term()
