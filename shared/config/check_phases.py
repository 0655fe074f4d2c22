"""Checks what routes say of bodies, WebSocket and guardrails: somebody acts on it, and nothing passes unsaid.

Rows of CHECKS in shared/config/check.py like all others; names that do not exist are told there.

Kind: pure.
"""

from shared import defaults as d
from shared.config.finding import Findings, error, repeated, warning
from shared.config.schema import Agent, Config
from shared.config.schema_routes import Filter, Guardrail, Route
from shared.config.tree import Path
from shared.events import EventKind, mask_of
from shared.plan import compile_plans, encode_table

_BODIES = {
    "request_body": ("max_request_body_bytes", EventKind.REQUEST_BODY_CHUNK),
    "response_body": ("max_response_body_bytes", EventKind.RESPONSE_BODY_CHUNK),
}


def guardrails_of(route: Route) -> list[tuple[str, Guardrail]]:
    """The parts that a route has, by their keys."""
    if route.guardrails is None:
        return []
    parts = (("prompt", route.guardrails.prompt), ("completion", route.guardrails.completion))
    return [(name, part) for name, part in parts if part is not None]


def _chain(route: Route, agents: dict[str, Agent]) -> list[tuple[int, Filter, Agent]]:
    found = ((j, item, agents.get(item.agent)) for j, item in enumerate(route.filters))
    return [(j, item, agent) for j, item, agent in found if agent is not None]


def _asks(agent: Agent, kind: EventKind) -> bool:
    """Whether it may be asked about this; without `events` it may be asked about everything."""
    return agent.events is None or bool(mask_of(agent.events) & kind.bit)


def _room(agent: Agent) -> int:
    """The longest body that fits into one message for this agent; base64 makes four bytes of three."""
    whole = d.AGENT_MAX_MESSAGE_BYTES - d.AGENT_MESSAGE_ROOM_BYTES
    return whole // 4 * 3 if agent.protocol == "zmq-v1" else whole


def bodies(config: Config) -> Findings:
    """A buffered body fits into a message, and is decoded only where somebody looks at it."""
    agents = {agent.name: agent for agent in config.agents}
    for i, route in enumerate(config.routes):
        chain = _chain(route, agents)
        for key, (limit, kind) in _BODIES.items():
            if getattr(route, key) != "buffer":
                continue
            for _, _, agent in chain:
                if _asks(agent, kind) and getattr(agent, limit) > _room(agent):
                    text = f'a message to agent "{agent.name}" holds {_room(agent)} bytes, and its {limit} is more'
                    place: Path = ("agents", config.agents.index(agent), limit)
                    yield error(("routes", i, key), text, f'`{key} = "stream"`, or a lower {limit}', place)
        deciding = [agent for _, item, agent in chain if item.mode == "enforce"]
        if route.decode_bodies and not any(_asks(agent, kind) for agent in deciding for _, kind in _BODIES.values()):
            yield warning(("routes", i, "decode_bodies"), "no agent that decides on this route sees bodies")
        for j, item, agent in chain:
            if agent.events == ("guardrail_inspect",):
                text = f'agent "{item.agent}" is asked about guardrails alone, and filters ask about everything else'
                hint = "name it in `guardrails`, or give it other events"
                yield warning(("routes", i, "filters", j, "agent"), text, hint)


def websockets(config: Config) -> Findings:
    """Who looks at bodies hardly wants what a WebSocket carries to pass unseen."""
    agents = {agent.name: agent for agent in config.agents}
    for i, route in enumerate(config.routes):
        if not route.websocket.enabled:
            continue
        chain = _chain(route, agents)
        path: Path = ("routes", i, "websocket")
        deciding = [agent for _, item, agent in chain if item.mode == "enforce"]
        looks_at_bodies = any(
            agent.events is not None and _asks(agent, EventKind.REQUEST_BODY_CHUNK) for agent in deciding
        )
        if any(_asks(agent, EventKind.WEBSOCKET_FRAME) for agent in deciding):
            pass  # somebody decides about them
        elif looks_at_bodies:
            text = "agents see the bodies of this route, but none of them its WebSocket messages, which pass"
            hint = "`websocket = { enabled = false }`, or an agent with the event websocket_frame"
            yield warning(path, text, hint)
        elif route.guardrails is not None:
            text = "guardrails inspect what is sent by HTTP, and not a WebSocket's messages, which pass"
            yield warning(path, text, "`websocket = { enabled = false }`")
        for _, _, agent in chain:
            if _asks(agent, EventKind.WEBSOCKET_FRAME) and route.websocket.max_message_bytes > _room(agent):
                text = f'a message to agent "{agent.name}" holds {_room(agent)} bytes'
                yield error((*path, "max_message_bytes"), text)


def guardrails(config: Config) -> Findings:
    """There is something to inspect, and whoever inspects is asked for it."""
    agents = {agent.name: agent for agent in config.agents}
    for i, route in enumerate(config.routes):
        if route.guardrails is not None and not guardrails_of(route):
            yield error(("routes", i, "guardrails"), "needs `prompt` or `completion`")
        for part, guardrail in guardrails_of(route):
            path: Path = ("routes", i, "guardrails", part)
            yield from repeated((*path, "agents"), guardrail.agents)
            yield from repeated((*path, "inspect"), guardrail.inspect)
            if len(guardrail.agents) > d.FILTERS_PER_ROUTE:
                text = f"there are {len(guardrail.agents)}, at most {d.FILTERS_PER_ROUTE} are possible"
                yield error((*path, "agents"), text)
            for j, name in enumerate(guardrail.agents):
                agent = agents.get(name)
                if agent is not None and not _asks(agent, EventKind.GUARDRAIL_INSPECT):
                    text = f'agent "{name}" does not list the event guardrail_inspect'
                    yield error((*path, "agents", j), text, "", ("agents", config.agents.index(agent), "events"))


def plans(config: Config) -> Findings:
    """What agents are asked has a number of 16 bits, and a worker tells agentd all of it in one message."""
    known = {agent.name for agent in config.agents}
    named = {item.agent for route in config.routes for item in route.filters}
    named |= {name for route in config.routes for _, part in guardrails_of(route) for name in part.agents}
    if not named <= known:
        return  # told elsewhere
    table = compile_plans(config)
    if len(table) > d.PLANS_MAX:
        text = (
            f"their chains make {len(table)} plans (one per route, event and stage), at most {d.PLANS_MAX} are possible"
        )
        yield error(("routes",), text, 'shorter chains, fewer events or order = "parallel"', ("agents",))
    elif (size := len(encode_table(table))) > d.PLANS_MAX_BYTES:
        text = f"their chains make plans of {size} bytes, at most {d.PLANS_MAX_BYTES} are possible"
        yield error(("routes",), text, "shorter chains, fewer events or shorter names", ("agents",))
