"""The audit record: one type, one JSON line each.

Written for whatever is not a plain allow: refusals, failures (also skipped ones), header operations
that were refused, what observers would have done, and every verdict that carries `audit`. agentd's
records (`source: agentd`) tell how a phase was decided, a worker's (`source: worker`) how the request
ended; they share `correlation_id`.

Kind: pure.
"""

from typing import Any, Literal

import msgspec


class AgentEntry(msgspec.Struct, omit_defaults=True):
    """One agent's part in a decided phase."""

    agent: str
    outcome: str  # Outcome.word
    verdict: str = ""  # Verb.word when it decided
    instance: str = ""
    duration_ms: float = 0.0
    observed: bool = False  # its verdict had no effect: "would have"
    failure_mode: str = ""
    message: str = ""  # why it failed, for people
    would_have: dict[str, Any] | None = None
    refused_ops: list[str] = []  # names of header operations that were not applied
    audit: dict[str, Any] | None = None  # the verdict's own


class AuditRecord(msgspec.Struct, omit_defaults=True):
    """One line of the audit."""

    ts: str  # RFC 3339, milliseconds, Z
    source: Literal["agentd", "worker"]
    correlation_id: str
    decision: str  # Verb.word, or "refused" (by HTTP rules), "failed" (upstream)
    route: str = ""
    phase: str = ""  # event wire name
    status: int = 0
    decided_by: str = ""
    reason: str = ""
    client_ip: str = ""
    method: str = ""
    uri: str = ""
    request_id: str = ""
    agents: list[AgentEntry] = []
    guardrail: dict[str, Any] | None = None  # part, action, findings: never their text
    tokens: dict[str, Any] | None = None  # model, input, output
    upstreams: list[str] = []  # the one that failed, and the one that is asked instead


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AuditRecord).decode
