"""Both directions of one client connection: what pauses reading, what was written, who is too slow.

The layer between the parser (`guard`) and the requests (`protocol`): it knows bytes and reasons, no request.
Deadlines are attributes that the worker's sweep compares: no timer per request.

Kind: IO.
"""

from typing import TYPE_CHECKING, Any, Final

from proxy.guard import GuardedParser

if TYPE_CHECKING:
    from proxy.app import WorkerContext

# Why reading is paused; bits of one mask.
FOR_DECISION: Final = 1  # body is here that may not go upstream yet
FOR_UPSTREAM: Final = 2  # the upstream's buffer is full
FOR_QUEUE: Final = 4  # requests are queued behind an open exchange
FOR_CLIENT: Final = 8  # the client does not read what it was answered
FOR_AGENTS: Final = 16  # too much of the body waits for its agents

# What `waiting_until` waits for.
NOTHING: Final = 0
FIRST_BYTE: Final = 1
REST_OF_HEAD: Final = 2
BODY_BYTE: Final = 3
NEXT_REQUEST: Final = 4
LINGERING: Final = 5
CLOSE_ANSWER: Final = 6  # of a WebSocket, to a close frame
BETWEEN_REQUESTS: Final = (NEXT_REQUEST, FIRST_BYTE)


class ClientStreams(GuardedParser):
    """Reading and writing of one client connection."""

    def __init__(self, context: "WorkerContext", *args: Any) -> None:
        super().__init__(context.limits, *args)
        self.context = context
        self.waiting_for = FIRST_BYTE
        self.waiting_until = context.now + context.header_timeout_ns
        self.is_full = False  # the client reads slower than we write
        self.stalled_until = 0  # by when some of what is unsent must have gone
        self._written = 0  # bytes of all answers so far
        self._taken = 0  # of them by the client's side, when last looked at
        self._paused = 0
        self._wants_hold = False

    # --- reading and writing ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write to the client, now or at the end of this turn of the loop (`outbox` decides)."""
        self._written += len(data)
        self.context.bytes_out += len(data)
        self.context.outbox.write(self.transport, data)

    def write_pieces(self, pieces: list[bytes]) -> None:
        """The same for pieces of which some are large: they are not put together."""
        size = sum(map(len, pieces))
        self._written += size
        self.context.bytes_out += size
        self.context.outbox.write_pieces(self.transport, pieces)

    def hold_body(self) -> None:
        """From the driver: body is here that may not go. Decided at the end of this read (it may be whole)."""
        self._wants_hold = True

    def release_body(self) -> None:
        """From the driver: body may go."""
        self._wants_hold = False
        self._release(FOR_DECISION)

    def hold_for_upstream(self) -> None:
        """From the driver: the upstream's buffer is full."""
        self._pause(FOR_UPSTREAM)

    def release_for_upstream(self) -> None:
        """From the driver: it has drained."""
        self._release(FOR_UPSTREAM)

    def hold_for_agents(self) -> None:
        """From the driver: too much of the body waits for its agents."""
        self._pause(FOR_AGENTS)

    def release_for_agents(self) -> None:
        """From the driver: they have caught up."""
        self._release(FOR_AGENTS)

    def _pause(self, why: int) -> None:
        if not self._paused:
            self.transport.pause_reading()
            if self.waiting_for == BODY_BYTE:
                self.waiting_until = 0  # it is we who do not read
        self._paused |= why

    def _release(self, why: int) -> None:
        if self._paused & why:
            self._paused &= ~why
            if not self._paused and not self.transport.is_closing():
                self.transport.resume_reading()
                if self.waiting_for == BODY_BYTE:
                    self.waiting_until = self.context.now + self.context.body_timeout_ns

    def write_is_full(self) -> None:
        """From now on the client must take some of it within `body_timeout_s`, again and again."""
        self.is_full = True
        self._taken = self._written - self.transport.get_write_buffer_size()
        self.stalled_until = self.context.now + self.context.body_timeout_ns

    def stalled(self) -> None:
        """From the sweep: has anything gone out since the last look? A client that takes nothing is cut.

        What has gone is counted, not what is left: that may have grown meanwhile.
        """
        taken = self._written - self.transport.get_write_buffer_size()
        if taken > self._taken:
            self._taken = taken
            self.stalled_until = self.context.now + self.context.body_timeout_ns
        else:
            self.abort()

    def abort(self) -> None:
        """Break the connection now."""
        raise NotImplementedError
