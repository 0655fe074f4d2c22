"""What the auditor reads about a decided event."""

from agentd.record import would_have
from shared.decision import ALLOW, Decision, HeaderOp, OpAction, Verb
from shared.wire.audit import decode, encode
from shared.wire.envelope import CancelReason
from shared.wire.verdict import Screened
from tests.agentd.fakes import core_of, refusing
from tests.support import Clock


def test_a_refusal(clock: Clock) -> None:
    """Route, phase, correlation id, who decided, with what; it survives the wire."""
    core = core_of(clock, "closed", "closed")
    core.event(exchange=0x2A)
    clock.ms(3)
    core.answer("a")
    clock.ms(1)
    core.answer("b", refusing(Verb.BLOCK, 403, "b"))
    (record,) = core.audit
    assert record.ts == "1970-01-01T00:00:01.500Z"
    assert (record.source, record.correlation_id) == ("agentd", "corr-2a")
    assert (record.route, record.phase) == ("r", "request_headers")
    assert (record.decision, record.status, record.decided_by, record.reason) == ("block", 403, "b", "block")
    assert (record.agents[0].instance, record.agents[0].duration_ms) == ("a-1", 3.0)
    assert decode(encode(record)) == record


def test_refused_operations(clock: Clock) -> None:
    """An allow whose operations were partly refused is told, with the names."""
    core = core_of(clock, "closed")
    core.event()
    core.answer("a", Screened(ALLOW, refused_ops=("content-length",)))
    assert core.replies[0][1] is ALLOW
    assert core.audit[0].agents[0].refused_ops == ["content-length"]


def test_the_verdicts_own_audit(clock: Clock) -> None:
    """A verdict that carries `audit` makes a record, whatever it decides."""
    core = core_of(clock, "closed", "observe")
    for who, other in (("a", "b"), ("b", "a")):
        core.event()
        core.answer(who, Screened(ALLOW, audit={"tags": ["x"]}))
        core.answer(other)
    assert [r.agents[i].audit for i, r in enumerate(core.audit)] == [{"tags": ["x"]}] * 2
    assert [decision for _, decision in core.replies] == [ALLOW] * 2


def test_answers_before_a_client_left(clock: Clock) -> None:
    """What had been said when it was cancelled is kept."""
    core = core_of(clock, "closed", "closed")
    core.event()
    core.answer("a", refusing(Verb.CHALLENGE, 401, "a"))
    core.dispatcher.cancel(core.worker, 7, CancelReason.CLIENT_GONE)
    assert core.audit[0].decision == "cancelled"
    assert core.audit[0].agents[0].verdict == "challenge"


def test_would_have_speaks_the_agents_language() -> None:
    """Decision, status, headers, operations as in a verdict; a body only by its length; nothing that is empty."""
    ops = (HeaderOp(OpAction.SET, "a", "1"), HeaderOp(OpAction.ADD, "b", "2"), HeaderOp(OpAction.REMOVE, "c"))
    assert would_have(ALLOW) == {"decision": "allow"}
    assert would_have(Decision(Verb.BLOCK, 451, (("x", "y"),), b"12345", response_ops=ops)) == {
        "decision": "block",
        "status": 451,
        "headers": [["x", "y"]],
        "body_bytes": 5,
        "response_headers": [
            {"set": {"name": "a", "value": "1"}},
            {"add": {"name": "b", "value": "2"}},
            {"remove": {"name": "c"}},
        ],
    }
    assert would_have(Decision(request_ops=ops[:1]))["request_headers"] == [{"set": {"name": "a", "value": "1"}}]
