"""A running agent against a scripted agentd, over real ZeroMQ."""

import asyncio
import contextlib
import logging
import select
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from wardgate_agent import Agent, AgentError, Allow, Block, Options, Runner
from wardgate_agent import wire as w
from wardgate_agent.events import Configure
from wardgate_agent.link import endpoint_problem, why_unreachable
from wardgate_agent.runner import OptionsError, default_instance, run

SKIP = (w.PING, w.HELLO)


class Sample(Agent):
    name = "sample"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.configs: list[Any] = []

    async def on_configure(self, configure: Any) -> None:
        if configure.get("bad"):
            raise ValueError("bad config")
        if configure.get("slow"):
            await self.gate.wait()
        self.configs.append(configure.config)

    def on_request_headers(self, event: Any) -> Any:
        if event.path == "/later":
            return self.later()
        if event.path == "/pause":
            self.session.pause()
        return Block(403) if "x-block" in event.headers else Allow().set_request_header("x-agent", "ok")

    async def later(self) -> Any:
        self.began.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Allow()


class Running:
    """A runner in a task."""

    def __init__(self, agent: Agent, endpoint: str, **options: Any) -> None:
        self.runner = Runner(agent, Options(connect=endpoint, **options))
        self.task = asyncio.create_task(self.runner.serve())

    async def exit_code(self) -> int:
        async with asyncio.timeout(10):
            return await self.task


@pytest.fixture
async def started(agentd: Any) -> AsyncIterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(agent: Agent, *, endpoint: str = agentd.endpoint, **options: Any) -> Running:
        running.append(Running(agent, endpoint, **options))
        return running[-1]

    yield start
    for one in running:
        one.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await one.task


async def test_hello_says_who_it_is(agentd: Any, started: Any) -> None:
    started(Sample(), instance="h1-1", max_batch=16, max_concurrency=7, version="1.2")
    hello = await agentd.accept()
    assert hello == {
        "protocol": 2,
        "agent": "sample",
        "instance": "h1-1",
        "version": "1.2",
        "events": ["request_headers"],
        "max_concurrency": 7,
        "max_batch": 16,
        "max_body_bytes": 1_048_576,
    }


async def test_no_routing_id_is_set(agentd: Any, started: Any) -> None:
    """libzmq's own ids begin with a zero byte; agentd refuses others."""
    started(Sample())
    await agentd.accept()
    assert agentd.peer[0] == 0
    assert len(agentd.peer) == 5


async def test_events_become_verdicts(agentd: Any, started: Any, make_event: Any) -> None:
    started(Sample())
    await agentd.accept()
    got = await agentd.ask(make_event("a"), make_event("b", x_block="1"))
    assert got["a"]["request_headers"] == [{"set": {"name": "x-agent", "value": "ok"}}]
    assert got["b"]["decision"] == {"block": {"status": 403}}


async def test_thousands_of_messages_back_to_back_are_all_answered(agentd: Any, started: Any, make_event: Any) -> None:
    started(Sample())
    await agentd.accept()
    seen: set[str] = set()
    for sent in range(0, 3000, 300):
        for i in range(sent, sent + 300):
            await agentd.send(w.EVENTS, [make_event(f"c{i}")])
            await asyncio.sleep(0)  # zmq.asyncio does not let the loop turn by itself
        while len(seen) < sent + 300:
            frames = await agentd.expect(w.VERDICTS, (w.PING,))
            seen |= {entry[0] for entry in orjson.loads(frames[0])}


@pytest.mark.parametrize("size", [1, 4_000_000])
async def test_a_loop_that_was_held_up_does_not_take_it_for_silence(
    agentd: Any, started: Any, make_event: Any, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    """What waits in the socket is read before anybody is declared dead; a part of a message is a sign of life too."""
    running = started(Sample())
    await agentd.accept()
    peer = agentd.peer
    running.runner.conversation._heard_at -= 60  # as after a hook of a minute
    await agentd.send(w.PING, b"x" * size)
    select.select([running.runner._link._connection._fd], [], [], 5)  # it is there, the loop has not turned
    running.runner._on_time()
    assert await agentd.expect(w.PONG) == [b"x" * size]
    assert (await agentd.ask(make_event("a"))).keys() == {"a"}
    assert agentd.peer == peer
    assert "silent" not in caplog.text


async def test_a_slow_configure_hook_does_not_take_it_for_silence(
    agentd: Any, started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    running = started(Sample())
    await agentd.accept()
    peer, runner = agentd.peer, running.runner
    runner.conversation._heard_at -= 60  # as after a hook of a minute
    await agentd.send(w.PING, b"x")
    select.select([runner._link._connection._fd], [], [], 5)  # it is there, the loop has not turned
    runner._configured(Configure({"config_version": "2"}), runner.conversation._epoch, None)
    assert await agentd.expect(w.PONG, (w.CONFIG_RESULT,)) == [b"x"]
    assert agentd.peer == peer
    assert "silent" not in caplog.text


async def test_ping_pong_in_strict_turns(agentd: Any, started: Any) -> None:
    started(Sample())
    await agentd.accept()
    for i in range(300):
        await agentd.send(w.PING, b"%d" % i)
        assert await agentd.expect(w.PONG, (w.PING,)) == [b"%d" % i]


async def test_async_hooks_overlap_and_cancel_works(agentd: Any, started: Any, make_event: Any) -> None:
    agent = Sample()
    started(agent)
    await agentd.accept()
    await agentd.send(w.EVENTS, [make_event("slow", "/later")])
    assert (await agentd.ask(make_event("fast"))).keys() == {"fast"}
    await agentd.send(w.CANCEL, [["slow", "timeout"]])
    async with asyncio.timeout(10):
        await agent.cancelled.wait()
    agent.gate.set()
    assert (await agentd.ask(make_event("next", "/later"))).keys() == {"next"}


async def test_hooks_that_end_together_are_answered_together(agentd: Any, started: Any, make_event: Any) -> None:
    agent = Sample()
    started(agent)
    await agentd.accept()
    await agentd.send(w.EVENTS, [make_event("a", "/later"), make_event("b", "/later")])
    async with asyncio.timeout(10):
        await agent.began.wait()
    agent.gate.set()
    verdicts = await agentd.expect_json(w.VERDICTS, (w.PING,))
    assert [row[0] for row in verdicts] == ["a", "b"]


async def test_a_rejected_config_is_said(agentd: Any, started: Any, make_event: Any) -> None:
    agent = Sample()
    started(agent)
    await agentd.expect(w.HELLO)
    await agentd.send(w.WELCOME, {"protocol": 2, "heartbeat_ms": 1000})
    await agentd.send(w.CONFIG, {"config": {"bad": True}, "config_version": "9"})
    result = await agentd.expect_json(w.CONFIG_RESULT)
    assert result == {"config_version": "9", "accepted": False, "error": "ValueError: bad config"}
    got = await agentd.ask(make_event("early"))
    assert got["early"]["error"]["code"] == "not_configured"
    await agentd.send(w.CONFIG, {"config": {"ok": 1}, "config_version": "10"})
    assert (await agentd.expect_json(w.CONFIG_RESULT))["accepted"] is True
    assert agent.session.configuration is not None
    assert agent.session.configuration.config_version == "10"


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        (lambda c: True, "on_configure returned bool; it returns nothing and raises to reject"),
        (lambda c: AgentError("no_key", "where is it"), "no_key: where is it"),
        (lambda c: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
async def test_a_sync_configure_hook(
    agentd: Any, started: Any, hook: Any, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rejected, and said in the agent's own log, too: after a reload nothing else there would tell."""
    agent = Sample()
    agent.on_configure = hook  # type: ignore[method-assign]
    started(agent)
    await agentd.expect(w.HELLO)
    await agentd.send(w.WELCOME, {"protocol": 2})
    await agentd.send(w.CONFIG, {"config_version": 1})
    assert await agentd.expect_json(w.CONFIG_RESULT) == {"config_version": 1, "accepted": False, "error": error}
    assert any(line.levelno == logging.ERROR for line in caplog.records)


async def test_configurations_one_at_a_time_the_last_counts(agentd: Any, started: Any) -> None:
    agent = Sample()
    started(agent)
    await agentd.expect(w.HELLO)
    await agentd.send(w.WELCOME, {"protocol": 2})
    for version in ("1", "2", "3"):
        await agentd.send(w.CONFIG, {"config": {"slow": 1, "v": version}, "config_version": version})
    first = await agentd.expect_json(w.CONFIG_RESULT)
    assert (first["config_version"], first["accepted"]) == ("2", False)
    agent.gate.set()
    assert [(await agentd.expect_json(w.CONFIG_RESULT))["config_version"] for _ in range(2)] == ["1", "3"]
    assert [config["v"] for config in agent.configs] == ["1", "3"]


async def test_agentd_vanishes_and_comes_back(agentd: Any, started: Any, make_event: Any) -> None:
    agent = Sample()
    running = started(agent)
    await agentd.accept()
    await agentd.send(w.EVENTS, [make_event("lost", "/later")])
    async with asyncio.timeout(10):
        await agent.began.wait()
    agentd.stop()
    async with asyncio.timeout(10):
        await agent.cancelled.wait()  # the call died with its session
    assert not agent.session.is_ready
    agent.gate.set()
    agentd.start()
    await agentd.accept()
    assert (await agentd.ask(make_event("new"))).keys() == {"new"}
    assert not running.task.done()


async def test_agents_may_start_before_agentd(agentd: Any, started: Any, make_event: Any) -> None:
    agentd.stop()
    running = started(Sample())
    await asyncio.sleep(0)
    agentd.start()
    await agentd.accept()
    assert (await agentd.ask(make_event("a"))).keys() == {"a"}
    assert not running.task.done()


async def test_an_agentd_that_forgot_is_greeted_again(agentd: Any, started: Any, make_event: Any) -> None:
    started(Sample())
    await agentd.accept()
    await agentd.send(w.REFUSE, {"code": "hello_first", "reason": "who are you"})
    await agentd.accept()
    assert (await agentd.ask(make_event("a"))).keys() == {"a"}


async def test_a_silent_agentd_is_left_for_a_new_connection(agentd: Any, started: Any) -> None:
    agentd.answers_pings = False
    started(Sample())
    await agentd.accept(heartbeat_ms=30)
    before = agentd.peer
    await agentd.accept(skip=(w.PING,))  # nothing was said for 90 ms: HELLO over a new connection
    assert agentd.peer != before


async def test_challenge_and_proof(agentd: Any, started: Any, tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s3cret\n")
    started(Sample(), secret_file=str(secret), instance="i1")
    await agentd.expect(w.HELLO)
    await agentd.send(w.CHALLENGE, b"n" * 32)
    assert await agentd.expect(w.PROOF) == [w.proof(b"s3cret", b"n" * 32, "sample", "i1")]


async def test_final_answers_end_the_agent(agentd: Any, started: Any, tmp_path: Any) -> None:
    running = started(Sample())
    await agentd.expect(w.HELLO)
    await agentd.send(w.REFUSE, {"code": "unknown_agent", "reason": "no such agent"})
    assert await running.exit_code() == 1
    secret = tmp_path / "secret"
    secret.write_bytes(b"s3cret")
    running = started(Sample(), secret_file=str(secret))
    await agentd.expect(w.HELLO)
    await agentd.send(w.WELCOME, {"protocol": 2})
    assert await running.exit_code() == 2


async def test_drain_finishes_what_is_begun(agentd: Any, started: Any, make_event: Any) -> None:
    agent = Sample()
    running = started(agent)
    await agentd.accept()
    await agentd.send(w.EVENTS, [make_event("slow", "/later")])
    async with asyncio.timeout(10):
        await agent.began.wait()
    running.runner.leave()
    assert (await agentd.expect_json(w.DRAIN))["deadline_ms"] > 0
    assert (await agentd.ask(make_event("pinned"))).keys() == {"pinned"}
    await agentd.send(w.BYE)
    await agentd.send(w.PING, b"x")
    await agentd.expect(w.PONG)
    agent.gate.set()
    frames = await agentd.expect(w.VERDICTS)
    assert orjson.loads(frames[0])[0][0] == "slow"
    await agentd.expect(w.BYE)
    assert await running.exit_code() == 0


async def test_pause_health_and_metrics_are_sent(agentd: Any, started: Any, make_event: Any) -> None:
    agent = Sample()
    agent.session.metrics.counter("seen").inc()
    started(agent)
    await agentd.accept()
    await agentd.send(w.EVENTS, [make_event("a", "/pause")])
    skip = (w.PING, w.VERDICTS, w.METRICS)
    assert await agentd.expect(w.PAUSE, skip) == []
    thread = threading.Thread(target=agent.session.health, args=("degraded", "slow", 0.25))
    thread.start()
    thread.join()
    assert await agentd.expect_json(w.HEALTH, skip) == {"state": "degraded", "message": "slow", "load": 0.25}


async def test_metrics_come_with_a_session(agentd: Any, started: Any) -> None:
    agent = Sample()
    agent.session.metrics.counter("seen").inc()
    started(agent)
    await agentd.accept()
    report = await agentd.expect_json(w.METRICS, (w.PING,))
    assert report["counters"] == [{"name": "seen", "labels": {}, "value": 1}]


async def test_a_long_absence_is_explained(
    agentd: Any, started: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardgate_agent.runner._AWAY_NOTE_S", 0.0)
    caplog.set_level(logging.WARNING)
    agentd.stop()
    started(Sample())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "no such socket: is agentd running" in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        ("ipc://" + "/x" * 60, "longer than 107 bytes"),
        ("/run/x", "is not ipc://PATH"),
        ("inproc://x", "is not ipc://PATH"),
        ("ipc://", "is not ipc://PATH"),
        ("tcp://host", "no port"),
        ("tcp://:5", "has no host"),
        ("tcp://host:99999", "no port"),
        ("tcp://host:0", "no port"),
        ("tcp://host:²", "no port"),
        ("tcp://in valid:1", "is no host name"),
        ("tcp://a..b:1", "is no host name"),
        ("ipc:///x\0y", "is not ipc://PATH"),
    ],
)
def test_endpoints_are_checked(endpoint: str, text: str) -> None:
    assert text in str(endpoint_problem(endpoint))
    with pytest.raises(OptionsError, match="connect"):
        Runner(Sample(), Options(connect=endpoint))
    assert run(Sample, endpoint) == 2


def test_an_unusable_endpoint_is_a_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    assert run(Sample, "tcp://in valid:1") == 2
    assert "connect: 'in valid' in 'tcp://in valid:1' is no host name" in caplog.text


@pytest.mark.parametrize("endpoint", ["ipc:///run/\udcff", "tcp://[::1]:5000", "tcp://localhost:1"])
def test_endpoints_that_are_right(endpoint: str) -> None:
    assert endpoint_problem(endpoint) is None


async def test_over_tcp(agentd_over_tcp: Any, started: Any, make_event: Any) -> None:
    agentd = agentd_over_tcp
    started(Sample(), endpoint=agentd.endpoint)
    for _ in range(2):
        await agentd.accept()
        assert (await agentd.ask(make_event("a"))).keys() == {"a"}
        agentd.stop()
        agentd.start()


async def test_a_message_over_the_limit_begins_anew(
    agentd: Any, started: Any, make_event: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(w, "MAX_MESSAGE_BYTES", 100_000)
    started(Sample())
    await agentd.accept()
    before = agentd.peer
    await agentd.send(w.EVENTS, [make_event("a")], b"x" * 60_000, b"x" * 60_000)
    await agentd.accept(skip=(w.PING,))
    assert agentd.peer != before
    assert (await agentd.ask(make_event("b"))).keys() == {"b"}
    assert "a message of more than 100000 bytes" in caplog.text


class Upper(Agent):
    def on_request_body_chunk(self, event: Any) -> Any:
        assert type(event.body) is bytes
        return Allow().replace_chunk(event.body.upper())


@pytest.mark.parametrize("size", [1, 255, 256, 16_384, 70_000, 3_000_000])
async def test_bodies_of_every_size_both_ways(agentd: Any, started: Any, size: int) -> None:
    started(Upper())
    await agentd.accept()
    chunk = {"event_type": "request_body_chunk", "chunk_index": 0, "is_last": True, "correlation_id": "c"}
    await agentd.send(w.EVENTS, [["a", 1000, chunk, 0], ["b", 1000, chunk, 1]], b"a" * size, b"b" * size)
    got = {}
    while len(got) < 2:
        verdicts, *bodies = await agentd.expect(w.VERDICTS, (w.PING,))
        got |= {call: bodies[n] for call, _, n in orjson.loads(verdicts)}
    assert got == {"a": b"A" * size, "b": b"B" * size}


async def test_every_frame_may_be_long(agentd: Any, started: Any, make_event: Any) -> None:
    """One that came into memory of its own is no bytes, and an unhashable view: also where a verb should be."""
    started(Sample())
    await agentd.accept()
    for message in (
        [b"x" * 100_000],
        [w.PING, b"y" * 100_000],
        [w.CANCEL, b"z" * 100_000],
        [w.CHALLENGE, bytes(99_999)],
    ):
        await agentd.send(*message)
    assert await agentd.expect(w.PONG, (w.PING,)) == [b"y" * 100_000]
    long_uri = "/" + "a" * 100_000
    assert (await agentd.ask(make_event("a", long_uri))).keys() == {"a"}


def test_reasons_for_no_connection(short_dir: str) -> None:
    assert "no such socket" in why_unreachable(f"ipc://{short_dir}/nope")
    assert "no socket" in why_unreachable(f"ipc://{short_dir}")
    assert "listening there" in why_unreachable("tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"instance": "a b"}, "instance"),
        ({"instance": "x" * 65}, "instance"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"drain_deadline_s": -1}, "drain_deadline_s"),
        ({"secret_file": "/no/such/file"}, "secret_file"),
        ({"secret_file": "/dev/null"}, "empty"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionsError, match=text):
        Runner(Sample(), Options(connect="ipc:///x", **options))


def test_an_agent_without_hooks_is_an_error() -> None:
    with pytest.raises(OptionsError, match="would see nothing"):
        Runner(Agent(), Options())


def test_instances_are_unique() -> None:
    assert default_instance() != default_instance()
    Options(instance=default_instance()).checked()
