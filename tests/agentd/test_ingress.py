"""Workers' messages over a real socket: who may speak, what is dropped, how replies leave."""

import asyncio
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from agentd.call import CallState
from agentd.dispatcher import Dispatcher
from agentd.ingress import Ingress, Link, _split
from shared.clock import S, now_ns
from shared.decision import ALLOW, Decision, Verb
from shared.defaults import HOP_MAX_FRAMES, HOP_MAX_MESSAGE_BYTES, WIRE_VERSION
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
from tests.agentd.zmq_world import GREETING, is_cut
from tests.support import Child, python, until

EVENT = b'{"event_type":"request_headers"}'


def event(number: int, *, exchange: int = 1, final: bool = True, plan_number: int = 0, kind: int = 1) -> bytes:
    """An EVENT record, a second from its deadline."""
    fields = pack_event_fields(number, exchange, 1, now_ns() + S, plan_number, kind, int(final), len(EVENT))
    return fields + EVENT


class WorkerEnd:
    """A worker, with libzmq's DEALER; keeps every message it got."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", path: str, **options: Any) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(f"ipc://{path}")
        self.identity = b""  # agentd's name for it, once it has registered
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

    def __init__(self, directory: Path, **options: Any) -> None:
        self.path = str(directory / "workers.sock")
        self.audit: list[bytes] = []
        loop = asyncio.get_running_loop()
        self.dispatcher = Dispatcher("n-", now_ns, lambda deadline: None, lambda record: None)
        self.dispatcher.configure([agent()])
        self.instance = FakeInstance(self.dispatcher.lanes["waf"]).up()
        self.ingress = Ingress(
            loop, self.path, self.dispatcher, self.audit.append, nonce="n1", config_digest="d1", **options
        )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.workers: list[WorkerEnd] = []

    def worker(self, **options: Any) -> WorkerEnd:
        made = WorkerEnd(self.context, self.path, **options)
        self.workers.append(made)
        return made

    async def registered(self, *plans: Plan, **options: Any) -> WorkerEnd:
        made = self.worker(**options)
        await made.register(*plans)
        *_, made.identity = self.dispatcher.workers
        return made

    def link(self, worker: WorkerEnd) -> Link:
        return next(link for link in self.ingress.links.values() if link.worker.identity == worker.identity)

    def close(self) -> None:
        for worker in self.workers:
            worker.socket.close(0)
        self.ingress.close()
        self.context.term()


@pytest.fixture
async def hop(short_tmp_dir: Path) -> AsyncIterator[Hop]:
    made = Hop(short_tmp_dir)
    yield made
    made.close()


async def test_socket_is_ours_alone(hop: Hop) -> None:
    """Mode 0600, whatever the umask; the umask is as before."""
    assert stat.S_IMODE(os.stat(hop.path).st_mode) == 0o600
    mask = os.umask(0o022)
    os.umask(mask)
    assert mask != 0o177


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
    workers = [await hop.registered(), await hop.registered()]
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
        ((worker.identity, 1), CancelReason.CLIENT_GONE),
        ((worker.identity, 2), CancelReason.DECIDED),
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
    """Who has not registered is named by its process; an empty message is only a message."""
    worker = hop.worker()
    worker.send(b"\x01")
    worker.send(b"")
    await until(lambda: hop.ingress.messages == 2)
    assert f"unregistered pid {os.getpid()} uid {os.getuid()}" in capfd.readouterr().err
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


@pytest.mark.parametrize("parts", [1, 2], ids=["one frame", "its frames together"])
async def test_a_message_over_the_limit_disconnects(hop: Hop, parts: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Before it has come; the worker's calls are cancelled, and after reconnecting it registers anew."""
    worker = await hop.registered()
    worker.send(event(1))
    await until(lambda: hop.instance.calls)
    worker.send(*[bytes(HOP_MAX_MESSAGE_BYTES // parts + 1)] * parts)
    await until(lambda: hop.instance.cancelled)
    assert hop.dispatcher.workers == {}
    assert hop.ingress.malformed == 1
    assert f"a message of more than {HOP_MAX_MESSAGE_BYTES} bytes" in capfd.readouterr().err

    def served() -> bool:
        worker.send(event(2))
        return RecordType.UNKNOWN in worker.kinds()

    await until(served)
    await worker.register()
    assert len(hop.dispatcher.workers) == 1


async def test_more_frames_than_there_may_be(hop: Hop) -> None:
    """4,096 bodies and not one more."""
    worker = await hop.registered()
    worker.send(event(1), *[b""] * (HOP_MAX_FRAMES - 1))
    await until(lambda: hop.instance.sent)
    worker.send(event(2), *[b""] * HOP_MAX_FRAMES)
    await until(lambda: hop.instance.cancelled)
    assert (hop.ingress.malformed, len(hop.instance.sent)) == (1, 1)


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
    assert len(hop.ingress._peers.all) == 1


async def test_whoever_does_not_register_is_cut(hop: Hop, capfd: pytest.CaptureFixture[str]) -> None:
    """Two seconds after connecting, not before; who has registered stays."""
    await hop.registered()
    silent = hop.worker()
    await until(lambda: len(hop.ingress._peers.all) == 2)
    quiet = next(peer for peer in hop.ingress._peers.all if peer.owner is None)
    hop.ingress.tick(quiet.accepted_ns + 2 * S)
    assert quiet in hop.ingress._peers.all
    hop.ingress.tick(quiet.accepted_ns + 2 * S + 1)
    assert "did not register" in capfd.readouterr().err
    assert quiet not in hop.ingress._peers.all
    await silent.register()  # libzmq reconnects by itself
    assert len(hop.dispatcher.workers) == 2


async def test_a_handshake_that_goes_no_further_is_cut(hop: Hop) -> None:
    """Half a greeting takes a place no longer than silence does."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.setblocking(False)
        raw.connect(hop.path)
        raw.send(GREETING[:20])
        await until(lambda: hop.ingress._peers.all)
        (peer,) = hop.ingress._peers.all
        hop.ingress.tick(peer.accepted_ns + 2 * S + 1)
        assert await is_cut(raw)


async def test_a_dead_connection_cancels_its_calls_at_once(hop: Hop) -> None:
    """Only its own; the other worker does not notice."""
    dying, other = await hop.registered(), await hop.registered()
    dying.send(event(1, final=False) + event(2, final=False))
    other.send(event(1, final=False))
    await until(lambda: len(hop.instance.calls) == 3)
    dying.socket.close(0)
    await until(lambda: len(hop.instance.cancelled) == 2)
    assert {call.exchange_key for call, _ in hop.instance.cancelled} == {(dying.identity, 1)}
    assert all(reason is CancelReason.CLIENT_GONE for _, reason in hop.instance.cancelled)
    assert all(call.state is CallState.ENDED for call, _ in hop.instance.cancelled)
    assert list(hop.dispatcher.workers) == [other.identity]
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
    assert len(hop.dispatcher.workers[worker.identity].plans) == 2


async def test_a_routing_id_is_nothing(hop: Hop) -> None:
    """Two connections under one id are two workers, each with its own events and decisions."""
    workers = [await hop.registered(ROUTING_ID=b"w1") for _ in range(2)]
    assert len(hop.dispatcher.workers) == 2
    for number, worker in enumerate(workers):
        worker.send(event(number))
    await until(lambda: len(hop.instance.calls) == 2)
    hop.instance.answer()
    hop.instance.answer()
    for number, worker in enumerate(workers):
        await until(worker.decisions)
        assert [event_id for event_id, _ in worker.decisions()] == [number]


async def test_a_worker_that_is_back(hop: Hop) -> None:
    """Before the end of its earlier connection was seen."""
    first = await hop.registered()
    first.send(event(1))
    await until(lambda: hop.instance.calls)
    first.socket.close(0)
    second = await hop.registered()
    await until(lambda: hop.instance.cancelled)
    second.send(event(1))
    await until(lambda: hop.instance.calls)
    hop.instance.answer()
    await until(second.decisions)
    assert list(hop.dispatcher.workers) == [second.identity]


async def test_a_worker_that_does_not_read(short_tmp_dir: Path) -> None:
    """Its replies are dropped at the bound, counted; another worker is served as before; then it reads on."""
    hop = Hop(short_tmp_dir, max_unsent=4_000_000)
    try:
        deaf = await hop.registered(RCVHWM=1)
        other = await hop.registered()
        link = hop.link(deaf)
        page = Decision(Verb.BLOCK, 403, body=bytes(1_000_000), agent="waf", reason="block")
        for number in range(100):
            link.reply(number, page)
            hop.ingress._flush()
        taken = 100 - hop.ingress.replies_dropped
        assert 4 <= taken <= 20
        assert 4_000_000 <= hop.ingress.unsent_bytes <= 5_100_000
        other.send(event(1))
        await until(lambda: hop.instance.calls)
        hop.instance.answer(ALLOWED)
        await until(other.decisions)
        await until(lambda: len(deaf.decisions()) == taken)
        assert [event_id for event_id, _ in deaf.decisions()] == list(range(taken))
        assert hop.ingress.unsent_bytes == 0
    finally:
        hop.close()


async def test_what_is_queued_for_a_worker_that_is_gone(hop: Hop) -> None:
    """Answered and gone in one turn: its decision is dropped and counted, the other worker's leaves."""
    going, other = await hop.registered(), await hop.registered()
    hop.link(going).reply(1, ALLOW)
    hop.link(other).reply(2, ALLOW)
    hop.ingress._peers.cut(hop.link(going).peer)
    await until(other.decisions)
    assert hop.ingress.replies_dropped == 1


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
    assert not os.listdir(short_tmp_dir)
    hop.close()
    with pytest.raises(FileNotFoundError):
        Hop(short_tmp_dir / "no")
