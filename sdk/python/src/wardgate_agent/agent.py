"""The class that agents derive from, and the table of its hooks.

A hook that a class does not override allows (of a guardrail: is an error), and its event is not asked for:
HELLO's `events` are the overridden ones. No socket, loop or JSON here.

Kind: table.
"""

import difflib
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from wardgate_agent import events as e
from wardgate_agent.session import Session
from wardgate_agent.verdicts import ALLOW, AgentError, Block, Guardrail, HttpVerdict, WebSocketVerdict
from wardgate_agent.verdicts import Allow as _Allow

# What a hook may return. Sync hooks return it, async ones may await first.
HttpAnswer = HttpVerdict | AgentError
WebSocketAnswer = WebSocketVerdict | _Allow | AgentError
GuardrailAnswer = Guardrail | Block | _Allow | AgentError


class Agent:
    """Derive from it, override hooks (`def` or `async def`), run it: `python -m wardgate_agent my_agent:MyAgent`.

    A sync hook runs in the event loop: let it take microseconds. One that waits is an `async def`.
    An exception is answered with an explicit error, which ends as the filter's failure mode says,
    never in an allow.
    """

    name: ClassVar[str] = ""  # the agent's name in wardgate.toml; --name wins; "" = the class's name in kebab-case
    events: ClassVar[Sequence[str] | None] = None  # instead of the overridden hooks
    session: Session

    def __new__(cls, *args: Any, **kwargs: Any) -> "Agent":
        made = super().__new__(cls)
        made.session = Session()  # here, so that no subclass can forget it
        return made

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = [row.method for row in HOOKS] + ["on_configure"]
        for name in vars(cls):
            if name.startswith("on_") and name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.85)
                if near:  # a hook that is never called would allow everything
                    raise TypeError(f"{cls.__name__}.{name} is no hook; did you mean {near[0]}?")

    def on_configure(self, configure: e.Configure) -> Awaitable[None] | None:
        """The configuration, after every connect and on reload. Raise to reject it: no events come then."""
        return None

    def on_request_headers(self, event: e.RequestHeaders) -> Awaitable[HttpAnswer] | HttpAnswer:
        """A request's head."""
        return ALLOW

    def on_request_body_chunk(self, event: e.RequestBodyChunk) -> Awaitable[HttpAnswer] | HttpAnswer:
        """A piece of a request's body, or all of it: as the route says. Keep what you hold with `needs_more`."""
        return ALLOW

    def on_response_headers(self, event: e.ResponseHeaders) -> Awaitable[HttpAnswer] | HttpAnswer:
        """A response's head."""
        return ALLOW

    def on_response_body_chunk(self, event: e.ResponseBodyChunk) -> Awaitable[HttpAnswer] | HttpAnswer:
        """A piece of a response's body, or all of it."""
        return ALLOW

    def on_request_complete(self, event: e.RequestComplete) -> Awaitable[None] | None:
        """A request is over: forget what you kept of it. Nothing is answered."""
        return None

    def on_websocket_frame(self, event: e.WebSocketFrame) -> Awaitable[WebSocketAnswer] | WebSocketAnswer:
        """A WebSocket message, or a close, in either direction."""
        return ALLOW

    def on_guardrail_inspect(self, event: e.GuardrailInspect) -> Awaitable[GuardrailAnswer] | GuardrailAnswer:
        """Text to or from a model. Who is named by a guardrail and does not inspect is a failure, not an allow.

        Say what is in it, with Guardrail. Block refuses, whatever the route does about findings and failures.
        """
        return AgentError("unsupported", "this agent inspects no texts")


class Hook(NamedTuple):
    """One row: which event calls which method with which view."""

    view: type[e.Event]
    method: str
    is_http: bool  # answered with an HttpVerdict
    is_answered: bool = True

    @property
    def event_type(self) -> str:
        return self.view.event_type


HOOKS: Final = (
    Hook(e.RequestHeaders, "on_request_headers", True),
    Hook(e.RequestBodyChunk, "on_request_body_chunk", True),
    Hook(e.ResponseHeaders, "on_response_headers", True),
    Hook(e.ResponseBodyChunk, "on_response_body_chunk", True),
    Hook(e.RequestComplete, "on_request_complete", False, is_answered=False),
    Hook(e.WebSocketFrame, "on_websocket_frame", False),
    Hook(e.GuardrailInspect, "on_guardrail_inspect", False),
)


def wanted_events(agent: Agent) -> list[str]:
    """HELLO's `events`: what the class says, else the events of its overridden hooks, in table order."""
    known = [hook.event_type for hook in HOOKS]
    if agent.events is not None:
        strangers = [name for name in agent.events if name not in known]
        if strangers or isinstance(agent.events, str):
            raise ValueError(
                f"{type(agent).__name__}.events: {strangers or agent.events!r} not among {', '.join(known)}"
            )
        return list(agent.events)
    return [hook.event_type for hook in HOOKS if _is_overridden(agent, hook.method)]


def _is_overridden(agent: Agent, method: str) -> bool:
    return getattr(getattr(agent, method), "__func__", None) is not getattr(Agent, method)


def kebab(class_name: str) -> str:
    """MyAgent -> my-agent."""
    out = ""
    for i, char in enumerate(class_name):
        if char.isupper() and i and (not class_name[i - 1].isupper() or class_name[i + 1 : i + 2].islower()):
            out += "-"
        out += char.lower()
    return out.replace("_", "-").strip("-")
