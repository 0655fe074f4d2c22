"""Long prompts at once, the shipped guardrail, real processes: some are refused, and nobody else is kept out."""

import json
import re
import shutil
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.fake_provider import FakeProvider
from tests.http.corpus import Answer, Client
from tests.product import System, proxy_config
from tests.support import Child, wait_until

# What reads slowly: prose, and ideographs of which every other one may begin an attack.
PROSE = "Please tell me what the previous report says about the weather in the north of the country, and why.\n"
DEAR = "忽略"
BUSY = b"too busy to inspect this text\n"
TIMEOUT_MS = 2_000
MAX_TEXT_BYTES = 1_048_576


class World:
    """One route of prompts, which the shipped agent inspects twice."""

    def __init__(self, tmp: Path, stack: ExitStack) -> None:
        self.provider = FakeProvider("model")
        stack.callback(self.provider.close)
        agent = {"name": "guardrail", "protocol": "zmq-v2", "events": ["guardrail_inspect"], "timeout_ms": TIMEOUT_MS}
        route = {
            "name": "llm",
            "upstream": "up",
            "websocket": {"enabled": False},
            "guardrails": {"prompt": {"agents": ["guardrail"], "action": "block"}, "max_text_bytes": MAX_TEXT_BYTES},
        }
        config = proxy_config(self.provider.address, routes=[route], agents=[agent])
        self.system = stack.enter_context(System(config, tmp))
        program = Path(sys.executable).parent / "wardgate-agent-guardrail"
        arguments = [sys.executable, "-P", str(program), "--connect", self.system.agents_endpoint]
        self.agent = stack.enter_context(Child(arguments, tmp / "guardrail.log"))
        self.agent.wait_for("configured, version", 20)
        self.system.registered()
        wait_until(lambda: self.ask("hello").status == 200, 20)

    def ask(self, text: str) -> Answer:
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
        head = f"Host: a.example\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with Client(self.system.address, 20) as client:
            client.send(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body)
            return client.answer()

    def metrics(self) -> str:
        address = (self.system.runtime / "admin.addr").read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    tmp = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, tmp, ignore_errors=True)
        yield World(tmp, stack)


def test_long_prompts_are_refused_in_time_and_keep_nobody_else_out(world: World) -> None:
    """Alone and together, cheap and dear; the agent decides every one of them, so its breaker stays closed."""
    long = [PROSE * 9_000, *[PROSE * 2_200] * 4, *[DEAR * 160_000] * 4, "x" * MAX_TEXT_BYTES]
    texts = [*long * 2, *[PROSE * 300] * 8, *[DEAR * 1_900] * 20]  # and a flood of short ones that are dear
    with ThreadPoolExecutor(12) as pool:
        attacks = [pool.submit(world.ask, text) for text in texts]
        served = [world.ask(f"What is {number} and one?").status for number in range(30)]
        answers = [attack.result() for attack in attacks]
    assert served == [200] * 30
    told = Counter((answer.status, answer.body) for answer in answers if answer.status not in (200, 413))
    assert {status for status, _ in told} <= {403, 503}, told
    busy = [answer for answer in answers if answer.status == 503]
    assert busy, "some of them cannot be inspected in this time"
    assert all(answer.body == BUSY and b"retry-after: 1" in answer.head.lower() for answer in busy), told
    metrics = world.metrics()
    assert 'wardgate_agent_breaker_state{agent="guardrail",state="closed"} 1' in metrics
    assert re.search(r'wardgate_agent_breaker_openings_total\{agent="guardrail"\} [1-9]', metrics) is None
    outcomes = set(re.findall(r'wardgate_agent_calls_total\{agent="guardrail",.*outcome="(\w+)"\} [1-9]', metrics))
    assert outcomes <= {"ok", "allow", "decision", "cancelled"}, outcomes
    codes = {
        code
        for record in world.system.audit()
        for agent in record.get("agents", ())
        for code in agent.get("audit", {}).get("reason_codes", ())
    }
    assert codes
    assert codes <= {"text_too_long", "too_many_texts", "out_of_time"}, codes
