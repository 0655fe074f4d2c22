"""The shape of the configuration: one struct per TOML table, one row per key.

Every default comes from shared/defaults.py. A key's `Meta` holds its documentation, its range, whether
a change needs a reload or a restart, and the name of its syntax (shared/config/syntax.py). The reference,
the JSON Schema and `wardgate check` are made from these rows. Unknown keys are errors; keys of features
that do not exist yet are not here but in shared/config/later.py, which rejects them by name.

Routes stand in shared/config/schema_routes.py. A key may stand in either only if some module reads it (semantics
10: config that is accepted acts).

Kind: table.
"""

from typing import Annotated, Any, Literal

from shared import defaults as d
from shared.config.keys import (
    DAY_S,
    GIB,
    HOUR_S,
    Address,
    DirPath,
    Endpoint,
    FailureMode,
    FilePath,
    HostName,
    Listen,
    Name,
    Network,
    Table,
    TcpListen,
    User,
    key,
)
from shared.config.schema_routes import Route


class Server(Table, frozen=True):
    """The HTTP front: where it listens, how many workers it has, and what it asks of clients."""

    listen: Annotated[
        tuple[Listen, ...],
        key(
            'Where clients connect: `"host:port"`, `"[::1]:port"` or `"unix:/path"`. Sockets passed by systemd win '
            "over this list.",
            "restart",
            min_length=1,
        ),
    ] = d.LISTEN
    workers: Annotated[
        int, key("How many worker processes serve requests. 0 = one per core.", ge=0, le=d.WORKER_SLOTS // 2)
    ] = d.WORKERS
    worker_timeout_s: Annotated[
        int,
        key(
            "A worker whose event loop has not turned for so long is killed and replaced. Workers never block, so "
            "this catches only defects.",
            ge=2,
            le=HOUR_S,
        ),
    ] = d.WORKER_TIMEOUT_S
    max_requests: Annotated[
        int, key("A worker is replaced, without losing a request, after so many requests. 0 = never.", ge=0, le=10**9)
    ] = d.MAX_REQUESTS
    max_connections: Annotated[
        int,
        key(
            "The most client connections at once, over all workers. One more is closed without an answer. 0 = no "
            "limit.",
            ge=0,
            le=10**9,
        ),
    ] = d.MAX_CONNECTIONS
    max_connections_per_client: Annotated[
        int,
        key(
            "The same per client address; IPv6 clients by their /64. Trusted proxies are not counted, nor clients on "
            "unix sockets. 0 = no limit.",
            ge=0,
            le=10**9,
        ),
    ] = d.MAX_CONNECTIONS
    max_header_bytes: Annotated[
        int,
        key("The longest request head, request line included. A longer one is answered 431.", ge=1_024, le=1 << 20),
    ] = d.MAX_HEADER_BYTES
    max_headers: Annotated[
        int, key("The most header fields of a request. One more is answered 431.", ge=1, le=10_000)
    ] = d.MAX_HEADERS
    max_body_bytes: Annotated[
        int,
        key(
            "The longest request body, streamed ones included. A longer one is answered 413. 0 = unlimited.",
            ge=0,
            le=10**15,
        ),
    ] = d.MAX_BODY_BYTES
    header_timeout_s: Annotated[
        float,
        key("The whole request head must have arrived within this time of its first byte.", gt=0, le=HOUR_S),
    ] = float(d.HEADER_TIMEOUT_S)
    body_timeout_s: Annotated[
        float,
        key(
            "A client may pause so long inside a request body, without a byte; and so long it may take no byte of a "
            "response before its connection is cut.",
            gt=0,
            le=DAY_S,
        ),
    ] = float(d.BODY_TIMEOUT_S)
    keepalive_timeout_s: Annotated[float, key("An idle client connection is closed after so long.", gt=0, le=DAY_S)] = (
        float(d.KEEPALIVE_TIMEOUT_S)
    )
    graceful_timeout_s: Annotated[
        int,
        key("What a stopping or replaced worker still serves may take so long before it is cut.", ge=2, le=HOUR_S),
    ] = d.GRACEFUL_TIMEOUT_S
    connection_buffer_bytes: Annotated[
        int,
        key(
            "How much of what goes to a client, or to an upstream, may be unsent on one connection before nothing "
            "more is read from the other side.",
            ge=4_096,
            le=1 << 24,
        ),
    ] = d.CLIENT_BUFFER_BYTES
    max_pipelined: Annotated[
        int,
        key("How many requests of one connection may wait for an earlier one's answer; beyond, 503.", ge=1, le=1_000),
    ] = d.MAX_PIPELINED
    trusted_proxies: Annotated[
        tuple[Network, ...],
        key(
            "Networks (CIDR) of the proxies in front whose X-Forwarded-For, Forwarded and request ids are believed. "
            "From everybody else these fields are replaced. `[]` = believe nobody."
        ),
    ] = d.TRUSTED_PROXIES


class Runtime(Table, frozen=True):
    """Where the daemons meet: sockets, locks and shared segments."""

    dir: Annotated[
        DirPath,
        key(
            "Directory of the sockets, lock files and segments; it must belong to the user of the daemons. Absent = "
            "`$RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR/wardgate`, else `/run/wardgate`.",
            "restart",
        ),
    ] = ""
    hop_unsent_bytes: Annotated[
        int,
        key(
            "How many bytes may wait, of each worker and of agentd for each worker, for the other end to read them. "
            "Beyond it events end as queue_full, and decisions are dropped and counted.",
            "restart",
            ge=1_048_576,
            le=1_073_741_824,
        ),
    ] = d.HOP_UNSENT_BYTES
    max_pending_events: Annotated[
        int, key("How many events one worker may have unanswered; beyond, outcome queue_full.", ge=1, le=1_000_000)
    ] = d.HOP_PENDING_MAX
    agent_hwm: Annotated[
        int,
        key(
            "How many messages an agent's instance may have unread before it gets no more calls (zmq-v2).",
            "restart",
            ge=10,
            le=100_000,
        ),
    ] = d.AGENT_HWM


class Admin(Table, frozen=True):
    """The admin API of agentd: health, metrics, agents, breakers. It is always on `admin.sock` in `runtime.dir`."""

    listen: Annotated[
        tuple[TcpListen, ...],
        key("TCP addresses of the admin API beside its unix socket. `[]` = only the unix socket.", "restart"),
    ] = d.ADMIN_LISTEN
    token_file: Annotated[
        FilePath,
        key(
            "File with the bearer token that changes over TCP need; without one, changes are possible only over the "
            "unix socket. An absolute path, or the bare name of a systemd credential.",
        ),
    ] = ""


class Target(Table, frozen=True):
    """One server of an upstream: an entry of `targets`."""

    address: Annotated[Address, key('`"host:port"`, `"[::1]:port"` or `"unix:/path"`.')]
    weight: Annotated[int, key("Its share of the requests, relative to the other targets.", ge=1, le=100)] = (
        d.TARGET_WEIGHT
    )


class UpstreamTls(Table, frozen=True):
    """TLS towards the targets of an upstream; given, even empty, it turns TLS on: an entry `tls`."""

    sni: Annotated[HostName, key("The server name asked for and verified. Absent = the target's host.")] = ""
    ca_file: Annotated[
        FilePath, key("PEM file of the authorities to trust. Absent = the system's. An absolute path.")
    ] = ""
    verify: Annotated[bool, key("Whether the certificate and its name are verified.")] = True


class Upstream(Table, frozen=True):
    """A named group of servers that requests are passed on to."""

    name: Annotated[Name, key("How routes name it.")]
    targets: Annotated[tuple[Target, ...], key("Its servers.", min_length=1)]
    balance: Annotated[Literal["round_robin"], key("How a target is chosen for a request.")] = "round_robin"
    connect_timeout_s: Annotated[
        float, key("A connection, TLS handshake included, must be made within this time; else 504.", gt=0, le=HOUR_S)
    ] = d.CONNECT_TIMEOUT_S
    response_timeout_s: Annotated[
        float, key("The response head must arrive within this time of the whole request; else 504.", gt=0, le=DAY_S)
    ] = d.RESPONSE_TIMEOUT_S
    idle_timeout_s: Annotated[
        float,
        key(
            "The longest pause inside a response body; a longer one aborts the response. 0 = none (event streams). "
            "Also the longest silence of a WebSocket.",
            ge=0,
            le=DAY_S,
        ),
    ] = d.IDLE_TIMEOUT_S
    max_connections: Annotated[int, key("The most connections of one worker to this upstream.", ge=1, le=65_535)] = (
        d.UPSTREAM_CONNECTIONS
    )
    max_waiting: Annotated[
        int,
        key("How many requests of one worker may wait for a connection to it; beyond, 503 at once.", ge=1, le=100_000),
    ] = d.UPSTREAM_WAITING
    retries: Annotated[
        int,
        key(
            "How often a request is tried again. Only idempotent requests are, and only where a reused connection "
            "died before the first byte of the response. Of several targets each is tried once anyway, within "
            "connect_timeout_s.",
            ge=0,
            le=10,
        ),
    ] = d.UPSTREAM_RETRIES
    tls: Annotated[UpstreamTls | None, key("TLS towards the targets. Absent = plain HTTP.")] = None


class CircuitBreaker(Table, frozen=True):
    """When calls to an agent stop for a while: an entry `circuit_breaker` of an agent."""

    failure_threshold: Annotated[
        int, key("So many failures within the window open the breaker.", ge=1, le=1_000_000)
    ] = d.BREAKER_FAILURES
    success_threshold: Annotated[int, key("So many successful probes in a row close it again.", ge=1, le=1_000)] = (
        d.BREAKER_SUCCESSES
    )
    timeout_seconds: Annotated[float, key("An open breaker lets a probe through after so long.", gt=0, le=DAY_S)] = (
        d.BREAKER_TIMEOUT_S
    )
    window_seconds: Annotated[float, key("The sliding window of failures.", gt=0, le=DAY_S)] = d.BREAKER_WINDOW_S
    half_open_max_requests: Annotated[int, key("How many probes may be under way at once.", ge=1, le=1_000)] = (
        d.BREAKER_PROBES
    )


class AgentRateLimit(Table, frozen=True):
    """How often an agent is called: an entry `rate_limit` of an agent."""

    capacity: Annotated[int, key("The most calls in a burst.", ge=1, le=10**9)]
    refill_rate: Annotated[float, key("So many calls a second, in the long run.", ge=0.000_001, le=1_000_000)]


class Agent(Table, frozen=True):
    """A program that decides about requests and responses. Routes name it in their `filters`."""

    name: Annotated[Name, key("How filters name it and, with zmq-v2, how it registers.")]
    protocol: Annotated[
        Literal["zmq-v2", "zmq-v1"],
        key(
            "`zmq-v2`: the agent dials in, many calls at once, several instances. `zmq-v1`: a plain REP socket that "
            "agentd dials, one call per connection."
        ),
    ]
    endpoint: Annotated[
        Endpoint, key('zmq-v1 only, required there: where the agent listens, `"ipc:///path"` or `"tcp://host:port"`.')
    ] = ""
    connections: Annotated[
        int, key("zmq-v1 only: how many connections agentd opens; each carries one call at a time.", ge=1, le=256)
    ] = d.V1_CONNECTIONS
    secret_file: Annotated[
        FilePath,
        key(
            "zmq-v2 only: file with the secret an instance must prove to know. Required where several agents may be "
            "registered by the same user. An absolute path, or the bare name of a systemd credential."
        ),
    ] = ""
    allow_users: Annotated[
        tuple[User, ...] | None,
        key("zmq-v2 only: the users whose processes may register under this name. Absent = agentd's own user."),
    ] = None
    events: Annotated[
        tuple[
            Literal[
                "request_headers",
                "request_body_chunk",
                "response_headers",
                "response_body_chunk",
                "websocket_frame",
                "guardrail_inspect",
                "request_complete",
            ],
            ...,
        ]
        | None,
        key(
            "What the agent is asked about, and nothing else. Absent: with zmq-v2 what the agent registers for, with "
            "zmq-v1 everything."
        ),
    ] = None
    timeout_ms: Annotated[
        int, key("A call, queueing and connecting included, must be answered within this time.", ge=1, le=600_000)
    ] = d.AGENT_TIMEOUT_MS
    failure_mode: Annotated[
        FailureMode,
        key(
            "What a failed call means where a filter does not say: `closed` refuses the request (504 for a timeout, "
            "else 503), `open` goes on without this agent."
        ),
    ] = d.FAILURE_MODE
    max_concurrent_calls: Annotated[
        int, key("The most calls under way at once, over all its instances.", ge=1, le=100_000)
    ] = d.MAX_CONCURRENT_CALLS
    max_queue: Annotated[
        int, key("The most calls waiting for a free place; one more fails at once.", ge=0, le=1_000_000)
    ] = d.MAX_QUEUE
    max_instances: Annotated[
        int, key("zmq-v2 only: how many instances may be registered at once; one more is refused.", ge=1, le=4_096)
    ] = d.MAX_SESSIONS_PER_AGENT
    max_outstanding_bytes: Annotated[
        int,
        key(
            "zmq-v2 only: how many bytes an instance may have unread before it gets no more calls.",
            ge=65_536,
            le=GIB,
        ),
    ] = d.SESSION_MAX_BYTES
    max_request_body_bytes: Annotated[
        int,
        key(
            "The longest request body it is shown, in pieces or whole. A longer one is answered 413 where its failure "
            "mode is closed; where it is open, the rest passes without it.",
            ge=0,
            le=GIB,
        ),
    ] = d.MAX_AGENT_BODY_BYTES
    max_response_body_bytes: Annotated[
        int,
        key("The same for response bodies; a longer one is answered 502, or aborted once it has begun.", ge=0, le=GIB),
    ] = d.MAX_AGENT_BODY_BYTES
    required: Annotated[
        bool | None,
        key(
            "Whether readiness needs a live instance of it. Absent = yes where some enforcing filter or guardrail is "
            "fail-closed."
        ),
    ] = None
    config: Annotated[Any, key("Handed to the agent as it is; its meaning is the agent's.")] = None
    circuit_breaker: Annotated[CircuitBreaker, key("When calls to it stop for a while.")] = CircuitBreaker()
    rate_limit: Annotated[
        AgentRateLimit | None,
        key("How often it is called; one call more fails at once, like a full queue. Absent = no limit."),
    ] = None


class Audit(Table, frozen=True):
    """The record of every decision."""

    sinks: Annotated[tuple[Literal["file"], ...], key("Where records go. `[]` = nowhere.")] = d.AUDIT_SINKS
    path: Annotated[DirPath, key("Directory of the `file` sink; agentd makes it if it can.")] = d.AUDIT_PATH
    queue_records: Annotated[
        int, key("How many records may wait in agentd to be written.", "restart", ge=1, le=10_000_000)
    ] = d.AUDIT_QUEUE
    queue_bytes: Annotated[int, key("And how many bytes.", "restart", ge=d.AUDIT_RECORD_MAX_BYTES, le=GIB)] = (
        d.AUDIT_QUEUE_BYTES
    )
    worker_queue_records: Annotated[
        int, key("How many records a worker keeps while agentd is away; the oldest is dropped.", ge=1, le=1_000_000)
    ] = d.AUDIT_WORKER_QUEUE
    when_full: Annotated[
        Literal["drop"], key("What happens to a record when the sink cannot keep up: it is counted, not kept.")
    ] = "drop"


class Logging(Table, frozen=True):
    """The daemons' own log, on standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], key("The least severe lines that are written.")] = (
        d.LOG_LEVEL
    )
    format: Annotated[Literal["json", "text"], key("`json`: one object a line. `text`: for people.")] = d.LOG_FORMAT


class Config(Table, frozen=True):
    """The whole configuration."""

    server: Annotated[Server, key("The HTTP front.")] = Server()
    runtime: Annotated[Runtime, key("Where the daemons meet.", "restart")] = Runtime()
    admin: Annotated[Admin, key("The admin API.", "restart")] = Admin()
    upstreams: Annotated[tuple[Upstream, ...], key("Named groups of servers.")] = ()
    agents: Annotated[tuple[Agent, ...], key("Who decides.")] = ()
    routes: Annotated[tuple[Route, ...], key("Which requests go where, and who decides about them.")] = ()
    audit: Annotated[Audit, key("The record of every decision.")] = Audit()
    logging: Annotated[Logging, key("The daemons' own log.")] = Logging()
