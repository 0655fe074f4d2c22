"""The shape of the configuration's routes: which requests, who decides, limits, bodies, WebSocket, guardrails.

As shared/config/schema.py, of which this is a part.

Kind: table.
"""

from typing import Annotated, Literal

from shared import defaults as d
from shared.config.keys import GIB, FailureMode, HostPattern, LimitKey, Method, Name, PathPrefix, Table, key


class Match(Table, frozen=True):
    """Which requests a route takes. The most specific route wins: an exact host before a wildcard before any host,
    then the longest path prefix, then the one with `methods`. Two equally specific routes are an error."""

    hosts: Annotated[
        tuple[HostPattern, ...],
        key('Host names without port, in lower case; `"*.example.com"` fits every name below it. Absent = any host.'),
    ] = ()
    path_prefix: Annotated[
        PathPrefix,
        key("How the path, percent-decoded once, begins. It must start with `/` and is itself written decoded."),
    ] = "/"
    methods: Annotated[
        tuple[Method, ...],
        key(
            "The methods the route takes. Another method for this host and path is answered 405, never passed to a "
            "wider route. Absent = every method."
        ),
    ] = ()


class Filter(Table, frozen=True):
    """One agent in the chain of a route: an entry of `filters`."""

    agent: Annotated[Name, key("The agent's name.")]
    failure_mode: Annotated[
        FailureMode | None, key("What a failed call means on this route. Absent = the agent's `failure_mode`.")
    ] = None
    mode: Annotated[
        Literal["enforce", "observe"],
        key("`enforce`: its verdict acts. `observe`: it sees everything, and its verdict is only written down."),
    ] = "enforce"


class RateLimit(Table, frozen=True):
    """A token bucket per key: an entry of `rate_limits`. A request takes one token; without one it is answered 429."""

    name: Annotated[Name, key("How logs, metrics and `wardgate limits` name it: `ROUTE/NAME`.")]
    key: Annotated[
        LimitKey,
        key(
            "What has a bucket of its own: `client_ip` (IPv6 by its /64), `header:NAME`, `cookie:NAME`, `global` (one "
            "for the route), or `identity`, which an agent's verdict gives in `routing_metadata`. Requests without the "
            "field share one bucket."
        ),
    ]
    capacity: Annotated[int, key("The most requests in a burst.", ge=1, le=10**9)]
    refill_rate: Annotated[float, key("So many requests a second, in the long run.", ge=0.000_001, le=1_000_000)]


class WebSocket(Table, frozen=True):
    """What of WebSocket a route lets through: an entry `websocket`."""

    enabled: Annotated[bool, key("Whether upgrades are passed on. `false`: they are answered 403.")] = True
    max_message_bytes: Annotated[
        int,
        key(
            "The longest message, after decompression, where agents see frames; a longer one ends the connection with "
            "1009.",
            ge=1,
            le=GIB,
        ),
    ] = d.WEBSOCKET_MESSAGE_BYTES
    max_messages_per_s: Annotated[
        float,
        key(
            "How many messages and pings a client may send, in the long run, where agents see frames; a faster one is "
            "cut with 1008. 0 = no limit.",
            ge=0,
            le=1_000_000,
        ),
    ] = d.WEBSOCKET_MESSAGES_PER_S


GuardrailAction = Literal["block", "redact", "log", "ignore"]
Severity = Literal["low", "medium", "high", "critical"]


class Guardrail(Table, frozen=True):
    """What is done about findings in a model's prompts or completions: an entry `prompt` or `completion`."""

    agents: Annotated[tuple[Name, ...], key("Who inspects the text.", min_length=1)]
    action: Annotated[
        GuardrailAction,
        key(
            "What a finding leads to: `block` refuses, `redact` replaces what was found, `log` writes it to the audit, "
            "`ignore` does nothing."
        ),
    ] = "block"
    inspect: Annotated[
        tuple[Literal["prompt_injection", "pii_detection"], ...],
        key("What the text is inspected for.", min_length=1),
    ] = d.GUARDRAIL_INSPECT
    min_severity: Annotated[Severity, key("Findings below this severity are only logged.")] = "low"
    categories: Annotated[
        dict[str, GuardrailAction],
        key('Another action for findings of a category, e.g. `{ email = "log" }`.'),
    ] = {}  # noqa: RUF012 (a Struct copies it)


class Guardrails(Table, frozen=True):
    """Inspection of what goes to a language model and what comes back: an entry `guardrails`."""

    prompt: Annotated[Guardrail | None, key("What the client sends.")] = None
    completion: Annotated[Guardrail | None, key("What the model answers.")] = None
    max_text_bytes: Annotated[
        int,
        key(
            "The longest prompt or completion that is inspected; a longer one is refused. A completion that is an "
            "event stream may be longer: this is the longest event, and the longest text held back of it.",
            ge=1_024,
            le=d.GUARDRAIL_TEXT_MAX_BYTES,
        ),
    ] = d.GUARDRAIL_TEXT_BYTES
    window_chars: Annotated[
        int,
        key(
            "So many characters of a streamed completion are held back: a finding across pieces is found whole.",
            ge=16,
            le=65_536,
        ),
    ] = d.GUARDRAIL_WINDOW_CHARS


class Route(Table, frozen=True):
    """Which requests go where, and who decides about them."""

    name: Annotated[Name, key("How logs, metrics and agents name it.")]
    upstream: Annotated[Name, key("The upstream that its requests go to.")]
    match: Annotated[Match, key("Which requests it takes. Absent = all of them.")] = Match()
    order: Annotated[
        Literal["parallel", "sequential"],
        key(
            "`parallel`: all agents are asked at once. `sequential`: one after the other, in the order of `filters`, "
            "until one does not allow."
        ),
    ] = "parallel"
    agents_may_set_host: Annotated[bool, key("Whether agents may replace the Host field.")] = False
    request_body: Annotated[
        Literal["buffer", "stream"],
        key(
            "How agents see request bodies, where some agent asks for them. `buffer`: whole; nothing goes upstream "
            "before they have decided. `stream`: piece by piece, each passed on when it was decided."
        ),
    ] = "buffer"
    response_body: Annotated[
        Literal["buffer", "stream"],
        key(
            "The same for responses. `stream` refuses properly as long as nothing has gone to the client; after "
            "that it breaks the response off."
        ),
    ] = "stream"
    decode_bodies: Annotated[
        bool,
        key(
            "Whether agents see bodies without their content coding (gzip, deflate, br, zstd). What no agent changed "
            "is passed on as it came."
        ),
    ] = False
    websocket: Annotated[WebSocket, key("What of WebSocket it lets through.")] = WebSocket()
    guardrails: Annotated[
        Guardrails | None,
        key("Inspection of prompts and completions of language models. Absent = none."),
    ] = None
    fallback_upstreams: Annotated[
        tuple[Name, ...],
        key(
            "Upstreams to try, in order, when `upstream` fails: no connection, no response, or a status of 429, 500, "
            "502, 503, 504 or 529. Request bodies are kept whole for it; one over 8 MiB is not sent again."
        ),
    ] = ()
    max_concurrent: Annotated[
        int,
        key(
            "The most requests under way at once, over all workers; one more is answered 503. 0 = no limit.",
            ge=0,
            le=10**9,
        ),
    ] = d.MAX_CONCURRENT
    max_concurrent_per_client: Annotated[
        int,
        key(
            "The same per client address (IPv6 by its /64); one more is answered 429. 0 = no limit.",
            ge=0,
            le=10**9,
        ),
    ] = d.MAX_CONCURRENT
    rate_limits: Annotated[tuple[RateLimit, ...], key("Token buckets, asked in this order. Absent = none.")] = ()
    filters: Annotated[
        tuple[Filter, ...], key("The agents that decide, in order. Absent = none: every request passes.")
    ] = ()
