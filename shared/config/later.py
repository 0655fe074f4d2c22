"""Keys and values of features that do not exist yet, each with the feature's name.

They are known, so that `wardgate check` can say "not supported yet" and not "unknown"; and they are
refused, because what is accepted must act (semantics 10). When a feature arrives, its rows move to
shared/config/schema.py. Lists are written `agents[]`.

Kind: table.
"""

KEYS: dict[str, str] = {
    "server.tls": "TLS on the listening side",
    "upstreams[].health_check": "active health checks",
    "routes[].agents_may_choose": "choice of the upstream by agents",
    "audit.retention_days": "retention of audit records",
    "tracing": "tracing",
}

VALUES: dict[str, dict[str, str]] = {
    "upstreams[].balance": {
        "weighted": "other balancing than round_robin",
        "least_requests": "other balancing than round_robin",
        "p2c": "other balancing than round_robin",
        "consistent_hash": "other balancing than round_robin",
    },
    "agents[].protocol": {
        "zentinel-v1": "the stream dialects",
        "zentinel-v2": "the stream dialects",
    },
    "audit.sinks[]": {
        "sqlite": "the SQLite sink",
        "postgres": "the PostgreSQL sink",
    },
    "audit.when_full": {
        "block": "blocking on a full audit queue",
    },
}
