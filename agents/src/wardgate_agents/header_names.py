"""Header fields that an agent may use in its verdicts: names and values out of a configuration, checked.

Not by msgspec's `Meta(pattern=...)`: with one of those in a union, a process may end with a segmentation fault
(docs/dependencies.md, "msgspec").

Kind: pure.
"""

import re
from collections.abc import Iterable
from typing import Final

from wardgate_agents.settings import ConfigRejected

MAX_NAME_CHARS: Final = 200
_NAME: Final = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2; no underscore: the proxy refuses those
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")

# What the proxy does not let an agent touch (docs/agent-protocol.md, "Not applied").
PROTECTED: Final = frozenset(
    (
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-correlation-id",
    )
)


def check_name(place: str, name: str) -> str:
    """The name, or ConfigRejected with the key in front."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
        raise ConfigRejected(f"{place}: {name[:60]!r} is no header name: letters, digits and - (no underscore)")
    if name.lower() in PROTECTED:
        raise ConfigRejected(f"{place}: {name} is the proxy's own, and no agent may change it; leave it out")
    return name


def check_names(place: str, names: Iterable[str]) -> None:
    """Each of them."""
    for name in names:
        check_name(place, name)


def check_value(place: str, value: str) -> str:
    """The value, or ConfigRejected with the key in front. Beyond ASCII nobody knows how a client reads it."""
    if not _VALUE.fullmatch(value):
        raise ConfigRejected(f"{place}: {value[:60]!r} is no header value: visible ASCII, blanks and tabs")
    return value
