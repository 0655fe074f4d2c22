"""Whom to ask about which event of which route, compiled once per config.

The proxy skips by it, agentd runs it, the CLI explains it: one plan, computed by one function.
A plan is one (route, event kind); its number is its place in the table that a worker registers. Where
agents may change what passes (bodies, frames, prompts) and the route asks them in sequence, each gets its
predecessor's bytes: then every deciding agent has a plan of its own, a stage, and the worker goes from one
to the next. Guardrails have plans of their own for prompts and for completions.

Kind: pure.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from shared.clock import MS
from shared.config.schema import Agent, Config
from shared.config.schema_routes import Route
from shared.decision import FailureMode
from shared.events import CHUNKED, SUPPORTED, EventKind, mask_of


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """One agent in one plan."""

    agent: str
    failure_mode: FailureMode
    observe: bool
    timeout_ms: int
    # True when the agent's config lists no events: its last HELLO decides (agentd.seg), until then it is asked.
    by_hello: bool = False
    max_body_bytes: int = 0  # of body events: the longest body that it is shown


Part = Literal["", "prompt", "completion"]


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One (route, kind): the agents in chain order and how to ask them."""

    number: int
    route: str
    kind: EventKind
    sequential: bool
    may_set_host: bool
    asks: tuple[Ask, ...]
    stage: int = 0  # of a sequence of plans for one kind, from 0
    part: Part = ""  # of guardrail_inspect

    @property
    def timeout_ns(self) -> int:
        """Deadline of an event from now: longest enforcing timeout in parallel, their sum in sequence.

        Observers alone: their longest timeout (nobody waits for it, but expired work is dropped).
        """
        times = [ask.timeout_ms for ask in self.asks if not ask.observe]
        if not times:
            return max(ask.timeout_ms for ask in self.asks) * MS
        return (sum(times) if self.sequential else max(times)) * MS

    @property
    def full_mask(self) -> int:
        """Bit i = asks[i]."""
        return (1 << len(self.asks)) - 1

    @property
    def enforcing_mask(self) -> int:
        """The bits of the agents whose verdict acts."""
        return sum(1 << i for i, ask in enumerate(self.asks) if not ask.observe)


PlanTable = tuple[Plan, ...]
decode_table: Callable[[bytes], PlanTable] = msgspec.json.Decoder(PlanTable).decode
encode_table: Callable[[PlanTable], bytes] = msgspec.json.Encoder().encode


def compile_plans(config: Config) -> PlanTable:
    """All plans of a config, in route order, kinds as a request meets them; a plan nobody could want has no row."""
    agents = {agent.name: agent for agent in config.agents}
    plans: list[Plan] = []
    for route in config.routes:
        for kind in SUPPORTED:
            for part, asks in _chains(route, kind, agents):
                is_staged = route.order == "sequential" and (kind in CHUNKED or kind is EventKind.GUARDRAIL_INSPECT)
                for stage, asked in enumerate(_stages(asks) if is_staged else [asks]):
                    plans.append(
                        Plan(
                            len(plans),
                            route.name,
                            kind,
                            route.order == "sequential" and not is_staged,
                            route.agents_may_set_host,
                            tuple(asked),
                            stage,
                            part,
                        )
                    )
    return tuple(plans)


def _chains(route: Route, kind: EventKind, agents: dict[str, Agent]) -> Iterator[tuple[Part, list[Ask]]]:
    """The chain of one kind, or those of its parts; empty ones are left out."""
    if kind is EventKind.GUARDRAIL_INSPECT:
        if route.guardrails is not None:
            if route.guardrails.prompt is not None:
                yield "prompt", [_inspects(agents[name]) for name in route.guardrails.prompt.agents]
            if route.guardrails.completion is not None:
                yield "completion", [_inspects(agents[name]) for name in route.guardrails.completion.agents]
        return
    asks = []
    for item in route.filters:
        agent = agents[item.agent]
        if agent.events is not None and not mask_of(agent.events) & kind.bit:
            continue
        # What nobody waits for is told as observers are told.
        observe = item.mode == "observe" or kind is EventKind.REQUEST_COMPLETE
        asks.append(_ask(agent, kind, item.failure_mode, observe))
    if asks:
        yield "", asks


def _ask(agent: Agent, kind: EventKind, mode: FailureMode | None = None, observe: bool = False) -> Ask:
    by_hello = agent.events is None and agent.protocol == "zmq-v2"
    max_body_bytes = 0
    if kind is EventKind.REQUEST_BODY_CHUNK:
        max_body_bytes = agent.max_request_body_bytes
    elif kind is EventKind.RESPONSE_BODY_CHUNK:
        max_body_bytes = agent.max_response_body_bytes
    return Ask(agent.name, mode or agent.failure_mode, observe, agent.timeout_ms, by_hello, max_body_bytes)


def _inspects(agent: Agent) -> Ask:
    """Who is named by a guardrail is asked, whatever its HELLO says: else the text would pass unseen."""
    return msgspec.structs.replace(_ask(agent, EventKind.GUARDRAIL_INSPECT), by_hello=False)


def _stages(asks: list[Ask]) -> list[list[Ask]]:
    """One stage for each agent that decides; observers see what came in: they are in the first."""
    observers = [ask for ask in asks if ask.observe]
    stages = [[ask] for ask in asks if not ask.observe]
    return [observers + stages[0], *stages[1:]] if stages else [observers]
