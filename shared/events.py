"""What happens in a request's life and may be shown to agents: names, numbers, what is supported.

The number travels in envelopes and is the bit of the capability masks; the wire name is what agents
and the configuration use.

Kind: table.
"""

from enum import IntEnum


class EventKind(IntEnum):
    """One row per event of the agent protocol. Never renumber: the numbers are on the wire."""

    CONFIGURE = 0
    REQUEST_HEADERS = 1
    REQUEST_BODY_CHUNK = 2
    RESPONSE_HEADERS = 3
    RESPONSE_BODY_CHUNK = 4
    REQUEST_COMPLETE = 5
    WEBSOCKET_FRAME = 6
    GUARDRAIL_INSPECT = 7

    @property
    def wire_name(self) -> str:
        return self.name.lower()

    @property
    def bit(self) -> int:
        return 1 << self.value


BY_WIRE_NAME = {kind.wire_name: kind for kind in EventKind}
# Events that agents may be asked about, in the order in which a request meets them.
SUPPORTED = (
    EventKind.REQUEST_HEADERS,
    EventKind.REQUEST_BODY_CHUNK,
    EventKind.RESPONSE_HEADERS,
    EventKind.RESPONSE_BODY_CHUNK,
    EventKind.WEBSOCKET_FRAME,
    EventKind.GUARDRAIL_INSPECT,
    EventKind.REQUEST_COMPLETE,
)
# Events with bytes beside the JSON, of which one exchange may have many.
CHUNKED = frozenset((EventKind.REQUEST_BODY_CHUNK, EventKind.RESPONSE_BODY_CHUNK, EventKind.WEBSOCKET_FRAME))
ALL_EVENTS_MASK = sum(kind.bit for kind in EventKind)


def mask_of(wire_names: "list[str] | tuple[str, ...]") -> int:
    """Bit mask of known event names; unknown names are ignored (a newer agent may offer more)."""
    mask = 0
    for name in wire_names:
        kind = BY_WIRE_NAME.get(name)
        if kind is not None:
            mask |= kind.bit
    return mask


def names_of(mask: int) -> list[str]:
    """The wire names in a mask, in table order."""
    return [kind.wire_name for kind in EventKind if mask & kind.bit]
