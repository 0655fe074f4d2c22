"""Agents as processes: signals, exit codes, agentd killed and restarted."""

import signal
from pathlib import Path
from typing import Any

import pytest

from wardgate_agent import wire as w

AGENT = """
from wardgate_agent import Agent, Allow, Block, main

class MyAgent(Agent):
    def on_request_headers(self, event):
        return Block(403) if event.path == "/admin" else Allow()

class NotReady(MyAgent):
    def on_configure(self, configure):
        raise SystemExit(3)

if __name__ == "__main__":
    import sys
    sys.exit(main(MyAgent))
"""


@pytest.fixture
def agent_dir(tmp_path: Path) -> str:
    (tmp_path / "my_agent.py").write_text(AGENT)
    return str(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_0(
    agentd: Any, spawn: Any, agent_dir: str, make_event: Any, number: int
) -> None:
    process = await spawn("-m", "wardgate_agent", "my_agent:MyAgent", "--connect", agentd.endpoint, cwd=agent_dir)
    hello = await agentd.accept()
    assert hello["agent"] == "my-agent"
    assert (await agentd.ask(make_event("a", "/admin")))["a"]["decision"] == {"block": {"status": 403}}
    process.child.send_signal(number)
    await agentd.expect(w.DRAIN, (w.PING,))
    assert (await agentd.ask(make_event("b")))["b"] == {"decision": "allow"}
    await agentd.send(w.BYE)
    await agentd.expect(w.BYE, (w.PING,))
    assert await process.exit_code() == 0
    assert "Traceback" not in await process.output()


async def test_a_second_signal_does_not_wait(agentd: Any, spawn: Any, agent_dir: str) -> None:
    process = await spawn(f"{agent_dir}/my_agent.py", "--connect", agentd.endpoint, "--drain-deadline", "60")
    await agentd.accept()
    process.child.send_signal(signal.SIGTERM)
    await agentd.expect(w.DRAIN, (w.PING,))
    process.child.send_signal(signal.SIGTERM)
    await agentd.expect(w.BYE, (w.PING,))
    assert await process.exit_code() == 0


async def test_agentd_vanishes_and_comes_back(agentd: Any, spawn: Any, agent_dir: str, make_event: Any) -> None:
    process = await spawn(f"{agent_dir}/my_agent.py", "--connect", agentd.endpoint)
    for _ in range(3):
        await agentd.accept()
        assert (await agentd.ask(make_event("a")))["a"] == {"decision": "allow"}
        agentd.stop()
        agentd.start()
    await agentd.accept()
    process.child.terminate()
    await agentd.expect(w.DRAIN, (w.PING,))
    agentd.stop()  # nobody left to say BYE
    assert await process.exit_code() == 0


async def test_without_agentd_a_signal_is_enough(agentd: Any, spawn: Any, agent_dir: str) -> None:
    process = await spawn(f"{agent_dir}/my_agent.py", "--connect", agentd.endpoint)
    await agentd.expect(w.HELLO)
    agentd.stop()
    process.child.terminate()
    assert await process.exit_code() == 0


async def test_a_refusal_is_exit_code_1(agentd: Any, spawn: Any, agent_dir: str) -> None:
    process = await spawn(f"{agent_dir}/my_agent.py", "--connect", agentd.endpoint, "--name", "stranger")
    assert (await agentd.expect_json(w.HELLO))["agent"] == "stranger"
    await agentd.send(w.REFUSE, {"code": "unknown_agent", "reason": "no agent of this name"})
    assert "unknown_agent: no agent of this name" in await process.output()
    assert await process.exit_code() == 1


async def test_a_hook_may_end_the_process(agentd: Any, spawn: Any, agent_dir: str) -> None:
    """SystemExit is no exception of a hook: who says it means it."""
    process = await spawn("-m", "wardgate_agent", "my_agent:NotReady", "--connect", agentd.endpoint, cwd=agent_dir)
    await agentd.expect(w.HELLO)
    await agentd.send(w.WELCOME, {"protocol": 2})
    await agentd.send(w.CONFIG, {"config_version": "1"})
    assert await process.exit_code() == 3


async def test_wrong_usage_is_exit_code_2(spawn: Any, agent_dir: str) -> None:
    process = await spawn("-m", "wardgate_agent", "my_agent:Nope", cwd=agent_dir)
    assert "did you mean" in await process.output()
    assert await process.exit_code() == 2
