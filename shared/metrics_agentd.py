"""The metrics of what agentd holds itself or finds when it is asked, and the page of all metrics.

    A_*   of one agent
    M_*   of agentd and the host

Those whose numbers workers keep stand in shared/metrics.py. The exporter and docs/metrics.md are made from these
tables; a number with no row in either is not exported.

Kind: table.
"""

from typing import Final

from shared.defaults import MAX_AGENT_METRIC_SERIES
from shared.metrics import (
    DURATION_BOUNDS_S,
    LIMIT_TABLE,
    REQUEST_DURATION,
    ROUTE_TABLE,
    UPSTREAM_TABLE,
    WORKER_TABLE,
    Kind,
    Metric,
)

_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

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
A_COMPLETIONS: Final = Metric(
    "wardgate_agent_completions_total",
    _C,
    "Events request_complete: sent, or dropped because there was no room or nobody to send them to.",
    ("agent", "result"),
)
A_BODY_BYTES: Final = Metric(
    "wardgate_agent_body_bytes_total",
    _C,
    "Bytes of bodies and frames sent to an agent, and of the replacements received from it.",
    ("agent", "direction"),
)
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
    "Times an instance was passed over because it had not read enough: bytes, messages, or its connection was full.",
    ("agent", "reason"),
)
M_EVENTS: Final = Metric("wardgate_agentd_events_pending", _G, "Events that a worker waits for, in agentd, now.")
M_EXCHANGES: Final = Metric("wardgate_agentd_exchanges_open", _G, "Requests with calls under way in agentd now.")
M_REPLIES_DROPPED: Final = Metric(
    "wardgate_ingress_replies_dropped_total", _C, "Decisions that a worker's full or closed socket did not take."
)
M_UNKNOWN: Final = Metric("wardgate_ingress_unknown_total", _C, "Messages of connections that had not registered.")
M_UNSENT: Final = Metric("wardgate_ingress_unsent_bytes", _G, "Of decisions that wait for the worker that reads least.")
M_UNSENT_LIMIT: Final = Metric(
    "wardgate_ingress_unsent_limit_bytes", _G, "How many may wait for one worker: runtime.hop_unsent_bytes."
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
M_TOKENS: Final = Metric(
    "wardgate_llm_tokens_total",
    _C,
    "Tokens that language models took, by what their providers say; direction is input or output. Models beyond 64 of "
    'a route are "other".',
    ("route", "model", "direction"),
)
M_TOKEN_RESPONSES: Final = Metric(
    "wardgate_llm_responses_total", _C, "Responses that said how many tokens they took.", ("route", "model")
)
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
    A_COMPLETIONS,
    A_BODY_BYTES,
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
    M_UNSENT,
    M_UNSENT_LIMIT,
    M_LOCAL,
    M_LOCAL_LIMIT,
    M_LOCAL_REFUSED,
    M_MEMORY_CUTS,
    M_SHUT_OUT,
    M_HANDSHAKES_REFUSED,
    M_CLIENT_BUFFER,
    M_SESSIONS_REFUSED,
    M_TOKENS,
    M_TOKEN_RESPONSES,
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

Generated from `shared/metrics.py` and `shared/metrics_agentd.py`; `make docs` writes it again.

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
