"""How new connections are made: which targets, for how long, and what is told when none can be."""

import asyncio

import pytest

from shared.defaults import UPSTREAM_TARGET_RETRY_S
from shared.errors import UpstreamFailed
from shared.metrics import W_UPSTREAM_CONNECTS, W_UPSTREAM_FAILURES
from tests.proxy.upstream_fakes import Bench, turns


async def test_the_next_target_is_tried() -> None:
    """A request that was never sent may go anywhere; nobody hears of the first."""
    bench = Bench("10.0.0.1:1", "10.0.0.2:1", is_instant=False)
    sink = await bench.acquire(b"POST")
    bench.connector.fail()
    await turns()
    assert sink.calls == []
    bench.connector.succeed()
    assert sink.calls == ["connected"]
    assert bench.connector.attempts == ["10.0.0.1:1", "10.0.0.2:1"]
    assert bench.reachable == [True]
    assert [endpoint.failures for endpoint in bench.pool.endpoints] == [1, 0]
    await bench.close()


async def test_each_target_once() -> None:
    bench = Bench("10.0.0.1:1", "10.0.0.2:1", is_instant=False)
    sink = await bench.acquire()
    for _ in range(2):
        bench.connector.fail(502, "tls_failed")
        await turns()
    assert sink.reason == "tls_failed"
    assert len(bench.connector.attempts) == 2
    assert bench.reachable == [False]
    await bench.close()


async def test_a_failed_target_is_left_alone_for_a_while() -> None:
    bench = Bench("10.0.0.1:1", "10.0.0.2:1", is_instant=False)
    await bench.acquire()
    bench.connector.fail()
    await turns()
    bench.connector.succeed()
    for _ in range(4):
        await bench.acquire()
    assert bench.connector.attempts[1:] == ["10.0.0.2:1"] * 5
    bench.clock.s(UPSTREAM_TARGET_RETRY_S)
    await bench.acquire()
    await bench.acquire()
    assert "10.0.0.1:1" in bench.connector.attempts[-2:]
    await bench.close()


async def test_a_target_that_swallows_packets_leaves_time_for_others() -> None:
    """Two targets, two seconds: one second each."""
    bench = Bench("10.0.0.1:1", "10.0.0.2:1", is_instant=False, connect_timeout_s=2.0)
    sink = await bench.acquire()
    bench.pool.sweep(bench.clock.s(1))
    await turns()
    assert bench.connector.attempts == ["10.0.0.1:1", "10.0.0.2:1"]
    bench.connector.succeed()
    assert sink.calls == ["connected"]
    await bench.close()


async def test_a_connection_that_comes_too_late_is_closed() -> None:
    bench = Bench(is_instant=False)
    sink = await bench.acquire()
    _, protocol, _ = bench.connector.pending[0]
    bench.late(3)
    assert sink.reason == "connect_timeout"
    transport = bench.connector._made(protocol)
    assert transport.ended == "aborted"
    await turns()
    assert bench.pool.open == 0
    await bench.close()


async def test_attempts_are_counted_each() -> None:
    """Two targets fail, one request fails: two failures, no connect."""
    bench = Bench("10.0.0.1:1", "10.0.0.2:1", is_instant=False)
    await bench.acquire()
    for _ in range(2):
        bench.connector.fail()
        await turns()
    assert bench.cells[W_UPSTREAM_FAILURES] == 2
    assert bench.cells[W_UPSTREAM_CONNECTS] == 0
    await bench.close()


async def test_the_time_left_is_shared_by_the_targets_left() -> None:
    """Three targets, three seconds; the first fails at once: the second has half of what is left."""
    bench = Bench("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", is_instant=False, connect_timeout_s=3.0)
    sink = await bench.acquire()
    bench.connector.fail()
    await turns()
    bench.pool.sweep(bench.clock.ms(1_499))
    await turns()
    assert len(bench.connector.attempts) == 2
    bench.pool.sweep(bench.clock.ms(200))
    await turns()
    assert len(bench.connector.attempts) == 3
    bench.pool.sweep(bench.clock.ms(1_400))
    assert sink.reason == "connect_timeout"
    await bench.close()


async def test_tasks_have_names_and_end() -> None:
    """One task for each attempt, none afterwards."""
    before = asyncio.all_tasks()
    bench = Bench("10.0.0.1:1", is_instant=False)
    await bench.acquire()
    (task,) = asyncio.all_tasks() - before
    assert task.get_name() == "connect app 10.0.0.1:1"
    bench.connector.succeed()
    await turns()
    assert asyncio.all_tasks() == before
    await bench.acquire()
    await bench.close()
    assert asyncio.all_tasks() == before


async def test_a_failed_attempt_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the target and the word for it: the client is told neither."""
    lines: list[dict[str, object]] = []

    class Log:
        def line(self, level: int, message: str, **fields: object) -> None:
            lines.append(fields)

    monkeypatch.setattr("proxy.upstream.dial._log", Log())
    bench = Bench("10.0.0.1:1", is_instant=False)
    await bench.acquire()
    bench.connector.fail(502, "tls_failed")
    await turns()
    assert lines == [{"upstream": "app", "target": "10.0.0.1:1", "reason": "tls_failed"}]
    await bench.close()


async def test_an_attempt_that_breaks_unexpectedly_ends_with_its_time() -> None:
    """A defect in connecting costs one request its connect timeout, nothing more."""
    bench = Bench("10.0.0.1:1", is_instant=False)
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context["exception"]))
    sink = await bench.acquire()
    bench.connector.pending.pop()[2].set_exception(ZeroDivisionError())
    await turns()
    assert not sink.is_done
    bench.late(3)
    assert isinstance(sink.failure, UpstreamFailed)
    assert sink.reason == "connect_timeout"
    await bench.close()
    asyncio.get_running_loop().set_exception_handler(None)
