"""Every metric: name, kind, labels, help, and where its number lives.

    W_*   worker-wide cells      `slot.cells[W_X] += 1`
    R_*   one route's block      `slot.route_cells(i)[R_X] += 1`
    U_*   one upstream's row     `slot.upstream_cells(i)[U_X] = now_ns`
    A_*, M_*  families of numbers that agentd holds itself or finds when it is asked

A block that ends in a label (`W_REFUSED + REFUSED_AT[status]`) is as long as its table of label values.
The exporter and docs/metrics.md are made from these tables; a number with no row here is not exported.

Kind: table.
"""

from bisect import bisect_left
from collections.abc import MutableSequence
from enum import Enum
from typing import Final, NamedTuple

from shared.decision import Outcome, Verb
from shared.defaults import MAX_AGENT_METRIC_SERIES


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

W_OPEN_CONNECTIONS: Final = 32
W_IN_FLIGHT: Final = 33
W_PENDING_EVENTS: Final = 34
W_UPSTREAM_IDLE: Final = 35
W_AGENTD_CONNECTED: Final = 36
W_UPSTREAM_OPEN: Final = 37

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
R_IN_FLIGHT: Final = 48

_RESPONSES = Metric("wardgate_responses_total", _C, "Responses to clients, whoever made them.", ("route", "code"))
_DECISIONS = Metric(
    "wardgate_decisions_total", _C, "Decisions applied, agentd's and a worker's own.", ("route", "phase", "decision")
)
_ROUTE_IN_FLIGHT = Metric("wardgate_route_requests_in_flight", _G, "Requests of a route in work now.", ("route",))
REQUEST_DURATION: Final = Metric(
    "wardgate_request_duration_seconds", _H, "From a request's first byte to its response's last.", ("route",)
)
ROUTE_TABLE: Final = (
    *(Cell(R_RESPONSES + i, _RESPONSES, (f"{i + 1}xx",)) for i in range(5)),
    *(Cell(R_VERDICTS_REQUEST + verb, _DECISIONS, ("request_headers", verb.word)) for verb in Verb),
    *(Cell(R_VERDICTS_RESPONSE + verb, _DECISIONS, ("response_headers", verb.word)) for verb in Verb),
    Cell(R_IN_FLIGHT, _ROUTE_IN_FLIGHT),
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

# --- agentd's own ----------------------------------------------------------------------------------

A_CALLS: Final = Metric(
    "wardgate_agent_calls_total",
    _C,
    "Calls by how they ended; mode is enforce or observe.",
    ("agent", "mode", "outcome"),
)
A_DURATION: Final = Metric(
    "wardgate_agent_call_duration_seconds", _H, "From sending a call to its end; cancelled ones left out.", ("agent",)
)
A_IN_FLIGHT: Final = Metric("wardgate_agent_calls_in_flight", _G, "Calls that an agent works on now.", ("agent",))
A_QUEUED: Final = Metric("wardgate_agent_calls_queued", _G, "Calls waiting for an instance now.", ("agent",))
A_INSTANCES: Final = Metric("wardgate_agent_instances", _G, "Live instances or connections.", ("agent",))
A_BREAKER: Final = Metric(
    "wardgate_agent_breaker_state", _G, "1 for the state that the breaker is in, else 0.", ("agent", "state")
)
A_OPENINGS: Final = Metric(
    "wardgate_agent_breaker_openings_total", _C, "How often the breaker has opened, by itself or forced.", ("agent",)
)
A_LATE: Final = Metric("wardgate_agent_late_verdicts_total", _C, "Verdicts for calls that were over.", ("agent",))
A_GARBAGE: Final = Metric(
    "wardgate_agent_garbage_total", _C, "Unreadable messages, and verdicts for calls never asked.", ("agent",)
)
A_OPS_REFUSED: Final = Metric(
    "wardgate_agent_header_ops_refused_total", _C, "Header operations that an agent may not do.", ("agent",)
)
A_QUEUE_TOTAL: Final = Metric("wardgate_agent_calls_delayed_total", _C, "Calls that had to queue.", ("agent",))
A_QUEUE_SECONDS: Final = Metric("wardgate_agent_queue_seconds_total", _C, "Time that calls spent queueing.", ("agent",))
A_SERIES: Final = Metric("wardgate_agent_reported_series", _G, "Series taken from METRICS messages.", ("agent",))
A_SERIES_DROPPED: Final = Metric(
    "wardgate_agent_reported_dropped_total",
    _C,
    "Entries of METRICS messages not taken: malformed, or over the limit of series.",
    ("agent", "reason"),
)
A_LIMIT: Final = Metric(
    "wardgate_agent_calls_limit", _G, "How many calls may be under way: max_concurrent_calls.", ("agent",)
)
A_QUEUE_LIMIT: Final = Metric(
    "wardgate_agent_queue_limit", _G, "How many calls may wait: max_queue; beyond, outcome queue_full.", ("agent",)
)
A_HELD: Final = Metric(
    "wardgate_agent_calls_held", _G, "Cancelled calls that still occupy a zmq-v1 connection now.", ("agent",)
)
A_PINNED: Final = Metric(
    "wardgate_agent_exchanges_pinned", _G, "Requests whose later events go to one instance alone now.", ("agent",)
)
A_INSTANCES_LIMIT: Final = Metric(
    "wardgate_agent_instances_limit", _G, "How many instances may register: max_instances, or connections.", ("agent",)
)
A_BYTES: Final = Metric(
    "wardgate_agent_outstanding_bytes", _G, "Bytes sent to all instances and not shown to be read.", ("agent",)
)
A_BYTES_FULLEST: Final = Metric(
    "wardgate_agent_outstanding_bytes_fullest", _G, "The same of the instance that has most.", ("agent",)
)
A_BYTES_LIMIT: Final = Metric(
    "wardgate_agent_outstanding_bytes_limit", _G, "How many one instance may have: max_outstanding_bytes.", ("agent",)
)
A_MESSAGES: Final = Metric(
    "wardgate_agent_outstanding_messages", _G, "Messages sent to all instances and not shown to be read.", ("agent",)
)
A_MESSAGES_FULLEST: Final = Metric(
    "wardgate_agent_outstanding_messages_fullest", _G, "The same of the instance that has most.", ("agent",)
)
A_MESSAGES_LIMIT: Final = Metric(
    "wardgate_agent_outstanding_messages_limit", _G, "How many one instance may have: runtime.agent_hwm.", ("agent",)
)
A_SENDS_REFUSED: Final = Metric(
    "wardgate_agent_sends_refused_total",
    _C,
    "Times an instance was passed over because it had not read enough: bytes, messages, or its socket was full.",
    ("agent", "reason"),
)
M_EVENTS: Final = Metric("wardgate_agentd_events_pending", _G, "Events that a worker waits for, in agentd, now.")
M_EXCHANGES: Final = Metric("wardgate_agentd_exchanges_open", _G, "Requests with calls under way in agentd now.")
M_REPLIES_DROPPED: Final = Metric(
    "wardgate_ingress_replies_dropped_total", _C, "Decisions that a worker's full or closed socket did not take."
)
M_UNKNOWN: Final = Metric("wardgate_ingress_unknown_total", _C, "Messages of connections that had not registered.")
M_HOP_LIMIT: Final = Metric(
    "wardgate_hop_queue_limit", _G, "Messages that may wait in a socket between worker and agentd: runtime.hop_hwm."
)
M_LOCAL: Final = Metric(
    "wardgate_local_connections", _G, "Connections to the sockets of workers and agents now.", ("socket",)
)
M_LOCAL_LIMIT: Final = Metric("wardgate_local_connections_limit", _G, "How many there may be.", ("socket",))
M_LOCAL_REFUSED: Final = Metric(
    "wardgate_local_connections_refused_total",
    _C,
    "Connections cut at once: over the limit, or of a user who may not connect.",
    ("socket",),
)
M_MEMORY_CUTS: Final = Metric(
    "wardgate_memory_cuts_total", _C, "Agents' connections cut because a message without end filled agentd's memory."
)
M_CLIENT_BUFFER: Final = Metric(
    "wardgate_client_buffer_limit_bytes",
    _G,
    "At how many unsent bytes a connection's write buffer is full: server.connection_buffer_bytes.",
)
M_SHUT_OUT: Final = Metric(
    "wardgate_agents_shut_out_total",
    _C,
    "Agents' processes that were cut for flooding, endless messages or idle connections, and may not connect for 5 s.",
)
M_HANDSHAKES_REFUSED: Final = Metric(
    "wardgate_agent_handshakes_refused_total",
    _C,
    "Handshakes refused to processes shut out; most of their connections are cut before.",
)
M_SESSIONS_REFUSED: Final = Metric("wardgate_sessions_refused_total", _C, "REFUSE sent to agents, by code.", ("code",))
M_INGRESS_MESSAGES: Final = Metric("wardgate_ingress_messages_total", _C, "Messages that agentd got from workers.")
M_INGRESS_MALFORMED: Final = Metric(
    "wardgate_ingress_malformed_total", _C, "Messages or records that broke the format, and those of strangers."
)
M_INGRESS_WORKERS: Final = Metric("wardgate_ingress_workers", _G, "Workers registered with agentd.")
M_AUDIT_WRITTEN: Final = Metric("wardgate_audit_written_total", _C, "Audit records written.")
M_AUDIT_DROPPED: Final = Metric("wardgate_audit_dropped_total", _C, "Audit records dropped: the queue was full.")
M_AUDIT_QUEUED: Final = Metric("wardgate_audit_queued", _G, "Audit records waiting to be written.")
M_AUDIT_QUEUED_LIMIT: Final = Metric(
    "wardgate_audit_queued_limit", _G, "How many may wait: audit.queue_records; beyond, dropped."
)
M_AUDIT_BYTES: Final = Metric("wardgate_audit_queued_bytes", _G, "Bytes of the records waiting to be written.")
M_AUDIT_BYTES_LIMIT: Final = Metric(
    "wardgate_audit_queued_bytes_limit", _G, "How many bytes may wait: audit.queue_bytes; beyond, dropped."
)
M_DIGEST_MISMATCH: Final = Metric(
    "wardgate_config_digest_mismatch", _G, "1 while the proxy or a worker runs another configuration than agentd."
)
M_RELOADS: Final = Metric(
    "wardgate_config_reloads_total",
    _C,
    "Reloads of a daemon since it started: applied, refused (nothing changed), rolled_back (workers could not start).",
    ("daemon", "result"),
)
M_RELOAD_OK: Final = Metric(
    "wardgate_config_last_reload_successful",
    _G,
    "0 while the last reload was refused or taken back, else 1.",
    ("daemon",),
)
M_RELOAD_AT: Final = Metric(
    "wardgate_config_last_reload_success_timestamp_seconds",
    _G,
    "When a reload was last applied; absent until there was one.",
    ("daemon",),
)
M_PROXY_UP: Final = Metric("wardgate_proxy_up", _G, "1 while the proxy's arbiter is alive, else 0.")
M_WORKERS: Final = Metric(
    "wardgate_workers", _G, "Worker processes by state; stale = its loop stands still.", ("state",)
)
M_BUILD: Final = Metric("wardgate_build_info", _G, "Always 1.", ("version", "python"))
M_RSS: Final = Metric(
    "wardgate_process_resident_memory_bytes", _G, "Resident memory; slot is empty but for workers.", ("process", "slot")
)
M_FDS: Final = Metric(
    "wardgate_process_open_fds", _G, "Open file descriptors; slot is empty but for workers.", ("process", "slot")
)
M_MAX_FDS: Final = Metric(
    "wardgate_process_max_fds",
    _G,
    "How many file descriptors the process may open (RLIMIT_NOFILE, soft).",
    ("process", "slot"),
)
AGENTD_TABLE: Final = (
    A_CALLS,
    A_DURATION,
    A_IN_FLIGHT,
    A_QUEUED,
    A_INSTANCES,
    A_BREAKER,
    A_OPENINGS,
    A_LATE,
    A_GARBAGE,
    A_OPS_REFUSED,
    A_QUEUE_TOTAL,
    A_QUEUE_SECONDS,
    A_SERIES,
    A_SERIES_DROPPED,
    A_LIMIT,
    A_QUEUE_LIMIT,
    A_HELD,
    A_PINNED,
    A_INSTANCES_LIMIT,
    A_BYTES,
    A_BYTES_FULLEST,
    A_BYTES_LIMIT,
    A_MESSAGES,
    A_MESSAGES_FULLEST,
    A_MESSAGES_LIMIT,
    A_SENDS_REFUSED,
    M_EVENTS,
    M_EXCHANGES,
    M_REPLIES_DROPPED,
    M_UNKNOWN,
    M_HOP_LIMIT,
    M_LOCAL,
    M_LOCAL_LIMIT,
    M_LOCAL_REFUSED,
    M_MEMORY_CUTS,
    M_SHUT_OUT,
    M_HANDSHAKES_REFUSED,
    M_CLIENT_BUFFER,
    M_SESSIONS_REFUSED,
    M_INGRESS_MESSAGES,
    M_INGRESS_MALFORMED,
    M_INGRESS_WORKERS,
    M_AUDIT_WRITTEN,
    M_AUDIT_DROPPED,
    M_AUDIT_QUEUED,
    M_AUDIT_QUEUED_LIMIT,
    M_AUDIT_BYTES,
    M_AUDIT_BYTES_LIMIT,
    M_DIGEST_MISMATCH,
    M_RELOADS,
    M_RELOAD_OK,
    M_RELOAD_AT,
    M_PROXY_UP,
    M_WORKERS,
    M_BUILD,
    M_RSS,
    M_FDS,
    M_MAX_FDS,
)
# An agent's own metrics: `wardgate_reported_<its name>{agent="...", its labels}`.
REPORTED_PREFIX: Final = "wardgate_reported_"


def families() -> tuple[Metric, ...]:
    """Every family of a fixed name, each once, in the order of the tables."""
    cells = (*WORKER_TABLE, *ROUTE_TABLE)
    beside = (*UPSTREAM_TABLE, *LIMIT_TABLE)
    made = (*(c.metric for c in cells), REQUEST_DURATION, *(c.metric for c in beside), *AGENTD_TABLE)
    return tuple(dict.fromkeys(made))


# --- documentation ---------------------------------------------------------------------------------

_INTRO = """\
# Metrics

Generated from `shared/metrics.py`; `make docs` writes it again.

`GET /metrics` of the admin API answers in the Prometheus text format. Numbers of the workers are read from
their shared memory, so a scrape costs them nothing. They are sums over all workers; a worker that is gone
takes its gauges along, and leaves its counts. All of them begin at 0 when the proxy starts, those of agents
and agentd when agentd starts.

| name | type | labels | what it counts |
|---|---|---|---|
"""
_OUTRO = """\

Histograms share their buckets (upper bounds in seconds): {bounds}.

An agent's own metrics (METRICS message) appear as `{prefix}<name>`, counters with `_total`, and the label `agent`;
a label of that name which the agent gave is called `exported_agent`. Instances of one agent are added up. At most
{series} series of an agent are kept; what is beyond, or malformed, is dropped and counted in
`{dropped}`.
"""


def render_markdown() -> str:
    """docs/metrics.md."""
    rows = "".join(
        f"| `{metric.name}` | {metric.kind.value} | {', '.join(metric.labels)} | {metric.help} |\n"
        for metric in families()
    )
    bounds = ", ".join(f"{bound:g}" for bound in DURATION_BOUNDS_S)
    outro = _OUTRO.format(
        bounds=bounds, prefix=REPORTED_PREFIX, series=MAX_AGENT_METRIC_SERIES, dropped=A_SERIES_DROPPED.name
    )
    return _INTRO + rows + outro
