"""docs/agent-protocol.md: the agents printed there run, and its tables leave nothing out."""

import json
import posixpath
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import zmq

from agentd.registry import RETRY_AFTER_MS
from agentd.transport.zmq_rep import V1Transport
from shared import defaults as d
from shared.config.load import load
from shared.decision import PROTECTED, ChunkAction, ChunkVerdict, Decision, Outcome, Verb
from shared.events import BY_WIRE_NAME, SUPPORTED, EventKind
from shared.wire.agent_messages import Configuration, RefuseCode, Side, Verdicts
from shared.wire.agent_zmq import VERBS, EventRow, pack_events, pack_v1, pack_v1_configure, unpack, unpack_v1
from shared.wire.verdict import Question, Verdict, decode_verdict, screen
from shared.zmtp import COMMANDS_AT_ONCE
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


PIECES = [b"my se", b"", b"cre", b"t!"]
CLEAN = b"my XXXXXX!"


def chunks(correlation_id: str, pieces: list[bytes]) -> list[dict[str, Any]]:
    """The events of a body, as they are shown."""
    return [
        {
            "event_type": "request_body_chunk",
            "correlation_id": correlation_id,
            "chunk_index": index,
            "is_last": index == len(pieces) - 1,
            "bytes_received": sum(map(len, pieces[: index + 1])),
        }
        for index in range(len(pieces))
    ]


def shown(event: dict[str, Any], raw: bytes, body: bytes | None = None) -> Decision:
    """What a verdict on a chunk comes to."""
    asked = Question(EventKind.REQUEST_BODY_CHUNK, False, event["chunk_index"], event["is_last"])
    screened = screen(decode_verdict(raw), "redactor", asked, body)
    assert screened.decision, screened
    return screened.decision


def comes_to(decisions: list[Decision]) -> bytes:
    """All but the last are held, the last replaces all of it."""
    *held, last = decisions
    assert [one.chunk for one in held] == [ChunkVerdict(hold=1)] * len(held)
    assert last.chunk == ChunkVerdict(ChunkAction.REPLACE, 0)
    return last.body


def test_the_body_agent_of_protocol_1(tmp_path: Path) -> None:
    """It answers every event, and hides the word wherever the chunks end."""
    endpoint = f"ipc://{tmp_path}/a"
    with zmq.Context() as context, context.socket(zmq.REQ) as socket, running(code("v1-body"), endpoint):
        socket.linger = 0
        socket.rcvtimeo = 10_000
        socket.connect(endpoint)

        def asked(event: dict[str, Any], body: bytes | None) -> bytes:
            socket.send(pack_v1(event["event_type"], json.dumps(event, separators=(",", ":")).encode(), body))
            return socket.recv()

        settings = Configuration({}, "1", 200, 1, 1)
        socket.send(pack_v1_configure("redactor", settings))
        assert unpack_v1([socket.recv()]).decision == "allow"
        for pieces in (PIECES, [b"my secret!"]):
            events = chunks("c-1", pieces)
            answers = [asked(event, body) for event, body in zip(events, pieces, strict=True)]
            assert comes_to([shown(event, raw) for event, raw in zip(events, answers, strict=True)]) == CLEAN
        half, *_ = chunks("c-2", PIECES)
        asked(half, PIECES[0])
        asked({"event_type": "request_complete", "metadata": {"correlation_id": "c-2"}}, None)
        (again,) = chunks("c-2", [b"secret"])
        assert shown(again, asked(again, b"secret")).body == b"XXXXXX"


def test_the_body_agent_of_protocol_2() -> None:
    """Bodies in and out by their index, request_complete without an answer, heads as before."""
    space: dict[str, Any] = {"json": json, "decide": lambda event: {"decision": "allow", "routing_metadata": {}}}
    exec(code("v2-body"), space)
    decisions: list[Decision] = []
    for event, body in zip(chunks("c-1", PIECES), PIECES, strict=True):
        other, *_ = chunks("c-9", [b"other", b""])
        rows: list[EventRow] = [("o", 9, json.dumps(other).encode(), 0), ("h", 9, EVENT, None)]
        rows.append(("c", 9, json.dumps(event).encode(), 1 if body else None))
        frames = pack_events(rows, [b"other", body] if body else [b"other"])
        message = space["answer"](frames[1:])
        verb, entries, *bodies = message
        assert verb == b"VERDICTS"
        sent = unpack([verb, json.dumps(entries).encode(), *bodies], Side.AGENT)
        assert isinstance(sent, Verdicts)
        by_call = {entry.call: entry for entry in sent.entries}
        assert json.loads(bytes(by_call["h"].verdict))["decision"] == "allow"
        n = by_call["c"].n
        decisions.append(shown(event, bytes(by_call["c"].verdict), None if n is None else sent.bodies[n]))
    assert comes_to(decisions) == CLEAN
    done = json.dumps([["d", 9, {"event_type": "request_complete", "metadata": {"correlation_id": "c-9"}}]])
    assert space["answer"]([done.encode()]) == [b"VERDICTS", []]
    assert space["held"] == {}


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


async def test_the_agent_without_sdk_as_a_body_agent() -> None:
    """Put together as the page says, it holds a body and replaces it, and still decides about heads."""
    events = ("request_headers", "request_body_chunk", "request_complete")
    source = code("v2").replace('["request_headers"]', json.dumps(events))
    source = source.replace("socket = zmq.Context", code("v2-body") + "\n\nsocket = zmq.Context")
    answering = re.search(r'say\(b"VERDICTS", .*\)', source)
    assert answering
    source = source.replace(answering[0], "say(*answer(frames))")
    async with World(agent(events=events)) as world:
        with running(source, "waf", world.runtime.agents_endpoint):
            await decides(world)
            calls = 2
            decisions = []
            for event, body in zip(chunks("c-1", PIECES), PIECES, strict=True):
                index, is_last = event["chunk_index"], event["is_last"]
                raw = json.dumps(event).encode()
                kind = EventKind.REQUEST_BODY_CHUNK
                world.ask(event=raw, kind=kind, body=body or None, index=index, is_last=is_last)
                calls += 1
                *_, call = await world.asker.wait(calls)
                assert call.outcome is Outcome.DECISION
                decisions.append(call.screened.decision)
            assert comes_to(decisions) == CLEAN


def test_every_event_has_its_row_and_is_sent() -> None:
    for name, kind in BY_WIRE_NAME.items():
        assert re.search(rf"^\| `{name}`.*?\|", TEXT, re.M), name
        assert name == "configure" or kind in SUPPORTED
    assert "◌" not in TEXT


def test_every_field_of_events_and_verdicts_is_named() -> None:
    """Those of the vectors, which are ours byte for byte, and those that a verdict is read for."""
    vectors = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "events.json").read_text())
    for case in vectors:
        event = json.loads(case["event"])
        if case["is_sent"]:
            row = re.search(rf"^\| `{event['event_type']}` \|(.*)$", TEXT, re.M)
            assert row
            for name in event:
                assert name == "event_type" or f"`{name}`" in row[1], (event["event_type"], name)
    for field in Verdict.__struct_fields__:
        assert re.search(rf'`{field}`|"{field}"', TEXT), field


def test_the_configurations_of_the_page_are_accepted(tmp_path: Path) -> None:
    """With a route for each of their agents."""
    tables = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    assert len(tables) == 3
    for number, table in enumerate(tables):
        name = tomllib.loads(table)["agents"][0]["name"]
        path = tmp_path / f"{number}.toml"
        path.write_text(
            '[[upstreams]]\nname = "app"\ntargets = [{ address = "127.0.0.1:9000" }]\n'
            f'{table}\n[[routes]]\nname = "all"\nupstream = "app"\nfilters = [{{ agent = "{name}" }}]\n'
        )
        warnings = load(str(path), {}).warnings
        assert all("allow_users" in text or "websocket" in text for text in warnings), warnings


def test_protected_fields_are_all_named() -> None:
    for name in PROTECTED:
        assert name in TEXT.lower()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16 MiB", d.AGENT_MAX_MESSAGE_BYTES / 2**20 == 16),
        ("4,098 frames", d.AGENT_MAX_FRAMES == 4_098),
        ("64 KiB", d.AGENT_CONTROL_MAX_BYTES == 65_536),
        ("before WELCOME over 64 KiB or 16 frames", d.STRANGER_MAX_FRAMES == 16),
        ("more than 64 ZMTP commands at once", COMMANDS_AT_ONCE == 64),
        ("for 5 s a new one", d.BAD_PEER_RETRY_MS == 5_000),
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
        ("default 1 MiB)", d.HELLO_MAX_BODY_BYTES == 2**20),
        ("since your last answer, at most 1 MiB", d.BODY_CHUNK_BYTES == 2**20 == d.HELLO_MAX_BODY_BYTES),
        ("at most 1,000 detections", d.VERDICT_MAX_FIELDS == 1_000),
        ("up to 11 MiB fits", (d.AGENT_MAX_MESSAGE_BYTES - d.AGENT_MESSAGE_ROOM_BYTES) // 4 * 3 >= 11 * 2**20),
        ("up to 1.5 MiB into a verdict", d.VERDICT_MAX_BYTES // 4 * 3 == 1.5 * 2**20),
    ],
)
def test_numbers_are_the_real_ones(text: str, value: bool) -> None:
    assert text in re.sub(r"\s+", " ", TEXT)
    assert value
