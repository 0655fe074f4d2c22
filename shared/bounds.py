"""Every queue, buffer and table of the product: how much fits, who may change it, what shows it, what happens beyond.

docs/bounds.md is made from these rows. A number that can be configured stands here only as its default; what a key
does stands in shared/config/schema.py, what a metric counts in shared/metrics.py. A new queue without a row here is
an oversight: there is none without a bound.

Kind: table.
"""

from typing import Final, NamedTuple

from shared import defaults as d
from shared import metrics_agentd as ma


class Bound(NamedTuple):
    """One row. `key`: of the configuration, "" = fixed. Metrics by name; "" = none, and `beyond` says why that does."""

    what: str
    size: int | float
    unit: str
    key: str
    use: str
    limit: str
    refused: str
    beyond: str


WORKER: Final = (
    Bound("write buffer of a client's connection", d.CLIENT_BUFFER_BYTES, "bytes", "server.connection_buffer_bytes",
          "wardgate_client_buffers_full", "wardgate_client_buffer_limit_bytes", "wardgate_client_gone_total",
          "The upstream is not read on, so one more read is the most there is. A client that takes nothing for "
          "`body_timeout_s` is cut. `wardgate_client_buffered_bytes` has the sum."),
    Bound("write buffer of an upstream's connection", d.CLIENT_BUFFER_BYTES, "bytes", "server.connection_buffer_bytes",
          "", "wardgate_client_buffer_limit_bytes", "wardgate_upstream_failures_total",
          "The client is not read on. Belongs to one request each, so it is bounded with them."),
    Bound("request head", d.MAX_HEADER_BYTES, "bytes", "server.max_header_bytes", "", "",
          "wardgate_requests_refused_total", "431."),
    Bound("request head's fields", d.MAX_HEADERS, "fields", "server.max_headers", "", "",
          "wardgate_requests_refused_total", "431."),
    Bound("request target", d.MAX_TARGET_BYTES, "bytes", "", "", "", "wardgate_requests_refused_total", "414."),
    Bound("request body", d.MAX_BODY_BYTES, "bytes", "server.max_body_bytes", "", "",
          "wardgate_requests_refused_total", "413. Bodies are passed on as they come, unless agents see them."),
    Bound("a body's bytes that wait for its agents", d.BODY_CHUNK_BYTES, "bytes", "", "", "", "",
          "The sender is not read on. What a route buffers and what `needs_more` keeps is bounded by the next row."),
    Bound("body that an agent is shown", d.MAX_AGENT_BODY_BYTES, "bytes", "agents[].max_request_body_bytes", "", "",
          "wardgate_bodies_too_large_total", "413 (a response's: 502) where the agent is fail-closed, else the rest "
          "passes without it. `max_response_body_bytes` is the other direction's."),
    Bound("bodies that agents have not decided on, per worker", d.HOP_OUTSTANDING_BYTES, "bytes", "",
          "wardgate_bodies_outstanding_bytes", "wardgate_bodies_outstanding_limit_bytes",
          "wardgate_decisions_local_total", "Outcome queue_full. Observers may have half of it; beyond, they are not "
          "shown the rest of their body: `wardgate_observed_chunks_dropped_total`."),
    Bound("WebSocket message that agents see", d.WEBSOCKET_MESSAGE_BYTES, "bytes",
          "routes[].websocket.max_message_bytes", "", "", "wardgate_websockets_closed_total",
          "The sender is closed with 1009. Counted after decompression, of which nothing is done ahead of its turn."),
    Bound("what a WebSocket's sender said behind a message in question", d.WEBSOCKET_HELD_BYTES, "bytes", "", "", "",
          "", "It is not read on. One of these and one message for each direction of each WebSocket."),
    Bound("request that is recognised when its connection repeats it", d.REPEATED_HEAD_BYTES, "bytes", "", "", "", "",
          "A longer one is parsed each time. One for each connection; with what it means thirteen times its size."),
    Bound("response heads remembered by their bytes", d.HEADS_REMEMBERED, "heads", "", "", "", "",
          "All are forgotten. None is over 1,024 bytes."),
    Bound("requests behind an open one of their connection", d.MAX_PIPELINED, "requests", "server.max_pipelined",
          "wardgate_requests_pipelined", "", "wardgate_requests_refused_total",
          "503 and the connection's end. Reading stops with the first of them; one read may hold several."),
    Bound("what is read from a connection that is being closed", d.LINGER_BYTES, "bytes", "", "", "",
          "", "Closed at once. Read and forgotten: it occupies nothing."),
    Bound("connections that wait to be accepted", d.BACKLOG, "connections", "", "", "", "",
          "The kernel does not take them; it has counters of its own (`nstat TcpExtListenOverflows`)."),
    Bound("connections to one upstream, per worker", d.UPSTREAM_CONNECTIONS, "connections",
          "upstreams[].max_connections", "wardgate_upstream_open_connections",
          "wardgate_upstream_open_connections_limit", "", "Requests wait: the next row."),
    Bound("requests waiting for an upstream's connection, per worker", d.UPSTREAM_WAITING, "requests",
          "upstreams[].max_waiting", "wardgate_upstream_waiting", "wardgate_upstream_waiting_limit",
          "wardgate_upstream_failures_total", "503 `pool_full` at once; 503 or 504 after `connect_timeout_s`."),
    Bound("response head of an upstream", d.MAX_RESPONSE_HEADER_BYTES, "bytes", "", "", "",
          "wardgate_upstream_failures_total", "502."),
    Bound("events of a worker without an answer", d.HOP_PENDING_MAX, "events", "runtime.max_pending_events",
          "wardgate_events_pending", "wardgate_events_pending_limit", "wardgate_decisions_local_total",
          "Decided at once as `queue_full`, by failure mode."),
    Bound("what agentd has not taken of a worker's messages", d.HOP_UNSENT_BYTES, "bytes", "runtime.hop_unsent_bytes",
          "wardgate_hop_unsent_bytes", "wardgate_hop_unsent_limit_bytes", "wardgate_decisions_local_total",
          "The events of the next message are decided as `queue_full`."),
    Bound("one message between worker and agentd", d.HOP_MAX_MESSAGE_BYTES, "bytes", "", "", "",
          "wardgate_ingress_malformed_total", "Never made; one that came would end its connection."),
    Bound("audit records while agentd is away or stands still", d.AUDIT_WORKER_QUEUE, "records",
          "audit.worker_queue_records",
          "wardgate_worker_audit_queued", "wardgate_worker_audit_queued_limit", "wardgate_worker_audit_dropped_total",
          "The oldest is dropped and counted."),
    Bound("ends of exchanges that agentd did not take", d.HOP_OWED_MAX, "records", "", "", "", "",
          "The oldest is forgotten; what agentd has pinned for it stays until the worker's connection ends."),
    Bound("decisions remembered by their bytes", d.DECISIONS_REMEMBERED, "decisions", "", "", "", "",
          "Forgotten all together; each has at most 512 bytes."),
    Bound("log lines about requests", d.LOG_LINES_PER_S, "lines a second", "", "", "",
          "wardgate_worker_log_dropped_total", "Counted in one line a second."),
    Bound("keys of rate limits, over all workers", d.BUCKET_ROWS, "buckets", "", "", "",
          "wardgate_limit_overflow_total", "A key without a bucket of its own shares its limit's overflow bucket."),
)  # fmt: skip
AGENTD: Final = (
    Bound("calls under way to one agent", d.MAX_CONCURRENT_CALLS, "calls", "agents[].max_concurrent_calls",
          "wardgate_agent_calls_in_flight", "wardgate_agent_calls_limit", "wardgate_agent_calls_delayed_total",
          "They queue: the next row. An instance's own `max_concurrency` may be smaller."),
    Bound("calls waiting for one agent", d.MAX_QUEUE, "calls", "agents[].max_queue", "wardgate_agent_calls_queued",
          "wardgate_agent_queue_limit", "wardgate_agent_calls_total",
          "Outcome `queue_full` at once. Observers' calls never queue."),
    Bound("connections to a zmq-v1 agent", d.V1_CONNECTIONS, "connections", "agents[].connections",
          "wardgate_agent_calls_held", "wardgate_agent_instances_limit", "",
          "One call each. A cancelled call keeps its connection until the answer or the deadline; the metric counts "
          "those."),
    Bound("instances of one agent", d.MAX_SESSIONS_PER_AGENT, "instances", "agents[].max_instances",
          "wardgate_agent_instances", "wardgate_agent_instances_limit", "wardgate_sessions_refused_total",
          "REFUSE `too_many`."),
    Bound("bytes that an instance has not read", d.SESSION_MAX_BYTES, "bytes", "agents[].max_outstanding_bytes",
          "wardgate_agent_outstanding_bytes_fullest", "wardgate_agent_outstanding_bytes_limit",
          "wardgate_agent_sends_refused_total", "It gets no more calls; where no instance does, `queue_full`."),
    Bound("messages that an instance has not read", d.AGENT_HWM, "messages", "runtime.agent_hwm",
          "wardgate_agent_outstanding_messages_fullest", "wardgate_agent_outstanding_messages_limit",
          "wardgate_agent_sends_refused_total", "As above."),
    Bound("what agents send without use", d.AGENT_CHATTER_PER_S, "messages a second", "", "", "",
          "wardgate_agent_garbage_total",
          "More is malformed, and three times that ends the session. What is not read yet lies in the kernel, which "
          "holds its sender up."),
    Bound("one message of an agent", d.AGENT_MAX_MESSAGE_BYTES, "bytes", "", "", "", "wardgate_agent_garbage_total",
          "Its connection is cut as soon as that shows. At most 4,098 frames. Before WELCOME 64 KiB and 16 frames."),
    Bound("messages of agents without their end", d.MEMORY_SLACK_BYTES, "bytes", "", "", "",
          "wardgate_memory_cuts_total",
          "When agentd has grown by so much that nobody accounts for, who has been longest at it is cut."),
    Bound("connections to the agents' socket", d.AGENT_PEERS_MAX, "connections", "", "wardgate_local_connections",
          "wardgate_local_connections_limit", "wardgate_local_connections_refused_total",
          "Cut at accept. Half of what the process may open, where that is less."),
    Bound("connections to the workers' socket", 2 * d.WORKER_SLOTS, "connections", "", "wardgate_local_connections",
          "wardgate_local_connections_limit", "wardgate_local_connections_refused_total", "Cut at accept."),
    Bound("events that workers wait for, in agentd", d.HOP_PENDING_MAX, "events of each worker", "",
          "wardgate_agentd_events_pending", "wardgate_events_pending_limit", "",
          "The workers send no more. `wardgate_agentd_exchanges_open` and `wardgate_agent_exchanges_pinned` have the "
          "requests that belong to them."),
    Bound("decisions that a worker has not read", d.HOP_UNSENT_BYTES, "bytes", "runtime.hop_unsent_bytes",
          "wardgate_ingress_unsent_bytes", "wardgate_ingress_unsent_limit_bytes",
          "wardgate_ingress_replies_dropped_total", "Dropped and counted; the worker gives up at its deadline."),
    Bound("calls remembered after their end, per session", 2 * d.AGENT_ENDED_REMEMBERED, "calls", "", "", "", "",
          "A verdict for one that is forgotten counts as garbage instead of late. With more than 128 sessions fewer."),
    Bound("calls remembered after their end, over all sessions", 2 * d.AGENT_ENDED_TOTAL, "calls", "", "", "", "",
          "Shared out evenly ten times a second; some 110 bytes each."),
    Bound("verdicts remembered by their bytes, per agent", d.VERDICT_CACHE_ENTRIES, "verdicts", "", "", "", "",
          "Forgotten all together; each has at most 512 bytes."),
    Bound("processes that are not listened to for a while", d.PENALTIES_MAX, "processes", "", "", "", "",
          "Those whose time is over are swept."),
    Bound("series of metrics that an agent reports", d.MAX_AGENT_METRIC_SERIES, "series", "",
          "wardgate_agent_reported_series", "", "wardgate_agent_reported_dropped_total", "Dropped and counted."),
    Bound("last calls of an agent", d.FLIGHT_RECORDER_CALLS, "calls", "", "", "", "", "The oldest goes."),
    Bound("audit records to be written", d.AUDIT_QUEUE, "records", "audit.queue_records", "wardgate_audit_queued",
          "wardgate_audit_queued_limit", "wardgate_audit_dropped_total", "Dropped and counted; health is degraded."),
    Bound("their bytes", d.AUDIT_QUEUE_BYTES, "bytes", "audit.queue_bytes", "wardgate_audit_queued_bytes",
          "wardgate_audit_queued_bytes_limit", "wardgate_audit_dropped_total", "The same."),
    Bound("one audit record", d.AUDIT_RECORD_MAX_BYTES, "bytes", "", "", "", "wardgate_audit_dropped_total",
          "Refused and counted."),
    Bound("admin connections, per listener", d.ADMIN_MAX_CONNECTIONS, "connections", "", "", "", "",
          "Closed at once; each has 5 s and 16 KiB for one request. However many ask for /metrics, one page is made "
          "at a time."),
)  # fmt: skip
SDK: Final = (
    Bound("async hooks that run or wait", 200, "calls", "", "", "", "",
          "The verdict is the error `overloaded`. Twice the agent's `max_concurrency`, 100 unless it says otherwise; "
          "agentd sends no more than that unless calls are cancelled. `wardgate_reported_*` has its own counts."),
    Bound("what agentd has not read", 32 * 1024 * 1024, "bytes", "", "", "", "",
          "Its verdicts are dropped, counted and logged; the calls end at their timeout."),
)  # fmt: skip

_INTRO = """\
# Bounds

Generated from `shared/bounds.py`; `make docs` writes it again.

Every queue, buffer and table of Wardgate has a bound. This page has them all, with the key that changes it, the
metrics that show how much is in use, how much may be and what was refused, and what happens beyond. Where no key
stands the bound is fixed; where no metric stands nothing can be lost that another row does not count.
`wardgate agents` shows the calls, queues and unread bytes of each agent beside their limits, `wardgate agents NAME`
those of each instance. [metrics.md](metrics.md) says what the metrics count, [configuration.md](configuration.md)
in which range a key may be.

Memory and file descriptors of every process are `wardgate_process_resident_memory_bytes`, `wardgate_process_open_fds`
and `wardgate_process_max_fds`. agentd with 50 agents of 20 instances each and 10,000 requests in flight stays below
300 MiB (a test holds it to that); `make soak` watches all processes for as long as you like.
"""
_HEAD = """
## {title}

| what | at most | key | in use | limit | refused | beyond |
|---|---|---|---|---|---|---|
"""


def rows() -> tuple[Bound, ...]:
    """All of them."""
    return (*WORKER, *AGENTD, *SDK)


def render_markdown() -> str:
    """docs/bounds.md. Raises KeyError for a metric that does not exist."""
    known = {metric.name: metric.name for metric in ma.families()}
    out = [_INTRO]
    for title, table in (("In each worker", WORKER), ("In agentd", AGENTD), ("In an agent on the Python SDK", SDK)):
        out.append(_HEAD.format(title=title))
        for row in table:
            metrics = " | ".join(f"`{known[name]}`" if name else "" for name in (row.use, row.limit, row.refused))
            key = f"`{row.key}`" if row.key else ""
            out.append(f"| {row.what} | {row.size:,} {row.unit} | {key} | {metrics} | {row.beyond} |\n")
    return "".join(out)
