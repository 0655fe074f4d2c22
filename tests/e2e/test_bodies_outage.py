"""agentd dies while bodies are under way: every exchange ends, with an answer, and none holds up another."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.agents import ALLOW
from tests.e2e.body_world import BodyWorld, chunk_is, head


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
