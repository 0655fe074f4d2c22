"""Write agents for the Wardgate reverse proxy: programs that allow, block, redirect or challenge requests.

    from wardgate_agent import Agent, Allow, Block

    class MyAgent(Agent):
        def on_request_headers(self, event):
            if event.path.startswith("/admin"):
                return Block(403, "not here\\n")
            return Allow().set_request_header("x-agent", "ok")

    $ python -m wardgate_agent my_agent:MyAgent --connect ipc:///run/wardgate/agents/v2

An event's way: link.py, zmtp/ (ZeroMQ's wire) -> conversation.py (who we are, what state) -> dispatcher.py (decode,
view from events.py) -> your hook (agent.py) -> verdicts.py -> dispatcher.py -> link.py. runner.py holds
them together, testing.py stands in for all but the hook.
"""

from wardgate_agent.agent import Agent, GuardrailAnswer, HttpAnswer, WebSocketAnswer
from wardgate_agent.cli import main
from wardgate_agent.events import (
    Configure,
    Event,
    GuardrailInspect,
    RequestBodyChunk,
    RequestComplete,
    RequestHeaders,
    ResponseBodyChunk,
    ResponseHeaders,
    WebSocketFrame,
)
from wardgate_agent.fields import Headers, MalformedEvent, Metadata
from wardgate_agent.runner import Options, Runner, run
from wardgate_agent.session import Session
from wardgate_agent.verdicts import (
    AgentError,
    Allow,
    Block,
    Challenge,
    Detection,
    Guardrail,
    HttpVerdict,
    Redirect,
    Verdict,
    WebSocketAllow,
    WebSocketClose,
    WebSocketDrop,
    WebSocketReplace,
)

__all__ = [
    "Agent",
    "AgentError",
    "Allow",
    "Block",
    "Challenge",
    "Configure",
    "Detection",
    "Event",
    "Guardrail",
    "GuardrailAnswer",
    "GuardrailInspect",
    "Headers",
    "HttpAnswer",
    "HttpVerdict",
    "MalformedEvent",
    "Metadata",
    "Options",
    "Redirect",
    "RequestBodyChunk",
    "RequestComplete",
    "RequestHeaders",
    "ResponseBodyChunk",
    "ResponseHeaders",
    "Runner",
    "Session",
    "Verdict",
    "WebSocketAllow",
    "WebSocketAnswer",
    "WebSocketClose",
    "WebSocketDrop",
    "WebSocketFrame",
    "WebSocketReplace",
    "main",
    "run",
]
