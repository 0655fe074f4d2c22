"""The metrics whose numbers workers keep in the segments: name, kind, labels, help, and where the number lives.

    W_*   worker-wide cells      `slot.cells[W_X] += 1`
    R_*   one route's block      `slot.route_cells(i)[R_X] += 1`
    U_*   one upstream's row     `slot.upstream_cells(i)[U_X] = now_ns`
    L_*   one limit's cells

agentd's own, and the families of all together, stand in shared/metrics_agentd.py.
A block that ends in a label (`W_REFUSED + REFUSED_AT[status]`) is as long as its table of label values.
The exporter and docs/metrics.md are made from these tables; a number with no row here is not exported.

Kind: table.
"""

from bisect import bisect_left
from collections.abc import MutableSequence
from enum import Enum
from typing import Final, NamedTuple

from shared.decision import Outcome, Verb
from shared.events import EventKind


class Kind(Enum):
    """Prometheus types that are in use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One family. `labels` in the order in which values are given."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


class Cell(NamedTuple):
    """One series of a family: cell `at` of its block, with the values of the labels that the block has not."""

    at: int
    metric: Metric
    values: tuple[str, ...] = ()


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM


def _counter(at: int, name: str, help: str) -> Cell:
    return Cell(at, Metric(name, _C, help))


def _gauge(at: int, name: str, help: str) -> Cell:
    return Cell(at, Metric(name, _G, help))


# --- durations -------------------------------------------------------------------------------------

# Upper bounds (le) of every histogram of ours; one more bucket takes the rest.
DURATION_BOUNDS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
DURATION_BOUNDS_NS: Final = tuple(round(bound * 1_000_000_000) for bound in DURATION_BOUNDS_S)
DURATION_BUCKETS: Final = len(DURATION_BOUNDS_S) + 1


def bucket_of(duration_ns: int) -> int:
    """Which bucket a duration falls into: 0 .. DURATION_BUCKETS - 1, not cumulative."""
    return bisect_left(DURATION_BOUNDS_NS, duration_ns)


# --- worker-wide cells -----------------------------------------------------------------------------

W_CONNECTIONS: Final = 0
W_REQUESTS: Final = 1
W_EVENTS_SENT: Final = 2
W_EVENTS_SKIPPED: Final = 3
W_LATE_DECISIONS: Final = 4
W_UPSTREAM_CONNECTS: Final = 5
W_UPSTREAM_REUSES: Final = 6
W_UPSTREAM_FAILURES: Final = 7
W_UPSTREAM_POISONED: Final = 8
W_RETRIES: Final = 9
W_CLIENT_GONE: Final = 10
W_AUDIT_DROPPED: Final = 11
W_LOG_DROPPED: Final = 12
W_BYTES_IN: Final = 13
W_BYTES_OUT: Final = 14
W_HOP_MESSAGES: Final = 15
W_HOP_MALFORMED: Final = 16
W_REGISTRATIONS: Final = 17
W_STREAMS_ABORTED: Final = 18
W_ACCEPT_PAUSES: Final = 19
W_BODY_TOO_LARGE: Final = 20
W_OBSERVED_DROPPED: Final = 21
W_WEBSOCKETS: Final = 22
W_WEBSOCKETS_CLOSED: Final = 23

W_OPEN_CONNECTIONS: Final = 32
W_IN_FLIGHT: Final = 33
W_PENDING_EVENTS: Final = 34
W_UPSTREAM_IDLE: Final = 35
W_AGENTD_CONNECTED: Final = 36
W_UPSTREAM_OPEN: Final = 37
W_WEBSOCKETS_OPEN: Final = 38

# gauges of what is bounded, beside their bounds (docs/bounds.md)
W_PENDING_LIMIT: Final = 96
W_UPSTREAM_OPEN_LIMIT: Final = 97
W_UPSTREAM_WAITING: Final = 98
W_UPSTREAM_WAITING_LIMIT: Final = 99
W_AUDIT_QUEUED: Final = 100
W_AUDIT_QUEUED_LIMIT: Final = 101
W_CLIENTS_FULL: Final = 102
W_CLIENT_BUFFERED: Final = 103
W_PIPELINED: Final = 104
W_BODIES_OUTSTANDING: Final = 105
W_BODIES_OUTSTANDING_LIMIT: Final = 106
W_HOP_UNSENT: Final = 107
W_HOP_UNSENT_LIMIT: Final = 108

# cells[W_DECISIONS_LOCAL + outcome]; a decision or a cancelled call is no reason to decide alone
W_DECISIONS_LOCAL: Final = 48
_NO_REASONS: Final = (Outcome.DECISION, Outcome.CANCELLED)

# cells[W_REFUSED + REFUSED_AT.get(status, REFUSED_OTHER)], or the constants below
W_REFUSED: Final = 64
REFUSED_STATUSES: Final = (400, 403, 404, 405, 408, 413, 414, 417, 421, 426, 429, 431, 500, 501, 502, 503, 504, 505)
REFUSED_OTHER: Final = len(REFUSED_STATUSES)
REFUSED_AT: Final = {status: at for at, status in enumerate(REFUSED_STATUSES)}
W_REFUSED_400: Final = W_REFUSED + REFUSED_AT[400]
W_REFUSED_404: Final = W_REFUSED + REFUSED_AT[404]
W_REFUSED_405: Final = W_REFUSED + REFUSED_AT[405]
W_REFUSED_408: Final = W_REFUSED + REFUSED_AT[408]
W_REFUSED_413: Final = W_REFUSED + REFUSED_AT[413]
W_REFUSED_414: Final = W_REFUSED + REFUSED_AT[414]
W_REFUSED_417: Final = W_REFUSED + REFUSED_AT[417]
W_REFUSED_431: Final = W_REFUSED + REFUSED_AT[431]
W_REFUSED_501: Final = W_REFUSED + REFUSED_AT[501]
W_REFUSED_503: Final = W_REFUSED + REFUSED_AT[503]
W_REFUSED_505: Final = W_REFUSED + REFUSED_AT[505]
W_REFUSED_OTHER: Final = W_REFUSED + REFUSED_OTHER

_LOCAL = Metric("wardgate_decisions_local_total", _C, "Events decided by failure_mode, without agentd.", ("reason",))
_REFUSED = Metric(
    "wardgate_requests_refused_total", _C, "Requests refused: HTTP's rules, limits, or no route.", ("status",)
)
WORKER_TABLE: Final = (
    _counter(W_CONNECTIONS, "wardgate_connections_total", "Client connections accepted."),
    _counter(W_REQUESTS, "wardgate_requests_total", "Requests begun, refused ones included."),
    _counter(W_EVENTS_SENT, "wardgate_events_sent_total", "Events sent to agentd."),
    _counter(W_EVENTS_SKIPPED, "wardgate_events_skipped_total", "Events that no agent wanted; nothing was sent."),
    _counter(W_LATE_DECISIONS, "wardgate_decisions_late_total", "Decisions that nobody waited for any more."),
    _counter(W_UPSTREAM_CONNECTS, "wardgate_upstream_connects_total", "Connections to upstreams opened."),
    _counter(W_UPSTREAM_REUSES, "wardgate_upstream_reuses_total", "Requests sent on an idle upstream connection."),
    _counter(
        W_UPSTREAM_FAILURES,
        "wardgate_upstream_failures_total",
        "Attempts without a usable response: no connection, timeout, broken or refused response.",
    ),
    _counter(
        W_UPSTREAM_POISONED,
        "wardgate_upstream_poisoned_total",
        "Upstream connections closed because bytes followed a complete response.",
    ),
    _counter(W_RETRIES, "wardgate_upstream_retries_total", "Requests sent again because a reused connection had died."),
    _counter(W_CLIENT_GONE, "wardgate_client_gone_total", "Requests whose client left before the response's end."),
    _counter(
        W_AUDIT_DROPPED,
        "wardgate_worker_audit_dropped_total",
        "Audit records of workers dropped: agentd was away or the queue full.",
    ),
    _counter(
        W_LOG_DROPPED,
        "wardgate_worker_log_dropped_total",
        "Log lines of workers not written: over the rate limit, or the pipe was full.",
    ),
    _counter(W_BYTES_IN, "wardgate_client_received_bytes_total", "Bytes read from clients."),
    _counter(W_BYTES_OUT, "wardgate_client_sent_bytes_total", "Bytes written to clients."),
    _counter(
        W_HOP_MESSAGES, "wardgate_hop_messages_total", "Messages to agentd; each holds the events of one loop tick."
    ),
    _counter(W_HOP_MALFORMED, "wardgate_hop_malformed_total", "Messages or records of agentd that broke the format."),
    _counter(W_REGISTRATIONS, "wardgate_worker_registrations_total", "Registrations sent to agentd."),
    _counter(W_STREAMS_ABORTED, "wardgate_streams_aborted_total", "Responses cut after bytes had gone to the client."),
    _counter(
        W_BODY_TOO_LARGE,
        "wardgate_bodies_too_large_total",
        "Bodies over the limit of an agent: refused where it is fail-closed, else passed on without it.",
    ),
    _counter(
        W_OBSERVED_DROPPED,
        "wardgate_observed_chunks_dropped_total",
        "Bodies that observers were not shown to their end: too much was on its way to agentd.",
    ),
    _counter(W_WEBSOCKETS, "wardgate_websockets_total", "WebSocket connections that an upstream accepted."),
    _counter(
        W_WEBSOCKETS_CLOSED,
        "wardgate_websockets_closed_total",
        "WebSocket connections that an agent, a failure or a broken rule has closed.",
    ),
    _gauge(W_WEBSOCKETS_OPEN, "wardgate_websockets_open", "WebSocket connections open now."),
    _gauge(W_OPEN_CONNECTIONS, "wardgate_open_connections", "Client connections open now."),
    _gauge(W_IN_FLIGHT, "wardgate_requests_in_flight", "Requests being worked on now."),
    _gauge(W_PENDING_EVENTS, "wardgate_events_pending", "Events waiting for agentd now."),
    _counter(
        W_ACCEPT_PAUSES,
        "wardgate_accept_pauses_total",
        "Times that a worker stopped accepting for a while because few file descriptors were left.",
    ),
    _gauge(W_UPSTREAM_IDLE, "wardgate_upstream_idle_connections", "Upstream connections kept for reuse now."),
    _gauge(W_UPSTREAM_OPEN, "wardgate_upstream_open_connections", "Upstream connections open now, idle ones included."),
    _gauge(W_AGENTD_CONNECTED, "wardgate_workers_registered", "Workers that know that agentd has registered them."),
    _gauge(
        W_PENDING_LIMIT, "wardgate_events_pending_limit", "How many may wait for agentd; beyond, outcome queue_full."
    ),
    _gauge(
        W_UPSTREAM_OPEN_LIMIT,
        "wardgate_upstream_open_connections_limit",
        "How many connections to upstreams may be open: max_connections of each, in each worker.",
    ),
    _gauge(W_UPSTREAM_WAITING, "wardgate_upstream_waiting", "Requests waiting for an upstream connection now."),
    _gauge(
        W_UPSTREAM_WAITING_LIMIT,
        "wardgate_upstream_waiting_limit",
        "How many may wait: max_waiting of each upstream, in each worker; beyond, 503.",
    ),
    _gauge(W_AUDIT_QUEUED, "wardgate_worker_audit_queued", "Audit records of workers not yet sent to agentd."),
    _gauge(
        W_AUDIT_QUEUED_LIMIT,
        "wardgate_worker_audit_queued_limit",
        "How many may wait for agentd; beyond, the oldest is dropped.",
    ),
    _gauge(
        W_CLIENTS_FULL,
        "wardgate_client_buffers_full",
        "Client connections with a full write buffer now: nothing more is read for them from their upstream.",
    ),
    _gauge(W_CLIENT_BUFFERED, "wardgate_client_buffered_bytes", "Bytes in those full write buffers now."),
    _gauge(W_PIPELINED, "wardgate_requests_pipelined", "Requests read that wait for an earlier one's answer now."),
    _gauge(W_BODIES_OUTSTANDING, "wardgate_bodies_outstanding_bytes", "Of bodies that agents have not decided on."),
    _gauge(
        W_BODIES_OUTSTANDING_LIMIT,
        "wardgate_bodies_outstanding_limit_bytes",
        "How many of them there may be; beyond, outcome queue_full.",
    ),
    _gauge(W_HOP_UNSENT, "wardgate_hop_unsent_bytes", "To agentd, which it has not taken yet."),
    _gauge(
        W_HOP_UNSENT_LIMIT,
        "wardgate_hop_unsent_limit_bytes",
        "How many of them there may be for one worker: runtime.hop_unsent_bytes; beyond, outcome queue_full.",
    ),
    *(Cell(W_DECISIONS_LOCAL + o, _LOCAL, (o.word,)) for o in Outcome if o not in _NO_REASONS),
    *(Cell(W_REFUSED + at, _REFUSED, (str(status),)) for status, at in REFUSED_AT.items()),
    Cell(W_REFUSED_OTHER, _REFUSED, ("other",)),
)
WORKER_GAUGES: Final = frozenset(cell.at for cell in WORKER_TABLE if cell.metric.kind is Kind.GAUGE)

# --- one route's block -----------------------------------------------------------------------------

R_RESPONSES: Final = 0  # + status // 100 - 1
R_VERDICTS_REQUEST: Final = 8  # + verb
R_VERDICTS_RESPONSE: Final = 16  # + verb
R_DURATION_SUM_NS: Final = 24
R_DURATION: Final = 25  # + bucket_of(duration_ns)
R_VERDICTS_GUARDRAIL: Final = 42  # + verb
R_FALLBACKS: Final = 47
R_IN_FLIGHT: Final = 48
# Findings by what was done about them, in the gaps between the verbs.
R_GUARDRAIL_FINDINGS: Final = {
    "prompt": {"block": 13, "redact": 14, "log": 15},
    "completion": {"block": 21, "redact": 22, "log": 23},
}
R_VERDICTS_REQUEST_BODY: Final = 49  # + verb
R_VERDICTS_RESPONSE_BODY: Final = 54  # + verb
R_VERDICTS_WEBSOCKET: Final = 59  # + verb
R_VERDICTS: Final = {
    EventKind.REQUEST_HEADERS: R_VERDICTS_REQUEST,
    EventKind.RESPONSE_HEADERS: R_VERDICTS_RESPONSE,
    EventKind.REQUEST_BODY_CHUNK: R_VERDICTS_REQUEST_BODY,
    EventKind.RESPONSE_BODY_CHUNK: R_VERDICTS_RESPONSE_BODY,
    EventKind.WEBSOCKET_FRAME: R_VERDICTS_WEBSOCKET,
    EventKind.GUARDRAIL_INSPECT: R_VERDICTS_GUARDRAIL,
}

_RESPONSES = Metric("wardgate_responses_total", _C, "Responses to clients, whoever made them.", ("route", "code"))
_DECISIONS = Metric(
    "wardgate_decisions_total", _C, "Decisions applied, agentd's and a worker's own.", ("route", "phase", "decision")
)
_FINDINGS = Metric(
    "wardgate_guardrail_findings_total",
    _C,
    "What guardrails found in prompts and completions, by what was done about it.",
    ("route", "part", "action"),
)
_FALLBACKS = Metric(
    "wardgate_fallbacks_total", _C, "Requests sent on to the next of fallback_upstreams, each time.", ("route",)
)
_ROUTE_IN_FLIGHT = Metric("wardgate_route_requests_in_flight", _G, "Requests of a route in work now.", ("route",))
REQUEST_DURATION: Final = Metric(
    "wardgate_request_duration_seconds", _H, "From a request's first byte to its response's last.", ("route",)
)
ROUTE_TABLE: Final = (
    *(Cell(R_RESPONSES + i, _RESPONSES, (f"{i + 1}xx",)) for i in range(5)),
    *(Cell(at + verb, _DECISIONS, (kind.wire_name, verb.word)) for kind, at in R_VERDICTS.items() for verb in Verb),
    Cell(R_IN_FLIGHT, _ROUTE_IN_FLIGHT),
    *(
        Cell(at, _FINDINGS, (part, action))
        for part, actions in R_GUARDRAIL_FINDINGS.items()
        for action, at in actions.items()
    ),
    Cell(R_FALLBACKS, _FALLBACKS),
)
ROUTE_GAUGES: Final = frozenset(cell.at for cell in ROUTE_TABLE if cell.metric.kind is Kind.GAUGE)


def observe_request(route_cells: "MutableSequence[int] | memoryview[int]", duration_ns: int) -> None:
    """Count one finished request in its route's histogram. There is no cell for the count: it is the buckets' sum."""
    route_cells[R_DURATION + bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1
    route_cells[R_DURATION_SUM_NS] += duration_ns


# --- one upstream's row ----------------------------------------------------------------------------

U_LAST_OK_NS: Final = 0  # CLOCK_MONOTONIC of the last connect that succeeded, 0 = none yet
U_LAST_FAILURE_NS: Final = 1
UPSTREAM_TABLE: Final = (
    Cell(
        U_LAST_OK_NS,
        Metric(
            "wardgate_upstream_last_connect_timestamp_seconds",
            _G,
            "When a connection to the upstream was last made; absent before the first.",
            ("upstream",),
        ),
    ),
    Cell(
        U_LAST_FAILURE_NS,
        Metric(
            "wardgate_upstream_last_failure_timestamp_seconds",
            _G,
            "When a connection to the upstream last failed; absent before the first.",
            ("upstream",),
        ),
    ),
)

# --- one limit's cells ------------------------------------------------------------------------------

L_ADMITTED: Final = 0
L_REFUSED: Final = 1
L_OVERFLOW: Final = 2
L_NOW: Final = 3
LIMIT_TABLE: Final = (
    Cell(L_ADMITTED, Metric("wardgate_limit_admitted_total", _C, "What a limit let through.", ("limit",))),
    Cell(
        L_REFUSED,
        Metric("wardgate_limit_refused_total", _C, "Requests or connections that a limit refused.", ("limit",)),
    ),
    Cell(
        L_OVERFLOW,
        Metric("wardgate_limit_overflow_total", _C, "Keys that found no row in a limit's full table.", ("limit",)),
    ),
    Cell(L_NOW, Metric("wardgate_limit_in_use", _G, "Requests or connections counted by a limit now.", ("limit",))),
)
LIMIT_GAUGES: Final = frozenset(cell.at for cell in LIMIT_TABLE if cell.metric.kind is Kind.GAUGE)
