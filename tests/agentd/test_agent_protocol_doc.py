"""docs/agent-protocol.md: the agents printed there run, and its tables leave nothing out."""

import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from agentd.registry import RETRY_AFTER_MS
from agentd.transport.zmq_rep import V1Transport
from shared import defaults as d
from shared.decision import PROTECTED, Outcome, Verb
from shared.events import BY_WIRE_NAME, SUPPORTED
from shared.wire.agent_messages import RefuseCode
from shared.wire.agent_zmq import VERBS
from tests.agentd.zmq_world import EVENT, World, agent

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "agent-protocol.md").read_text()


def code(name: str) -> str:
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", TEXT, re.S)
    assert found
    return found[1]


@contextmanager
def running(source: str, *args: str) -> Iterator["subprocess.Popen[bytes]"]:
    child = subprocess.Popen([sys.executable, "-c", source, *args], stderr=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stderr
        child.stderr.close()


async def decides(world: World) -> None:
    """`/admin` is blocked, everything else allowed."""
    lane = world.lane
    await world.until(lambda: lane.live_instances)
    world.ask()
    (call,) = await world.asker.wait(1)
    assert (call.outcome, call.screened.decision.verb) == (Outcome.DECISION, Verb.ALLOW)
    world.ask(event=EVENT.replace(b'"uri":"/"', b'"uri":"/admin"'))
    *_, call = await world.asker.wait(2)
    assert call.screened.decision.status == 403


async def test_the_ten_line_agent() -> None:
    async with World(agent()) as world:
        old = agent("old", protocol="zmq-v1", endpoint=f"ipc://{world.dir}/a")
        world.lanes = {"old": type(world.lane)(old, world.clock, world.lane._alarm)}
        world.v1 = V1Transport(world.context, world.loop, [old], world.lanes)
        world.v1.start()
        with running(code("v1"), old.endpoint):
            await world.until(lambda: world.v1.on_time(world.clock()) or world.lane.live_instances)
            await decides(world)


async def test_the_agent_without_sdk() -> None:
    """It registers, decides, and comes back by itself when agentd has forgotten it."""
    async with World() as world:
        with running(code("v2"), "waf", world.runtime.agents_endpoint):
            await decides(world)
            (session,) = world.seat.sessions.values()
            world.v2._reception.lost(session, "forgotten")
            assert world.lane.live_instances == 0
            world.v2.transmit(session, [b"REFUSE", b'{"code":"hello_first","reason":"","retry_after_ms":0}'])
            await world.until(lambda: world.lane.live_instances)


async def test_it_leaves_when_the_refusal_is_final() -> None:
    async with World() as world:
        with running(code("v2"), "nobody", world.runtime.agents_endpoint) as child:
            await world.until(lambda: child.poll() is not None)
            assert child.stderr
            assert b"refused: unknown_agent" in child.stderr.read()


async def test_it_drains_when_told_to_stop() -> None:
    async with World() as world:
        with running(code("v2"), "waf", world.runtime.agents_endpoint) as child:
            await decides(world)
            child.terminate()
            await world.until(lambda: child.poll() is not None)
            assert child.returncode == 0
            assert world.seat.garbage == 0


async def test_it_proves_the_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"open sesame\n")
    secret = str(tmp_path / "secret")
    async with World(agent(secret_file=secret)) as world:
        with running(code("v2"), "waf", world.runtime.agents_endpoint, secret):
            await decides(world)


async def test_it_leaves_when_a_secret_is_wanted_that_it_has_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"open sesame\n")
    async with World(agent(secret_file=str(tmp_path / "secret"))) as world:
        with running(code("v2"), "waf", world.runtime.agents_endpoint) as child:
            await world.until(lambda: child.poll() is not None)
            assert child.returncode == 1
            assert child.stderr
            assert b"no secret" in child.stderr.read()


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_paths_are_compared_as_the_upstream_may_read_them(name: str) -> None:
    found = re.search(r"^def path_of.*?\n\n", code(name), re.M | re.S)
    assert found
    space: dict[str, Any] = {"re": re, "posixpath": posixpath, "unquote": unquote}
    exec(found[0], space)
    path_of = space["path_of"]
    for uri in (
        "/admin", "/admin?x", "/%61dmin", "//admin", "///admin", "/;x/admin", "/admin;x", "/admin%3Bx",
        "/public/..;/admin",
        "http://host/admin", "HTTP://host//admin?http://x/y", "//admin?://x",
    ):  # fmt: skip
        assert path_of(uri) == "/admin", uri
    assert path_of("/%2561dmin") == "/%61dmin"
    assert path_of("http://host") == path_of("http://host?/admin") == "/"
    assert path_of("*") == "*"


def test_every_verb_and_code_is_described() -> None:
    for verb in VERBS:
        assert f"`{verb.decode()}`" in TEXT
    rows = dict(re.findall(r"^\| `(\w+)` \| (0|yes|-) \|", TEXT, re.M))
    assert set(rows) == {code.value for code in RefuseCode}
    for refusal in RefuseCode:
        if refusal is not RefuseCode.DUPLICATE_INSTANCE:  # both
            assert (rows[refusal.value] == "-") == (refusal not in RETRY_AFTER_MS), refusal


def test_events_that_are_not_sent_yet_are_marked() -> None:
    for name, kind in BY_WIRE_NAME.items():
        row = re.search(rf"^\| `{name}`(.*?)\|", TEXT, re.M)
        assert row, name
        if name != "configure":
            assert ("◌" in row[1]) == (kind not in SUPPORTED), name


def test_protected_fields_are_all_named() -> None:
    for name in PROTECTED:
        assert name in TEXT.lower()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16 MiB", d.AGENT_MAX_MESSAGE_BYTES / 2**20 == 16),
        ("4,098 frames", d.AGENT_MAX_FRAMES == 4_098),
        ("64 KiB", d.AGENT_CONTROL_MAX_BYTES == 65_536),
        ("1 MiB in METRICS", d.AGENT_METRICS_MAX_BYTES == 2**20),
        ("32 MiB or 1,000 messages", (d.SESSION_MAX_BYTES, d.AGENT_HWM) == (32 * 2**20, 1_000)),
        ("64 instances", d.MAX_SESSIONS_PER_AGENT == 64),
        ("at most 256)", d.MAX_BATCH == 256),
        ("at most 256 bytes together", d.AGENT_PING_MAX_BYTES == 256),
        ("more than 100 messages other than VERDICTS", d.AGENT_CHATTER_PER_S == 100),
        ("HELLO within 2 s", d.HELLO_WITHIN_MS == 2_000),
        ("It waits 5 s", d.V1_CONFIGURE_MS == 5_000),
        ("at most 32 characters", d.MAX_CALL_ID_CHARS == 32),
        ("three bad messages within a minute", d.BAD_MESSAGES_PER_MIN == 3),
        ("30,000 if absent", d.DRAIN_DEADLINE_MS == 30_000),
        ("default 100;", d.HELLO_MAX_CONCURRENCY == 100),
    ],
)
def test_numbers_are_the_real_ones(text: str, value: bool) -> None:
    assert text in re.sub(r"\s+", " ", TEXT)
    assert value
