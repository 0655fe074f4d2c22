"""The matrix's agent, a process on the SDK: signs the id of every request that it decides about.

    X-Id: 17                 allowed, with X-Verdict: sign("17") for the upstream
    X-Id: 17, X-Block: 1     403 with the same field
    X-Agent-Hold-Ms: 500     decides after so long (on the SDK only)

With `--v1 ENDPOINT` it is the plain REP socket of protocol 1 instead.

Whoever knows `sign` can tell a verdict that was given from one that was not. It imports nothing from the
product, and from the tests nothing either: it is started by its path.

Kind: IO.
"""

import asyncio
import hashlib
import hmac
import sys
from typing import Any

import zmq

from wardgate_agent import Agent, Allow, Block, HttpAnswer, RequestHeaders, main

KEY = b"known to the agent and to the test, not to the proxy"


def sign(request_id: str) -> str:
    """What only the agent says about a request."""
    return hmac.new(KEY, request_id.encode(), hashlib.sha256).hexdigest()[:24]


class SigningAgent(Agent):
    name = "signing"

    async def _late(self, hold_ms: int, answer: HttpAnswer) -> HttpAnswer:
        await asyncio.sleep(hold_ms / 1000)
        return answer

    def on_request_headers(self, event: RequestHeaders):  # type: ignore[no-untyped-def]  # an answer, or one later
        get = event.headers.get
        signature = sign(get("x-id") or "")
        if get("x-block"):
            answer: HttpAnswer = Block(403, "blocked\n", {"X-Verdict": signature})
        else:
            answer = Allow().set_request_header("X-Verdict", signature)
        hold_ms = int(get("x-agent-hold-ms") or 0)
        return self._late(hold_ms, answer) if hold_ms else answer


def serve_v1(endpoint: str) -> None:
    """The ten-line agent."""
    rep = zmq.Context().socket(zmq.REP)
    rep.bind(endpoint)
    while True:
        message: Any = rep.recv_json()
        verdict: dict[str, object] = {"version": 1, "decision": "allow"}
        if message["event_type"] == "request_headers":
            headers = message["payload"]["headers"]
            signature = sign(headers["x-id"][0])
            if "x-block" in headers:
                verdict["decision"] = {"block": {"status": 403, "headers": {"X-Verdict": signature}}}
            else:
                verdict["request_headers"] = [{"set": {"name": "X-Verdict", "value": signature}}]
        rep.send_json(verdict)


if __name__ == "__main__":
    print("started", flush=True)
    if sys.argv[1] == "--v1":
        serve_v1(sys.argv[2])
    sys.exit(main(SigningAgent))
