"""Findings and tokens reach the audit and the counters; texts never do."""

import json
from types import SimpleNamespace
from typing import Any

from proxy.guardrails.account import Account
from proxy.guardrails.inspect import Found, Judged
from proxy.guardrails.usage import Usage
from shared.metrics import R_GUARDRAIL_FINDINGS
from shared.wire.tokens import TokenSums


class Flow:
    def __init__(self) -> None:
        self.route = SimpleNamespace(tally=[0] * 64)
        self.told: list[tuple[Any, ...]] = []

    def account(self, what: str, reason: str, agent: str, *, guardrail: Any = None, tokens: Any = None) -> None:
        self.told.append((what, reason, agent, guardrail, tokens))


def finding(action: str, agent: str = "g") -> Found:
    return Found(agent, "pii_detection", "email", "low", 0.91234, action, 3, 9)


def found(*actions: str, blocked: bool = False) -> tuple[Any, Flow]:
    flow: Any = Flow()
    each = tuple(finding(action) for action in actions)
    by = finding("block", "h") if blocked else None
    Account("llm", TokenSums()).found(flow, "prompt", Judged(each, by, {}))
    return flow.told[0], flow


def test_findings() -> None:
    told, flow = found("log", "redact", "log")
    assert told[:3] == ("allow", "guardrail", "g")
    assert told[3]["action"] == "redact"
    assert told[3]["findings"][0] == {
        "agent": "g", "inspection": "pii_detection", "category": "email", "severity": "low", "confidence": 0.912,
        "action": "log",
    }  # fmt: skip
    cells = R_GUARDRAIL_FINDINGS["prompt"]
    assert (flow.route.tally[cells["log"]], flow.route.tally[cells["redact"]]) == (2, 1)


def test_a_block() -> None:
    told, _ = found("log", "block", blocked=True)
    assert told[:3] == ("block", "guardrail", "h")
    assert told[3]["action"] == "block"


def test_many_findings_make_no_long_record() -> None:
    told, flow = found(*["log"] * 1000)
    assert len(json.dumps(told[3])) < 4000
    assert told[3]["findings_more"] == 980
    assert flow.route.tally[R_GUARDRAIL_FINDINGS["prompt"]["log"]] == 1000


def test_tokens() -> None:
    flow: Any = Flow()
    sums = TokenSums()
    account = Account("llm", sums)
    account.used(flow, Usage("", 3, 0), True)
    account.used(flow, Usage("", 0, 4), False)
    account.done(flow, Usage("", 3, 4))
    assert flow.told == [("allow", "tokens", "", None, {"model": "unknown", "input": 3, "output": 4})]
    (row,) = sums.rows()
    assert (row.route, row.model, row.input, row.output, row.responses) == ("llm", "unknown", 3, 4, 1)
