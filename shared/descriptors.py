"""How many file descriptors this process may have, and how many its configuration may want.

The soft limit that most services start with (1,024) is kept low for programs that use select(2). None of
ours does, so each daemon raises its own to the hard limit before it opens anything.

When to stop accepting is decided in proxy/gate.py.

Kind: IO.
"""

import resource

from shared.config.schema import Config
from shared.defaults import DESCRIPTORS_CLIENTS, DESCRIPTORS_OWN


def raise_limit() -> int:
    """Soft limit = hard limit; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
        except (ValueError, OSError):  # an unlimited hard limit beyond the kernel's own
            pass
    return soft


def wanted_upstream(config: Config) -> int:
    """What one worker needs besides its clients: its own files, and connections to upstreams."""
    return DESCRIPTORS_OWN + sum(upstream.max_connections for upstream in config.upstreams)


def warnings(config: Config, limit: int) -> list[str]:
    """What to say at the start when a worker may run out of them before its own limits act."""
    upstream = wanted_upstream(config)
    clients = config.server.max_connections or DESCRIPTORS_CLIENTS
    if limit >= upstream + clients:
        return []
    whose = "for server.max_connections" if config.server.max_connections else "for clients, at least"
    return [
        f"a worker may open {limit} files and would need {upstream + clients}: {clients} {whose}, "
        f"{upstream} for upstreams and itself; raise LimitNOFILE (ulimit -n) or lower those"
    ]
