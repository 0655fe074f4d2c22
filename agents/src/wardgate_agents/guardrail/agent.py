"""The agent `guardrail`: says what is in a prompt or a completion; what is done about it is the route's matter.

Short texts are inspected in the event loop, long ones in threads (gate.py). What there is no time for is refused, in
time. What cannot be inspected (too long, an inspection type or category that is not known) is answered with an error,
which ends as the agent's failure mode says: nothing passes unseen.

Kind: IO (an agent; what is found is decided in scan.py).
"""

import sys
import time
from collections.abc import Awaitable, Sequence
from typing import Final, get_args

import wardgate_agent
from wardgate_agent import Agent, AgentError, Configure, Detection, Guardrail, GuardrailAnswer, GuardrailInspect
from wardgate_agents.budget import answer_within_s, busy
from wardgate_agents.guardrail.gate import Busy, Check, Gate, Inline
from wardgate_agents.guardrail.injection import confidence_of
from wardgate_agents.guardrail.scan import inspect_injection, inspect_personal
from wardgate_agents.guardrail.settings import GuardrailSettings, Inspection, Rules
from wardgate_agents.guardrail.spans import Finding, byte_spans, redact
from wardgate_agents.settings import settings_of

DETECTIONS_MAX: Final = 1_000  # of one answer; what is beyond is one detection over all the rest
INLINE_CHARS: Final = 4_096  # three milliseconds or so
_SWITCH_S: Final = 0.0005  # so soon a thread lets the event loop go on: it does so some ten times per message
_BUSY: Final = busy("too busy to inspect this text\n")
_SEVERITIES: Final = ("low", "medium", "high", "critical")


class GuardrailAgent(Agent):
    """Finds prompt injections, personal data and keys. Its configuration is GuardrailSettings."""

    name = "guardrail"

    def __init__(self) -> None:
        self._rules = Rules(GuardrailSettings())
        self._gate = Gate()
        self._inline = Inline()
        self._inspections = self.session.metrics.counter("inspections_total")
        self._detections = self.session.metrics.counter("detections_total")
        self._refused = self.session.metrics.counter("refused_total")
        self._waiting = self.session.metrics.gauge("texts_waiting")

    def on_configure(self, configure: Configure) -> None:
        """All of it is checked before any of it counts."""
        self._rules = Rules(settings_of(GuardrailSettings, configure.config))

    def on_guardrail_inspect(self, event: GuardrailInspect) -> GuardrailAnswer | Awaitable[GuardrailAnswer]:
        """Find what the event asks for."""
        rules = self._rules
        content = event.content
        kind = _inspection(event.inspection_type)
        _check_categories(rules, event.categories)
        limit = rules.settings.max_content_bytes
        if len(content) > limit or (not content.isascii() and len(content.encode("utf-8", "replace")) > limit):
            raise AgentError("content_too_large", f"more than max_content_bytes = {limit}")
        within_s = answer_within_s(event.budget_ms)
        if len(content) > INLINE_CHARS or not self._inline.has_time(within_s):
            return self._in_thread(rules, kind, event, time.monotonic() + within_s)
        return self._told(kind, *self._inline.run(lambda: _inspect(rules, kind, event)))

    async def _in_thread(
        self, rules: Rules, kind: Inspection, event: GuardrailInspect, deadline_s: float
    ) -> GuardrailAnswer:
        def work(check: Check) -> tuple[Guardrail, list[Finding]]:
            return _inspect(rules, kind, event, check)

        try:
            answer, found = await self._gate.run(kind, len(event.content), deadline_s, work)
        except Busy as error:
            self._refused.inc(code=error.code)
            if rules.settings.when_busy == "error":
                raise AgentError("busy", str(error)) from None
            return _BUSY.audit(tags=("guardrail", kind), reason_codes=error.code)
        finally:
            self._waiting.set(self._gate.waiting)
        return self._told(kind, answer, found)

    def _told(self, kind: Inspection, answer: Guardrail, found: list[Finding]) -> Guardrail:
        self._inspections.inc(inspection=kind, detected="yes" if found else "no")
        for category in {one.category for one in found}:
            self._detections.inc(sum(one.category == category for one in found), category=category)
        return answer


def _inspection(name: str) -> Inspection:
    if name == "prompt_injection":
        return "prompt_injection"
    if name == "pii_detection":
        return "pii_detection"
    raise AgentError("unknown_inspection", f"{name!r} is none of {', '.join(get_args(Inspection))}")


def _check_categories(rules: Rules, categories: Sequence[str]) -> None:
    """An event that asks for what nobody here knows must not be told that it was not found."""
    unknown = [name for name in categories if not rules.is_known(name)]
    if unknown:
        raise AgentError("unknown_category", f"{unknown[0]!r} is not looked for here")


def _inspect(
    rules: Rules, kind: Inspection, event: GuardrailInspect, check: Check = lambda: None
) -> tuple[Guardrail, list[Finding]]:
    wanted = rules.wanted(kind, event.categories)._replace(check=check)
    content = event.content
    if kind == "prompt_injection":
        judged = inspect_injection(content, wanted, is_completion=event.direction == "completion")
        found = [rules.severity(one) for one in judged.findings]
        confidence = confidence_of(judged.score, wanted.threshold)
        return Guardrail(bool(found), confidence, _detections(content, found)), found
    found = inspect_personal(content, wanted)
    if not found:
        return Guardrail(False, 0.0), found
    check()
    redacted = redact(content, found, rules.settings.labels).encode("utf-8", "replace").decode()
    check()
    return Guardrail(True, max(one.confidence for one in found), _detections(content, found), redacted), found


def _detections(content: str, found: Sequence[Finding]) -> list[Detection]:
    shown = list(found[:DETECTIONS_MAX])
    if len(found) > DETECTIONS_MAX:
        rest = found[DETECTIONS_MAX - 1 :]
        worst = max(rest, key=lambda one: _SEVERITIES.index(one.severity))
        end = max(one.end for one in rest)
        shown[-1] = worst._replace(description=f"{len(rest)} findings", start=rest[0].start, end=end)
    return [
        Detection(one.category, one.description, one.severity, one.confidence, span)
        for one, span in zip(shown, byte_spans(content, shown), strict=True)
    ]


def main() -> int:
    """`wardgate-agent-guardrail`."""
    sys.setswitchinterval(_SWITCH_S)
    return wardgate_agent.main(GuardrailAgent)
