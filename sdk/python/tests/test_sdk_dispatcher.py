"""Every event of a batch gets exactly one answer, and no failure of a hook is an allow."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from wardgate_agent import Agent, AgentError, Allow, Block, Event
from wardgate_agent import wire as w
from wardgate_agent.dispatcher import Dispatcher

HEAD = {"event_type": "request_headers", "metadata": {"correlation_id": "cid"}, "method": "GET", "headers": {}}
CHUNK = {"event_type": "request_body_chunk", "chunk_index": 0, "is_last": True}


def head(uri: str = "/") -> dict[str, Any]:
    return {**HEAD, "uri": uri}


def events(*entries: Any, bodies: tuple[bytes, ...] = ()) -> list[bytes]:
    return [w.EVENTS, orjson.dumps(entries), *bodies]


class Bench:
    """A dispatcher and what it sent."""

    def __init__(self, agent: Agent, max_concurrency: int = 10, accepts: bool = True) -> None:
        self.sent: list[list[bytes]] = []
        self.woken = asyncio.Event()
        self.idle = 0
        self.accepts = accepts
        self.dispatcher = Dispatcher(
            agent, max_concurrency=max_concurrency, send=self._send, wake=self.woken.set, idle=self._idle
        )

    def _send(self, frames: list[bytes]) -> bool:
        self.sent.append(frames)
        return self.accepts

    def _idle(self) -> None:
        self.idle += 1

    def feed(self, *entries: Any, bodies: tuple[bytes, ...] = ()) -> dict[str, Any]:
        self.dispatcher.events(events(*entries, bodies=bodies))
        return self.taken()

    def taken(self) -> dict[str, Any]:
        self.dispatcher.flush()
        got: dict[str, Any] = {}
        for frames in self.sent:
            assert frames[0] == w.VERDICTS
            for call, verdict, *index in orjson.loads(frames[1]):
                assert call not in got, "answered twice"
                got[call] = (verdict, frames[2 + index[0]]) if index else verdict
        self.sent.clear()
        return got

    async def more(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            await self.woken.wait()
        self.woken.clear()
        return self.taken()


class ByPath(Agent):
    """/block, /raise, /none, /bare, /error, /later ... decide what happens."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.completed: list[Event] = []

    def on_request_headers(self, event: Any) -> Any:
        word = event.path[1:]
        if word == "block":
            return Block(403, b"\x00")
        if word == "raise":
            raise RuntimeError("boom")
        if word == "strange":
            raise Strange
        if word == "cancel":
            raise asyncio.CancelledError
        if word == "agent-error":
            raise AgentError("no_database", "down")
        if word == "returned-error":
            return AgentError("no_database", "down")
        if word == "none":
            return None
        if word == "headers":
            return event.headers["nope"]
        if word.startswith("later"):
            return self.later(word)
        if word == "future":
            future = asyncio.get_running_loop().create_future()
            future.set_result(Allow())
            return future
        return Allow()

    async def later(self, word: str) -> Any:
        self.began.append(word)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(word)
            raise
        if word == "later-raise":
            raise ValueError("late boom")
        if word == "later-none":
            return None
        if word == "later-cancel":
            raise asyncio.CancelledError
        return Block(429)

    def on_request_body_chunk(self, event: Any) -> Any:
        return Allow().replace_chunk(event.body.upper())

    async def on_request_complete(self, event: Any) -> None:
        self.completed.append(event)


class Strange(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine must not cut a batch in two."""
    monkeypatch.setattr(w, "FLUSH_AFTER_S", 60.0)


@pytest.fixture
async def agent() -> ByPath:
    return ByPath()


@pytest.fixture
async def bench(agent: ByPath) -> AsyncIterator[Bench]:
    made = Bench(agent)
    yield made
    await made.dispatcher.stop()
    assert made.dispatcher.in_flight == 0


async def test_a_batch_is_answered_in_one_message(bench: Bench) -> None:
    bench.dispatcher.events(events(["a", 9, head()], ["b", 9, head("/block")], ["c", 9, head()]))
    bench.dispatcher.flush()
    assert len(bench.sent) == 1
    got = bench.taken()
    assert got["a"] == got["c"] == {"decision": "allow"}
    assert got["b"] == ({"decision": {"block": {"status": 403}}}, b"\x00")


async def test_bodies_go_in_and_out_by_index(bench: Bench) -> None:
    got = bench.feed(["a", 9, CHUNK, 1], ["b", 9, CHUNK, 0], ["c", 9, CHUNK], bodies=(b"zero", b"one"))
    assert got["a"][1] == b"ONE"
    assert got["b"][1] == b"ZERO"
    assert got["c"]["request_body_mutation"]["action"] == "replace"


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("raise", "exception"),
        ("strange", "exception"),
        ("cancel", "exception"),
        ("headers", "exception"),
        ("none", "bad_verdict"),
        ("agent-error", "no_database"),
        ("returned-error", "no_database"),
    ],
)
async def test_a_failing_hook_is_an_error(bench: Bench, word: str, code: str) -> None:
    """Never an allow, and the next event of the batch is not touched."""
    got = bench.feed(["a", 9, head("/" + word)], ["b", 9, head()])
    assert got["a"].keys() == {"error"}
    assert got["a"]["error"]["code"] == code
    assert got["b"] == {"decision": "allow"}


async def test_an_exception_is_logged_with_its_request(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.feed(["a", 9, head("/raise")])
    assert "on_request_headers raised RuntimeError (correlation id cid)" in caplog.text
    assert "boom" in caplog.text


async def test_a_flood_of_exceptions_is_logged_in_part(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    got = bench.feed(*[[f"c{i}", 9, head("/none")] for i in range(200)])
    assert len(got) == 200
    assert len(caplog.records) <= 20  # 10 a second


async def test_unknown_events_are_unsupported(bench: Bench) -> None:
    got = bench.feed(["a", 9, {"event_type": "tls_hello"}])
    assert got["a"]["error"]["code"] == "unsupported"


@pytest.mark.parametrize(
    "entry",
    [
        ["a", 9, {}],
        ["a", 9, {"event_type": "request_headers"}],
        ["a", 9, {"event_type": []}],
        ["a", 9, []],
        ["a", 9, "x"],
        ["a", 9],
        ["a"],
        ["a", 9, CHUNK, 7],
        ["a", 9, CHUNK, -1],
        ["a", 9, CHUNK, "0"],
        ["a", 9, CHUNK, True],
    ],
)
async def test_unreadable_events_are_malformed(bench: Bench, entry: Any) -> None:
    got = bench.feed(entry, ["b", 9, head()], bodies=(b"x",))
    assert got["a"]["error"]["code"] == "malformed"
    assert got["b"] == {"decision": "allow"}


@pytest.mark.parametrize("entry", [5, None, "abc", {}, [], [1, 9, HEAD], [["a"], 9, HEAD]])
async def test_entries_without_a_call_are_counted(bench: Bench, entry: Any) -> None:
    assert bench.feed(entry, ["b", 9, head()]) == {"b": {"decision": "allow"}}
    assert bench.dispatcher.unreadable == 1


@pytest.mark.parametrize("frames", [[w.EVENTS], [w.EVENTS, b"{"], [w.EVENTS, b"{}"], [w.EVENTS, b"\xff"]])
async def test_messages_without_an_array_are_counted(bench: Bench, frames: list[bytes]) -> None:
    bench.dispatcher.events(frames)
    bench.dispatcher.cancel(frames)
    assert bench.dispatcher.unreadable == 2
    assert bench.taken() == {}


async def test_async_hooks_run_side_by_side(bench: Bench, agent: ByPath) -> None:
    got = bench.feed(["a", 9, head("/later1")], ["b", 9, head()], ["c", 9, head("/later2")])
    assert got.keys() == {"b"}
    await asyncio.sleep(0)
    assert agent.began == ["later1", "later2"]
    agent.gate.set()
    got = await bench.more()
    assert got.keys() <= {"a", "c"}
    assert got["a"]["decision"] == {"block": {"status": 429}}
    assert bench.idle == 1


@pytest.mark.parametrize(
    ("word", "code"),
    [("later-raise", "exception"), ("later-none", "bad_verdict"), ("later-cancel", "exception")],
)
async def test_a_failing_async_hook_is_an_error(bench: Bench, agent: ByPath, word: str, code: str) -> None:
    agent.gate.set()
    bench.feed(["a", 9, head("/" + word)])
    assert (await bench.more())["a"]["error"]["code"] == code


async def test_a_hook_may_return_a_future(bench: Bench) -> None:
    bench.feed(["a", 9, head("/future")])
    assert await bench.more() == {"a": {"decision": "allow"}}


async def test_cancel_ends_the_hook_and_nothing_is_answered(bench: Bench, agent: ByPath) -> None:
    bench.feed(["a", 9, head("/later1")], ["b", 9, head("/later2")])
    await asyncio.sleep(0)
    bench.dispatcher.cancel([w.CANCEL, orjson.dumps([["a", "client_gone"], ["zz", "timeout"], 5, []])])
    agent.gate.set()
    assert (await bench.more()).keys() == {"b"}
    assert agent.cancelled == ["later1"]


async def test_concurrency_is_bounded_and_the_rest_waits(agent: ByPath) -> None:
    bench = Bench(agent, max_concurrency=2)
    entries = [[f"c{i}", 60_000, head(f"/later{i}")] for i in range(5)]
    got = bench.feed(*entries)
    assert {call: verdict["error"]["code"] for call, verdict in got.items()} == {"c4": "overloaded"}
    await asyncio.sleep(0)
    assert agent.began == ["later0", "later1"]
    bench.dispatcher.cancel([w.CANCEL, b'[["c2","timeout"]]'])  # one that had not begun
    agent.gate.set()
    got = {}
    while len(got) < 3:
        got |= await bench.more()
    assert got.keys() == {"c0", "c1", "c3"}
    await bench.dispatcher.stop()


async def test_a_waiting_event_whose_budget_is_over_is_not_begun(agent: ByPath) -> None:
    bench = Bench(agent, max_concurrency=1)
    bench.feed(["a", 1000, head("/later1")], ["b", 0, head("/later2")])
    agent.gate.set()
    assert (await bench.more()).keys() == {"a"}
    assert agent.began == ["later1"]
    await bench.dispatcher.stop()


async def test_a_call_that_comes_twice_is_answered_once(bench: Bench, agent: ByPath) -> None:
    bench.feed(["a", 9, head("/later1")], ["a", 9, head("/later1")])
    agent.gate.set()
    assert (await bench.more()).keys() == {"a"}


async def test_request_complete_is_not_answered(bench: Bench, agent: ByPath) -> None:
    assert bench.feed(["a", 9, {**head(), "event_type": "request_complete", "status": 200}]) == {}
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(agent.completed) == 1
    assert bench.taken() == {}


async def test_a_lost_session_cancels_and_forgets(bench: Bench, agent: ByPath) -> None:
    bench.dispatcher.events(events(["a", 9, head("/later1")], ["b", 9, head()]))
    await asyncio.sleep(0)
    bench.dispatcher.lost()
    agent.gate.set()
    await asyncio.sleep(0)
    assert bench.taken() == {}
    assert agent.cancelled == ["later1"]


async def test_refuse_answers_without_asking(bench: Bench) -> None:
    bench.dispatcher.refuse(events(["a", 9, head()], 5, [7]), "not_configured", "not yet")
    assert bench.taken() == {"a": {"error": {"code": "not_configured", "message": "not yet"}}}


async def test_what_the_socket_does_not_take_is_counted(agent: ByPath) -> None:
    bench = Bench(agent, accepts=False)
    bench.feed(["a", 9, head()])
    assert bench.dispatcher.undelivered == 1


async def test_many_replaced_chunks_are_cut_into_messages(bench: Bench) -> None:
    """A message of everything could be larger than any peer accepts."""
    body = b"x" * 400_000
    bench.dispatcher.events(events(*[[f"c{i}", 9, CHUNK, 0] for i in range(8)], bodies=(body,)))
    bench.dispatcher.flush()
    assert len(bench.sent) == 4
    assert len(bench.taken()) == 8


async def test_an_answer_that_is_too_large_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w, "MAX_MESSAGE_BYTES", 300)
    got = bench.feed(["a", 9, CHUNK, 0], ["b", 9, head()], bodies=(b"x" * 300,))
    assert got["a"]["error"]["code"] == "too_large"
    assert got["b"] == {"decision": "allow"}


async def test_what_is_too_large_together_is_cut(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """agentd cuts the connection at a frame over its limit, and every request with it."""
    monkeypatch.setattr(w, "MAX_MESSAGE_BYTES", 1000)
    batch = [[f"c{i}", 9, CHUNK, i] for i in range(20)] + [["x", 9, head("/block")]]
    bench.dispatcher.events(events(*batch, bodies=tuple(b"%02d" % i * 50 for i in range(20))))
    bench.dispatcher.flush()
    assert all(sum(map(len, frames)) <= 1000 for frames in bench.sent)
    got = bench.taken()
    assert {call: answer[1] for call, answer in got.items()} == {
        **{f"c{i}": b"%02d" % i * 50 for i in range(20)},
        "x": b"\x00",
    }


async def test_a_batch_of_slow_sync_hooks_is_answered_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w, "FLUSH_AFTER_S", -1.0)
    bench = Bench(ByPath())
    bench.dispatcher.events(events(["a", 9, head()], ["b", 9, head()]))
    assert len(bench.sent) == 2


async def test_hooks_that_become_slow_are_noticed_and_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is looked at less and less often while hooks are fast, after each event once they are not."""
    bench = Bench(ByPath())
    batch = [[f"c{i}", 9, head()] for i in range(40)]
    bench.feed(*batch)
    monkeypatch.setattr(w, "FLUSH_AFTER_S", -1.0)
    bench.dispatcher.events(events(*batch))
    assert [len(orjson.loads(frames[1])) for frames in bench.sent] == [16] + [1] * 24
    bench.sent.clear()
    monkeypatch.setattr(w, "FLUSH_AFTER_S", 60.0)
    bench.dispatcher.events(events(*batch))
    bench.dispatcher.flush()
    assert [len(orjson.loads(frames[1])) for frames in bench.sent] == [40]
