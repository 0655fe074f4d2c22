"""A decided event as agentd's audit record: who was asked, how each answered, what came of it.

Written only for groups that are `is_eventful`: refusals, failures (skipped ones too), header operations
that were refused, verdicts that carry `audit`, and what observers would have done.

Kind: pure.
"""

from typing import TYPE_CHECKING, Any

from agentd.call import Call
from shared.clock import MS
from shared.decision import Decision, HeaderOp, OpAction
from shared.wire.audit import AgentEntry, AuditRecord
from shared.wire.messages import timestamp

if TYPE_CHECKING:
    from agentd.dispatcher import Group

_OP_NAMES = {OpAction.SET: "set", OpAction.ADD: "add", OpAction.REMOVE: "remove"}


def audit_record(group: "Group", wall_s: float) -> AuditRecord:
    """The record of a closed group; `wall_s` is the time of day, seconds since 1970.

    Without a decision it is either an event of observers alone (`allow`, reason `observed`) or one whose
    client left (`cancelled`).
    """
    record = AuditRecord(
        ts=timestamp(wall_s).decode(),
        source="agentd",
        correlation_id=f"{group.worker.register.correlation_prefix}{group.exchange_id:x}",
        decision="cancelled",
        route=group.plan.route,
        phase=group.plan.kind.wire_name,
        agents=[_entry(call) for call in group.calls if call is not None],
    )
    decision = group.decision
    if decision is not None:
        record.decision = decision.verb.word
        record.status = decision.status
        record.decided_by = decision.agent
        record.reason = decision.reason
    elif not group.is_awaited:
        record.decision, record.reason = "allow", "observed"
    return record


def _entry(call: Call) -> AgentEntry:
    asked, screened = call.asked, call.screened
    entry = AgentEntry(
        agent=asked.agent,
        outcome=call.outcome.word,
        instance=call.instance.name if call.instance is not None else "",
        duration_ms=round((call.ended_ns - call.started_ns) / MS, 3) if call.ended_ns else 0.0,
        observed=asked.is_observer,
        failure_mode="" if asked.is_observer else asked.failure_mode,
        message=call.message,
    )
    if screened is not None:
        entry.refused_ops = list(screened.refused_ops)
        entry.audit = screened.audit
        if screened.decision is not None:
            entry.verdict = screened.decision.verb.word
            if asked.is_observer:
                entry.would_have = would_have(screened.decision)
    return entry


def would_have(decision: Decision) -> dict[str, Any]:
    """An observer's verdict in the words of the agent protocol; a body only by its length."""
    told: dict[str, Any] = {"decision": decision.verb.word}
    if decision.status:
        told["status"] = decision.status
    if decision.headers:
        told["headers"] = [list(pair) for pair in decision.headers]
    chunk = decision.chunk
    if chunk is not None and chunk.editor >= 0:
        told["mutation"] = chunk.action.name.lower()
    if decision.body:
        told["body_bytes"] = len(decision.body)
    if decision.request_ops:
        told["request_headers"] = [_op(op) for op in decision.request_ops]
    if decision.response_ops:
        told["response_headers"] = [_op(op) for op in decision.response_ops]
    return told


def _op(op: HeaderOp) -> dict[str, dict[str, str]]:
    fields = {"name": op.name} if op.action is OpAction.REMOVE else {"name": op.name, "value": op.value}
    return {_OP_NAMES[op.action]: fields}
