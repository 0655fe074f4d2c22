"""The verbs, limits and proof of zmq-v2, as bytes.

Every message is multipart, its first frame one of these verbs. Nothing here knows a socket or a hook.
docs/agent-protocol.md of Wardgate is the normative text, tests/vectors/ there pins the bytes.

    HELLO | {"protocol":2,"agent":...}          EVENTS   | [[call, budget_ms, event, n?], ...] | body ...
    CHALLENGE | 32 bytes    PROOF | 32 bytes    VERDICTS | [[call, verdict, n?], ...] | body ...

Kind: pure.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final

import orjson

from wardgate_agent.zmtp import Frame

HELLO: Final = b"HELLO"
CHALLENGE: Final = b"CHALLENGE"
PROOF: Final = b"PROOF"
WELCOME: Final = b"WELCOME"
REFUSE: Final = b"REFUSE"
CONFIG: Final = b"CONFIG"
CONFIG_RESULT: Final = b"CONFIG_RESULT"
EVENTS: Final = b"EVENTS"
VERDICTS: Final = b"VERDICTS"
CANCEL: Final = b"CANCEL"
PING: Final = b"PING"
PONG: Final = b"PONG"
HEALTH: Final = b"HEALTH"
METRICS: Final = b"METRICS"
PAUSE: Final = b"PAUSE"
RESUME: Final = b"RESUME"
DRAIN: Final = b"DRAIN"
BYE: Final = b"BYE"

PROTOCOL: Final = 2
DEFAULT_ENDPOINT: Final = "ipc:///run/wardgate/agents/v2"
NONCE_BYTES: Final = 32
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # over all frames
MAX_BODIES: Final = 4_096  # body frames of one message
MAX_METRICS_BYTES: Final = 1024 * 1024
MAX_CALL_CHARS: Final = 32
MAX_NAME_CHARS: Final = 100
MAX_SERIES: Final = 200  # agentd drops what is beyond
MAX_UNSENT_BYTES: Final = 32 * 1024 * 1024  # to a peer that does not read; what comes on top is not sent
FLUSH_AFTER_S: Final = 0.001  # verdicts of a long batch of slow hooks do not wait for its end
FLUSH_BYTES: Final = 1024 * 1024  # of body frames: an answer of many replaced chunks is cut into several
SUN_PATH_MAX: Final = 107  # bytes of a unix socket's path

HELLO_EVERY_S: Final = 1.0  # until it is answered
HEARTBEAT_MS: Final = 1_000  # until WELCOME says otherwise
SILENT_BEATS: Final = 3  # so many heartbeats without a message: the peer is dead
CONNECT_TCP_S: Final = 10.0
HANDSHAKE_S: Final = 2.0
BACKOFF_S: Final = 0.1
BACKOFF_MAX_S: Final = 1.0
BACKOFF_MAX_TCP_S: Final = 5.0
BYE_BACKOFF_S: Final = 1.0  # agentd ended the session by itself: it is about to go, or we are not wanted now
METRICS_EVERY_S: Final = 5.0
MAX_REASON_CHARS: Final = 500


def proof(secret: bytes, nonce: bytes, agent: str, instance: str) -> bytes:
    """The answer to CHALLENGE. `secret` is the file's bytes without a trailing newline."""
    text = b"wardgate-v2\0" + nonce + agent.encode() + b"\0" + instance.encode()
    return hmac.new(secret, text, hashlib.sha256).digest()


def read_secret(content: bytes) -> bytes:
    """A secret file's content without one trailing newline."""
    if content.endswith(b"\n"):
        content = content[:-1]
        if content.endswith(b"\r"):
            content = content[:-1]
    return content


def json_object(frames: Sequence[Frame]) -> dict[str, Any] | None:
    """The JSON object in a message's second frame; None when there is none or it is unreadable."""
    if len(frames) < 2:
        return None
    try:
        value = orjson.loads(frames[1])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def json_array(frames: Sequence[Frame]) -> list[Any] | None:
    """The JSON array in a message's second frame; None when there is none or it is unreadable."""
    if len(frames) < 2:
        return None
    try:
        value = orjson.loads(frames[1])
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, list) else None


def as_milliseconds(value: object, default: int | None, low: int = 0, high: int = 86_400_000) -> int | None:
    """A duration from the peer: a finite number, clipped to what makes sense; `default` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return default
    return int(min(max(value, low), high))
