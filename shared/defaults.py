"""Every default and every hard limit, with its unit and its reason.

Nothing else in the project may hold such a number. `shared/config/schema.py` takes its defaults from
here; capacities of the segments stand here because two processes must agree on them.

Kind: table.
"""

from typing import Final

# --- server (the HTTP front) ---------------------------------------------------------------------
LISTEN: Final = ("127.0.0.1:8080",)  # loopback until somebody decides otherwise
WORKERS: Final = 2  # 0 = one per core
WORKER_TIMEOUT_S: Final = 60  # gunicorn's default is 30; a worker here never blocks, so longer is safe
MAX_REQUESTS: Final = 0  # recycling is for leaks; we have none that we know of
MAX_HEADER_BYTES: Final = 32_768  # nginx: 4 x 8 KiB
MAX_HEADERS: Final = 100  # Apache's LimitRequestFields
MAX_TARGET_BYTES: Final = 8_192  # request target; RFC 9110 4.1 asks for at least 8,000
MAX_BODY_BYTES: Final = 10_485_760  # 10 MiB
MAX_TRAILERS: Final = 16  # read, counted and dropped
HEADER_TIMEOUT_S: Final = 10  # the whole head
BODY_TIMEOUT_S: Final = 30  # without a byte
KEEPALIVE_TIMEOUT_S: Final = 75  # nginx's default
GRACEFUL_TIMEOUT_S: Final = 30
DRAIN_IDLE_S: Final = 2  # a draining worker closes connections that stay idle for so long
BACKLOG: Final = 2_048
ACCEPTS_AT_ONCE: Final = 64  # connections to a unix socket of agentd's, before its loop turns
ACCEPT_REST_S: Final = 0.02  # after so many: somebody may dial and dial, and each costs agentd more than the dialler
ACCEPT_PAUSE_S: Final = 0.5  # where no descriptor is left for another
TRUSTED_PROXIES: Final = ("127.0.0.1/32",)
TRACES_AHEAD: Final = 64  # traceparents made at a time
OPS_REMEMBERED: Final = 1_024  # header operations whose line a worker remembers
OP_REMEMBERED_CHARS: Final = 512  # a longer value is made into a line each time
HEADS_REMEMBERED: Final = 512  # response heads whose meaning a worker remembers
HEAD_REMEMBERED_BYTES: Final = 1_024  # a longer one is parsed each time
REPEATED_HEAD_BYTES: Final = 8_192  # a longer request is not recognised when its client repeats it
MAX_PIPELINED: Final = 32  # heads queued behind an open exchange of one connection
CHUNK_OVERHEAD_BYTES: Final = 65_536  # chunk framing may exceed RATIO x body by so much
CHUNK_OVERHEAD_RATIO: Final = 16  # one-byte chunks are 6 bytes each
LINGER_MS: Final = 2_000  # how long a connection is read on after an answer that closes it
LINGER_BYTES: Final = 1_048_576  # and how much
CONNECTION_SWEEP_MS: Final = 200  # client timeouts are seconds; looking at every connection costs
SWEEP_LATE_MS: Final = 200  # a sweep that comes so long after the one before waits for the next: sockets are read first
SWEEP_MS: Final = 20  # one deadline sweep per worker instead of a timer per request
LOG_LINES_PER_S: Final = 1_000  # refusals beyond that: one line a second with the count
BURST_FROM_WRITES: Final = 8  # a loop turn with so many writes makes the next ones wait for their turn's end
CLIENT_BUFFER_BYTES: Final = 65_536  # high-water mark of a client's or upstream's write buffer
MAX_FORWARDED_HOPS: Final = 32  # X-Forwarded-For entries looked at from the right

# --- hop between worker and agentd ---------------------------------------------------------------
WIRE_VERSION: Final = 2
HOP_GRACE_MS: Final = 100  # the worker gives up so long after the deadline, so that a merge is never overtaken
HOP_UNSENT_BYTES: Final = 128 * 1024 * 1024  # that may wait for the other end, which does not read
HOP_OWED_MAX: Final = 65_536  # ends of exchanges, of some 14 bytes, that a worker could not tell agentd yet
HOP_MAX_FRAMES: Final = 4_097  # records and at most 4,096 bodies
HOP_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
HOP_BODY_FRAME_BYTES: Final = 4_096  # bodies from this size travel as frames of their own
DECISIONS_REMEMBERED: Final = 4_096  # by their bytes, in a worker
DECISIONS_ENCODED: Final = 512  # whose bytes agentd remembers
DECISION_REMEMBERED_BYTES: Final = 512  # a longer one is decoded and encoded each time
REREGISTER_MS: Final = 100  # between two REGISTER of a worker that was not answered
HOP_PENDING_MAX: Final = 20_000  # events of one worker without an answer; beyond: QueueFull
DRAIN_MESSAGES: Final = 100  # received per wake-up before the loop turns
RECONNECT_MS: Final = 50  # first back-off inside the host
RECONNECT_MAX_MS: Final = 1_000  # semantics 7: capped at 1 s inside the host
AGENTD_BEAT_MS: Final = 100
AGENTD_STALE_MS: Final = 1_000
SEGMENT_CHECK_MS: Final = 1_000  # readers compare inode and nonce so often
ZMTP_HANDSHAKE_MS: Final = 2_000

# --- agents --------------------------------------------------------------------------------------
AGENT_TIMEOUT_MS: Final = 200
FAILURE_MODE: Final = "closed"
MAX_CONCURRENT_CALLS: Final = 100
MAX_QUEUE: Final = 200
MAX_AGENT_BODY_BYTES: Final = 1_048_576
V1_CONNECTIONS: Final = 1
BREAKER_FAILURES: Final = 5
BREAKER_SUCCESSES: Final = 2
BREAKER_TIMEOUT_S: Final = 30.0
BREAKER_WINDOW_S: Final = 60.0
BREAKER_PROBES: Final = 1
AGENT_HWM: Final = 1_000
AGENT_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
SESSION_MAX_BYTES: Final = 32 * 1024 * 1024  # outstanding per session: a high-water mark counts messages only
AGENT_HEARTBEAT_MS: Final = 1_000  # silence before a ping; three times that = dead
HELLO_WITHIN_MS: Final = 2_000  # a peer that says nothing is cut
BAD_MESSAGES_PER_MIN: Final = 3
BAD_PEER_RETRY_MS: Final = 5_000
HELLO_MAX_CONCURRENCY: Final = 100
HELLO_MAX_BATCH: Final = 1
MAX_BATCH: Final = 256
HELLO_MAX_BODY_BYTES: Final = 1_048_576
MAX_CALL_ID_CHARS: Final = 32
MAX_AGENT_METRIC_SERIES: Final = 200  # per agent; what is beyond is dropped and counted
AGENT_METRIC_LABELS: Final = 8  # of one series that an agent reports
AGENT_METRIC_CHARS: Final = 128  # of a name or label value in it
AGENT_METRIC_BUCKETS: Final = 32  # of one histogram in it
DRAIN_DEADLINE_MS: Final = 30_000
DRAINS_REMEMBERED: Final = 64  # what `wardgate agents drain` can still be told of
DRAINED_HELD_OUT_S: Final = 60  # a process that an operator drained may not register again for so long
RECONFIGURE_WITHIN_MS: Final = 5_000  # an instance that has not answered a reload's CONFIG holds up the next no longer
V1_HANDOVER_MS: Final = 30_000  # after a reload the old connections serve on until the new ones are up, at most so long
V1_RECONNECT_MS: Final = 100
V1_RECONNECT_MAX_MS: Final = 1_000
FLIGHT_RECORDER_MS: Final = 1  # between two calls of its that ended well; failures are all kept
FLIGHT_RECORDER_CALLS: Final = 64  # per lane: what `wardgate agents` shows of the last calls
MAX_SESSIONS_PER_AGENT: Final = 64  # instances of one name; one more is refused too_many
AGENT_PEERS_MAX: Final = 4_096  # connections to the agents' socket, with or without a HELLO
AGENT_CONTROL_MAX_BYTES: Final = 65_536  # HELLO, CONFIG_RESULT, HEALTH, DRAIN
AGENT_METRICS_MAX_BYTES: Final = 1_048_576  # one METRICS message
AGENT_PING_MAX_BYTES: Final = 256  # all frames of a PING: they are echoed
AGENT_MAX_FRAMES: Final = 4_098  # verb, JSON and at most 4,096 bodies
STRANGER_MAX_FRAMES: Final = 16  # of a message before WELCOME: a frame takes memory however short it is
AGENT_CHATTER_PER_S: Final = 100  # messages other than VERDICTS of one session; beyond: malformed
AGENT_LOOK_MS: Final = 100  # how often sessions, strangers and memory are looked at
REFUSED_LINGER_MS: Final = 1_000  # between REFUSE and the cut, so that it can be read
HELLO_RETRY_MS: Final = 1_000  # an agent repeats HELLO so often; also the back-off of shutting_down
AGENT_LAST_WORDS_MS: Final = 200  # how long agentd's connections outlive its last BYE, so that agents read it
AGENT_ENDED_REMEMBERED: Final = 2_048  # ended calls per session by which a late verdict is told from garbage
AGENT_ENDED_TOTAL: Final = 262_144  # of them over all sessions: about 110 bytes each, and up to twice as many
AGENT_ENDED_LEAST: Final = 64  # but so many per session
VERDICT_CACHE_ENTRIES: Final = 512  # per agent
MERGES_REMEMBERED: Final = 64  # per chain of agents: what the same verdicts came to
VERDICT_CACHE_BYTES: Final = 512  # a longer verdict is decoded each time
MEMORY_SLACK_BYTES: Final = 64 * 1024 * 1024  # growth nobody accounts for, before suspects are cut
MEMORY_QUIET_MS: Final = 50  # a peer that sends without finishing a message for so long is a suspect
MEMORY_LOOK_MS: Final = 20  # how often agentd reads its RSS: an endless message comes in at a gigabyte a second
MEMORY_SETTLE_MS: Final = 1_000  # growth that lasts so long without a suspect is ours
VERDICT_MAX_BYTES: Final = 2 * 1024 * 1024  # of one verdict's JSON; a longer body has a frame of its own
VERDICT_MAX_FIELDS: Final = 1_000  # header operations of one list, or fields of a block's headers
VERDICTS_MAX_ENTRIES: Final = 4_096  # beyond the calls in flight: those that ended lately, and some
VERDICTS_SALVAGE_BYTES: Final = 262_144  # of a message with bad entries: of a longer one none counts
VERDICTS_LARGE_BYTES: Final = 65_536  # of JSON: what it costs to read is measured
VERDICTS_MAX_MS: Final = 20  # of our CPU for one message of them; beyond it is a bad message
VERDICT_MAX_US: Final = 200  # more for each call that it answers: ten times what that costs
VERDICTS_CUT_MS: Final = 100  # and beyond this the last one of that process for a while
OWES_MAX: Final = 32  # PONGs, one a second, before an instance that let its trials time out gets another
FLOOD_MESSAGES: Final = 400  # of a refused session within a second; it has had the time to read, and is cut
V1_CONFIGURE_MS: Final = 5_000  # for the answer to configure: an agent may load models first
AGENT_LOG_LINES_PER_S: Final = 100  # about agents coming and going: each may come back after a tenth of a second
PENALTIES_MAX: Final = 1_024  # processes that are not listened to for BAD_PEER_RETRY_MS; then the old ones are swept
IDLERS_MAX: Final = 64  # connections of one process cut at once for saying nothing of use: it has to wait as well
ALARM_LATE_MS: Final = 50  # a deadline seen so late: agentd itself stood still, answers may lie unread
READ_FIRST_MS: Final = 20  # for reading them before anybody is blamed
READ_FIRST_TIMES: Final = 10  # again, while answers keep coming
READS_FIRST_MAX: Final = 100  # of one connection, 64 KiB and 100 messages each, where more comes while it is read

# --- bodies, WebSocket, guardrails -----------------------------------------------------------------
BODY_CHUNK_BYTES: Final = 1_048_576  # of a streamed body shown to agents at a time: what HELLO takes unless it says so
BODY_CHUNK_LEAST_BYTES: Final = 65_536  # and where many bodies are on their way
BODIES_EASY_BYTES: Final = 16 * 1024 * 1024  # of one worker on their way to agents; the nearer, the smaller the chunks
BODY_COPIED_BYTES: Final = 16_384  # below this, pieces of a write are put together: cheaper than a list of them
OUTBOX_PIECES_MAX: Final = 32  # writes to one connection that are held for the end of a turn; each is shorter than that
HOP_BODIES_BYTES: Final = 4 * 1024 * 1024  # of bodies in one message of the hop
HOP_BODY_MAX_BYTES: Final = 16 * 1024 * 1024 - 65_536  # of one body: the message also holds its event
HOP_OUTSTANDING_BYTES: Final = 128 * 1024 * 1024  # of bodies of one worker that agents have not decided on
WEBSOCKET_MESSAGE_BYTES: Final = 1_048_576
WEBSOCKET_MESSAGES_PER_S: Final = 0.0  # no limit
WEBSOCKET_SLICE_BYTES: Final = 4_096  # read at a time where agents see messages: inflated it is at most 4 MiB
WEBSOCKET_FRAMES_PER_TURN: Final = 256  # of one direction before the loop turns, about 4 ms
WEBSOCKET_HELD_BYTES: Final = 524_288  # of one sender, behind a message in question; beyond, it is not read
WEBSOCKET_CLOSE_S: Final = 10.0  # from the first close frame to the answer of the other side
AGENT_MESSAGE_ROOM_BYTES: Final = 1_048_576  # of a message to an agent that are not body
GUARDRAIL_INSPECT: Final = ("prompt_injection", "pii_detection")
GUARDRAIL_TEXT_BYTES: Final = 1_048_576
GUARDRAIL_TEXT_MAX_BYTES: Final = 2 * 1024 * 1024  # of that setting: escaped in JSON it is six times as long at worst
GUARDRAIL_WINDOW_CHARS: Final = 512  # longer than what is looked for: keys, addresses, a sentence
GUARDRAIL_CONTEXT_CHARS: Final = 64  # shown before what is held back: a number or word is not taken for another
GUARDRAIL_STEP_SHARE: Final = 4  # a streamed text is inspected again when a 4th of the window is new
GUARDRAIL_HELD_SHARE: Final = 8  # a stream's events held back may have so many times the longest text in bytes
GUARDRAIL_CHANNELS_SWEPT: Final = 256  # texts of one stream told apart; beyond, those that ended are forgotten
GUARDRAIL_CHANNELS_MAX: Final = 1_024  # and beyond this it is refused
GUARDRAIL_DEPTH_MAX: Final = 128  # of JSON: the deepest tool schemas have half of that, parsers give up at 500
GUARDRAIL_VALUES_MAX: Final = 50_000  # objects and strings of one body, numbers aside: each costs 1 us of the loop
GUARDRAIL_REPORTED_MAX: Final = 10_000  # findings of one stream's text that are remembered, not to be told again
GUARDRAIL_EVENT_BYTES: Final = 512  # of an event that carries one character
TOKENS_MAX: Final = 1 << 40  # a provider's number beyond this is none
GUARDRAIL_MARK: Final = "[REDACTED]"  # fits into a JSON string as it is
GUARDRAIL_NUMBER_DIGITS: Final = 9  # whole numbers from this length on are inspected as text
GUARDRAIL_STATUS: Final = 403  # of what a finding blocked
GUARDRAIL_FINDINGS_TOLD: Final = 20  # of one inspection, in its audit record; beyond, their number
GUARDRAIL_MODELS: Final = 64  # per route, whose tokens are counted by name; beyond: "other"
GUARDRAIL_MODEL_CHARS: Final = 100  # of a model's name in metrics and audit
FALLBACK_KEPT_BYTES: Final = 8_388_608  # of a request body, for the next upstream; a longer one has only the first
FALLBACK_STATUSES: Final = (429, 500, 502, 503, 504, 529)  # 529: Anthropic's "overloaded"

# --- upstreams -----------------------------------------------------------------------------------
CONNECT_TIMEOUT_S: Final = 2.0
RESPONSE_TIMEOUT_S: Final = 60.0
IDLE_TIMEOUT_S: Final = 300.0
UPSTREAM_CONNECTIONS: Final = 256  # per worker and upstream
UPSTREAM_RETRIES: Final = 1
UPSTREAM_KEEPALIVE_S: Final = 60.0  # an idle connection is closed after so long
MAX_RESPONSE_HEADER_BYTES: Final = 65_536
MAX_RESPONSE_HEADERS: Final = 200
MAX_INFORMATIONAL: Final = 8  # 1xx responses before the final one
UPSTREAM_WAITING: Final = 1_024  # requests of one worker that wait for a connection; beyond: 503 at once
UPSTREAM_TARGET_RETRY_S: Final = 5.0  # a target that could not be connected to is asked last for so long
UPSTREAM_TLS_CLOSE_S: Final = 1.0  # for the other end's goodbye; the connection counts as open until then
UPSTREAM_SWEEP_MAX_MS: Final = 250  # how late a timeout may be noticed; a tenth of the shortest where that is less
UPSTREAM_KNOWN_S: Final = 30.0  # readiness: a connect older than this says nothing; a worker tries after 10 s

PROBE_AFTER_S: Final = 10  # an upstream nobody connected to for so long is probed for readiness

# --- limits ----------------------------------------------------------------------------------------
RATE_LIMITS_PER_ROUTE: Final = 8  # each costs a request about 3 us
MAX_CONNECTIONS: Final = 0  # no limit: the file descriptors' limit is the operator's
MAX_CONCURRENT: Final = 0
LIMIT_LOCK_WAIT_MS: Final = 200  # for a worker that was preempted inside a bucket, on a host that is out of CPU
LIMIT_LOCK_SPINS: Final = 3  # tries of a microsecond each before the first nap: who runs is out again by then
LIMIT_LOCK_NAP_US: Final = 50  # between two tries
LIMIT_LOCK_DEAF_MS: Final = 1_000  # after a wait in vain: straight to the set's second lock for so long
IDENTITY_MAX_CHARS: Final = 256  # of a verdict's routing_metadata.identity; a longer one is counted by its hash
IPV6_CLIENT_BITS: Final = 64  # a site has at least so many addresses to change between
LIMIT_KEYS_CACHED: Final = 4_096  # per limit and worker: keys whose hash is remembered
LIMIT_KEY_CACHED_BYTES: Final = 128  # longer ones are hashed each time

# --- content codings: what agents see decoded ------------------------------------------------------
DECODE_RATIO_MAX: Final = 200  # Apache's limit; logs of one kind of line have 50, a gzip bomb 1,000, others 100,000
DECODE_RATIO_FREE_BYTES: Final = 1_048_576  # below this the ratio says nothing: zeros of a small file have 1,000 too
DECODE_CODINGS_MAX: Final = 2  # on top of each other; more are never sent for a good reason
DECODE_PIECE_BYTES: Final = 32_752  # made at a time: brotli's own first block, a byte more would be three of them
DECODE_FEED_BYTES: Final = 65_536  # given to a library at a time: it copies what it has not used yet
DECODE_BROTLI_WINDOW_LOG: Final = 22  # 4 MiB, encoders' default; it is decoded in one go: 2^24 took 40 ms for 200 bytes
DECODE_ZSTD_WINDOW_LOG: Final = 23  # 8 MiB, the most that RFC 9659 allows in a content coding
DECODE_MEMBERS_FREE: Final = 256  # gzip members and zstd frames that may be short
DECODE_MEMBER_BYTES: Final = 1_024  # beyond them one more for each of these bytes: beginning one costs 20 us (zstd)

# --- segments: capacities, never from configuration ----------------------------------------------
WORKER_SLOTS: Final = 128
AGENT_ROWS: Final = 256
ROUTE_ROWS: Final = 1_024
BUCKET_ROWS: Final = 65_536
UPSTREAM_ROWS: Final = 256
LIMIT_ROWS: Final = 4_096  # limits of all routes since the proxy started; 12 bits of a use's tag
USE_ROWS: Final = 32_768  # clients, per worker, whose connections or requests are counted at once
SEGMENT_NAME_BYTES: Final = 64  # of a name in a segment, UTF-8
SEGMENT_READ_TRIES: Final = 200  # about 40 us: a row still torn then has a writer that stopped inside it
WORKER_STALE_MS: Final = 5_000  # a worker beats every second; five missed = its loop does not turn
FILTERS_PER_ROUTE: Final = 64  # an event's mask is one u64
PLANS_MAX: Final = 65_535  # of a configuration; a plan's number is a u16
PLANS_MAX_BYTES: Final = 15 * 1024 * 1024  # of all plans as JSON: they are registered in one message of the hop

# --- admin, audit, logging -----------------------------------------------------------------------
ADMIN_LISTEN: Final = ("127.0.0.1:9900",)
ADMIN_MAX_CONNECTIONS: Final = 64
ADMIN_TIMEOUT_S: Final = 2.0  # how long the CLI waits for agentd
RELOAD_ANSWER_S: Final = 3.0  # POST /api/reload is answered by then, with a reload under way if need be
RELOAD_SWITCH_S: Final = 0.000_5  # the interpreter's switch interval while a thread reads a configuration
RELOAD_WAIT_S: Final = 60.0  # `wardgate reload` waits so long for each daemon; new workers may load for a while
POLL_S: Final = 0.05  # how often a command that waits for something asks again
PROGRESS_AFTER_S: Final = 2.0  # and from when on it says what it waits for
AUDIT_OPEN_S: Final = 2.0  # a reload waits so long until a new audit file is open
ADMIN_LATEST_SHARE: Final = 0.9  # of that: agentd begins no change later, its answer needs the rest
ADMIN_REQUEST_S: Final = 5.0  # a whole admin connection: one request, one answer
ADMIN_MAX_REQUEST_BYTES: Final = 16_384  # head and body together
ADMIN_SLICE_MS: Final = 1.0  # a long answer is made for so long before agentd's loop turns
METRICS_PIECE_LINES: Final = 128  # of /metrics made at a time, about 0.1 ms
SEGMENT_PIECE_CELLS: Final = 8_192  # of a segment added up at a time, about 0.5 ms
ADMIN_GROUP: Final = "wardgate-admin"  # may read the segments and use admin.sock
LAG_SHOWN_S: Final = 10.0  # health shows the worst stall of agentd's loop for at least so long
HEALTH_LOOK_SHARE: Final = 0.01  # of agentd's time goes at most into its own health, looked at once a second
MEMORY_LOW_SHARE: Final = 0.05  # of the host's or the control group's memory free: health is degraded
EXPLAIN_CLIENT_IP: Final = "192.0.2.1"  # who asks in `wardgate explain`: RFC 5737, nobody's, so nobody trusts it
EXPLAIN_ROUTES_SHOWN: Final = 20  # beyond them those whose host or path does not fit are only counted
AUDIT_SINKS: Final = ("file",)
AUDIT_PATH: Final = "/var/log/wardgate"
AUDIT_QUEUE: Final = 10_000  # records
AUDIT_QUEUE_BYTES: Final = 32 * 1024 * 1024  # records are counted, but memory is what runs out
AUDIT_RECORD_MAX_BYTES: Final = 65_536  # a longer record is refused and counted
AUDIT_FLUSH_MS: Final = 200
AUDIT_STOP_S: Final = 2.0  # agentd waits so long for the last records to be written
AUDIT_RETRY_MS: Final = 1_000  # a full disk or unwritable path is tried again so often
AUDIT_STUCK_S: Final = 5.0  # a record unwritten for so long makes health degraded
AUDIT_RECENT_S: Final = 60.0  # so long after the last dropped record health stays degraded
AUDIT_WORKER_QUEUE: Final = 1_000  # a worker's records while agentd is away
LOG_LEVEL: Final = "info"
LOG_FORMAT: Final = "json"
LOG_LINE_MAX_BYTES: Final = 4_096  # PIPE_BUF: a pipe takes it whole, and poll(2) says whether it would
RUNTIME_DIR: Final = "/run/wardgate"
CONFIG_PATH: Final = "/etc/wardgate/wardgate.toml"
AGENT_GROUP: Final = "wardgate-agent"  # may reach the agents' socket
SUN_PATH_MAX: Final = 107  # bytes of a unix socket's path, without the closing NUL

# --- configuration --------------------------------------------------------------------------------
CONFIG_MAX_BYTES: Final = 4 * 1024 * 1024  # of one file; a thousand routes are half a megabyte
CONFIG_DEPTH: Final = 32  # levels of nesting; the schema has six, an agent's own `config` the rest
SECRET_MAX_BYTES: Final = 4_096  # of a token or secret file
TARGETS_PER_UPSTREAM: Final = 128  # the order of a round is computed ahead
TARGET_WEIGHT: Final = 1
NAME_MAX_CHARS: Final = 63  # of agents, routes, upstreams: a 64-byte field of the segments with its NUL

# --- processes -----------------------------------------------------------------------------------
ARBITER_TICK_MS: Final = 200  # how soon the arbiter sees that a worker became ready or drains by itself
WORKER_STOP_S: Final = 1.0  # part of the graceful timeout kept for closing what the drain left open
DESCRIPTORS_OWN: Final = 64  # files of a worker besides connections
DESCRIPTORS_KEPT_SHARE: Final = 4  # of all of them at most the 4th part is kept for upstream connections
DESCRIPTORS_CLIENTS: Final = 512  # a worker that may have fewer clients than that is warned about at the start
ACCEPT_LOG_EVERY_S: Final = 10.0  # a worker that runs out of descriptors again and again says so that often
QUICK_STOP_S: Final = 2.0  # workers told to end at once are given so long, then a SIGABRT
FORCED_STOP_S: Final = 0.5  # after that SIGABRT, which leaves a traceback, before SIGKILL
STOOD_STILL_S: Final = 2.0  # an arbiter that did not turn for so long was stopped: nobody else's silence counts
REACH_AGENTD_S: Final = 1.0  # a new worker waits so long for its first connection to a live agentd, then serves
REACH_LOOK_MS: Final = 5  # and looks so often
RESPAWN_MS: Final = 100  # first wait after a process that died young
RESPAWN_MAX_MS: Final = 1_000  # semantics 7: capped at 1 s inside the host
SHORT_LIFE_MS: Final = 1_000  # a process that was gone before this died young
RUN_STARTUP_S: Final = 15.0  # `wardgate run` waits so long until its children are ready
RUN_TICK_MS: Final = 50  # while it starts, `wardgate run` looks so often which agents are there
