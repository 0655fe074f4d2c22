"""Accounts for what guardrails found and what models took: audit records, counters, sums of tokens.

The audit gets categories, severities and numbers, never a text or an agent's description of one: what was redacted
from a prompt shall not turn up in a log.

Kind: IO (through the flow alone).
"""

from typing import TYPE_CHECKING, Any, Final

from proxy.guardrails.inspect import Judged
from proxy.guardrails.usage import Usage
from shared.defaults import GUARDRAIL_FINDINGS_TOLD
from shared.metrics import R_GUARDRAIL_FINDINGS
from shared.wire.tokens import TokenRow, TokenSums

if TYPE_CHECKING:
    from proxy.flow import Flow

UNKNOWN: Final = "unknown"


class Account:
    """One per route."""

    __slots__ = ("_route", "_tokens")

    def __init__(self, route: str, tokens: TokenSums) -> None:
        self._route = route
        self._tokens = tokens

    def found(self, flow: "Flow", part: str, judged: Judged) -> None:
        """Findings that something was done about, if only that they are told here."""
        tally = flow.route.tally
        cells = R_GUARDRAIL_FINDINGS[part]
        for one in judged.found:
            tally[cells[one.action]] += 1
        actions = {one.action for one in judged.found}
        action = "block" if judged.blocked_by is not None else "redact" if "redact" in actions else "log"
        told: dict[str, Any] = {
            "part": part,
            "action": action,
            "findings": [
                {
                    "agent": one.agent,
                    "inspection": one.inspection,
                    "category": one.category,
                    "severity": one.severity,
                    "confidence": round(one.confidence, 3),
                    "action": one.action,
                }
                for one in judged.found[:GUARDRAIL_FINDINGS_TOLD]
            ],
        }
        if len(judged.found) > GUARDRAIL_FINDINGS_TOLD:
            told["findings_more"] = len(judged.found) - GUARDRAIL_FINDINGS_TOLD
        agent = (judged.blocked_by or judged.found[0]).agent
        flow.account("block" if action == "block" else "allow", "guardrail", agent, guardrail=told)

    def used(self, flow: "Flow", more: Usage, is_first: bool) -> None:
        """Tokens as a response tells of them."""
        self._tokens.add(TokenRow(self._route, more.model or UNKNOWN, more.input, more.output, int(is_first)))

    def done(self, flow: "Flow", usage: Usage) -> None:
        """A response is complete."""
        tokens = {"model": usage.model or UNKNOWN, "input": usage.input, "output": usage.output}
        flow.account("allow", "tokens", "", tokens=tokens)
