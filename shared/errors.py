"""The project's error classes, each with a stable `code`.

Raised where the cause is known, mapped once at a process boundary. A failing agent is never one of
these: that is an `Outcome` (shared/decision.py), a value.

Kind: table.
"""


class WardgateError(Exception):
    """Base of all; `code` is stable and safe to match on, the text is for people."""

    code = "error"


class ConfigError(WardgateError):
    """The configuration was refused. `problems` holds every finding, not only the first."""

    code = "config"

    def __init__(self, problems: "list[str] | str") -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))


class AlreadyRunning(WardgateError):
    """Another daemon holds the lock of this runtime directory."""

    code = "already_running"


class WireError(WardgateError):
    """Bytes from another process that do not follow the format; the message is dropped."""

    code = "wire"


class SegmentError(WardgateError):
    """A segment file is absent, foreign, of another layout or torn."""

    code = "segment"


class Unreachable(WardgateError):
    """A daemon did not answer within its time."""

    code = "unreachable"


class IllegalTransition(WardgateError):
    """A state machine was fed an event that its state has no row for; names both."""

    code = "illegal_transition"


class RequestRefused(WardgateError):
    """The client's request breaks a rule of HTTP or of ours. `status` is what the client gets.

    `close` tells whether the connection can be used further (its framing is still known).
    """

    code = "request_refused"
    __slots__ = ("allow", "close", "reason", "status")

    def __init__(self, status: int, reason: str, *, close: bool = True, allow: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.close = close
        self.allow = allow


class UpstreamFailed(WardgateError):
    """An upstream could not be used. `status` is 502 or 504, `reason` a stable word for logs and bodies."""

    code = "upstream_failed"
    __slots__ = ("reason", "status")

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


class CodingUnknown(WardgateError):
    """A Content-Encoding names a coding that is not known, or too many of them: the body cannot be looked into."""

    code = "coding_unknown"


class CodingBroken(WardgateError):
    """A body is not what its Content-Encoding says: garbage, cut short, or with bytes behind its end."""

    code = "coding_broken"


class CodingTooLarge(WardgateError):
    """A coded body decodes to more than it may: over the limit in bytes, or a bomb by its ratio or its members."""

    code = "coding_too_large"


class Uninspectable(WardgateError):
    """A body's text cannot be found for certain, or there is too much of it: it is refused, never passed unseen."""

    code = "uninspectable"

    def __init__(self, text: str, *, is_too_large: bool = False) -> None:
        super().__init__(text)
        self.is_too_large = is_too_large


class AdminRefused(WardgateError):
    """The admin API refused a command. `status` is its HTTP status."""

    code = "admin_refused"

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
