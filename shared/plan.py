"""Whom to ask about which event of which route, compiled once per config.

The proxy skips by it, agentd runs it, the CLI explains it: one plan, computed by one function.
A plan is one (route, event kind); its number is its place in the table that a worker registers.

Kind: pure.
"""

from collections.abc import Callable

import msgspec

from shared.clock import MS
from shared.config.schema import Config
from shared.decision import FailureMode
from shared.events import SUPPORTED, EventKind, mask_of


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """One agent in one plan."""

    agent: str
    failure_mode: FailureMode
    observe: bool
    timeout_ms: int
    # True when the agent's config lists no events: its last HELLO decides (agentd.seg), until then it is asked.
    by_hello: bool = False


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One (route, kind): the agents in chain order and how to ask them."""

    number: int
    route: str
    kind: EventKind
    sequential: bool
    may_set_host: bool
    asks: tuple[Ask, ...]

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
    """All plans of a config, in route order, kinds in table order; a plan nobody could want has no row."""
    agents = {agent.name: agent for agent in config.agents}
    plans: list[Plan] = []
    for route in config.routes:
        for kind in SUPPORTED:
            asks = []
            for item in route.filters:
                agent = agents[item.agent]
                if agent.events is not None and not mask_of(agent.events) & kind.bit:
                    continue
                mode: FailureMode = item.failure_mode or agent.failure_mode
                by_hello = agent.events is None and agent.protocol == "zmq-v2"
                asks.append(Ask(agent.name, mode, item.mode == "observe", agent.timeout_ms, by_hello))
            if asks:
                plan = Plan(
                    len(plans), route.name, kind, route.order == "sequential", route.agents_may_set_host, tuple(asks)
                )
                plans.append(plan)
    return tuple(plans)
