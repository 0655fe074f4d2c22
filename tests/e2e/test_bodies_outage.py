"""agentd dies while bodies are under way: every exchange ends, with an answer, and none holds up another."""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.metrics import W_BODIES_OUTSTANDING, W_HOP_UNSENT, W_PENDING_EVENTS
from shared.segment import ProxyView
from tests.e2e.agents import ALLOW
from tests.e2e.body_world import LIMIT, BodyWorld, chunk_is, head
from tests.support import wait_until


@pytest.fixture
def world() -> Iterator[BodyWorld]:
    tmp = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    made = BodyWorld(tmp)
    yield made
    made.close()
    shutil.rmtree(tmp, ignore_errors=True)


def test_two_questions_of_each_exchange(world: BodyWorld) -> None:
    """A chunk's and the response head's: the first that fails ends the exchange, the second means nothing then."""
    world.upstream.is_hasty = True
    world.on["a"] = lambda e: None if chunk_is(e) or e["event_type"] == "response_headers" else ALLOW
    clients = [world.client() for _ in range(4)]
    for client in clients:
        client.send(head("/stream/died", "Content-Length: 100") + b"part")
    world.wait_for("a", "response_headers", len(clients))
    assert world.system.agentd is not None
    world.system.agentd.kill()
    assert [client.answer().status for client in clients] == [503] * len(clients)
    for client in clients:
        client.close()


def test_in_the_middle_of_a_long_message(world: BodyWorld) -> None:
    """agentd has taken half of what a worker says when it is killed: disconnected at once, its successor gets none."""
    agentd = world.system.agentd
    assert agentd is not None
    clients = [world.client() for _ in range(8)]
    with contextlib.closing(ProxyView(str(world.system.runtime / "proxy.seg"))) as view:
        view.attach()

        def total(cell: int) -> int:
            totals = view.totals()
            return totals.worker[cell] if totals is not None else -1

        agentd.signal(signal.SIGSTOP)
        for client in clients:
            client.send(head("/bodies/x", f"Content-Length: {LIMIT}") + bytes(LIMIT))
        wait_until(lambda: total(W_PENDING_EVENTS) == len(clients) and total(W_HOP_UNSENT) > LIMIT, what="half sent")
        agentd.kill()
        # 504 would be the agents' timeout, which comes before the heartbeat is found to be old.
        assert [client.answer().status for client in clients] == [503] * len(clients)
        wait_until(lambda: total(W_PENDING_EVENTS) == total(W_HOP_UNSENT) == total(W_BODIES_OUTSTANDING) == 0)
    world.system.start_agentd()
    wait_until(lambda: world.post("/bodies/again", bytes(LIMIT // 2)).status == 200, 10)
    assert [event["bytes_received"] for event in world.events("d", "request_body_chunk")] == [LIMIT // 2]
    for client in clients:
        client.close()
