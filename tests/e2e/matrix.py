"""The failure matrix as a table: who fails, how, and what each route may answer meanwhile.

One row per pair of component and fault. How a row is played is matrix_play.py's business, what its answers
are called traffic.py's. docs/reliability.md is written from here, with the numbers of a run beside it.

Kind: table.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

VERDICT, PASSED = "verdict", "passed"
GONE = ("closed", "cut")  # of connections that a killed worker held, and of no others

COMPONENTS: Final = ("agent", "v1 agent", "agentd", "one worker", "all workers", "upstream")
NEVER, LATE, KILL, STOP, RESTART, STUCK = (
    "never started",
    "started late",
    "SIGKILL",
    "SIGSTOP, SIGCONT",
    "restart",
    "SIGSTOP for good",
)
FAULTS: Final = (NEVER, LATE, KILL, STOP, RESTART)  # in this order: a stage begins without the component


class Row(NamedTuple):
    """`closed`, `open`, `free`: what the routes may answer from the fault until all is well again."""

    component: str
    fault: str
    closed: tuple[str, ...]
    open: tuple[str, ...]
    free: tuple[str, ...]
    done: str = ""  # what is done, where the pair alone does not say it

    @property
    def key(self) -> tuple[str, str]:
        return self.component, self.fault

    @property
    def allowed(self) -> Mapping[str, tuple[str, ...]]:
        return {"closed": self.closed, "open": self.open, "free": self.free}


_WELL: Final = (VERDICT,)
_UNASKED: Final = (PASSED,)
_EITHER: Final = (VERDICT, PASSED)
_DOWN: Final = ("502", "504", VERDICT)  # an agent's own 403 needs no upstream

ROWS: Final = (
    # An agent whose breaker is not open has no instance: 503 at once. Nobody but its own routes notices.
    Row("agent", NEVER, ("503",), _UNASKED, _UNASKED),
    Row("agent", LATE, ("503", VERDICT), _EITHER, _UNASKED),
    Row("agent", KILL, ("503", VERDICT), _EITHER, _UNASKED),
    Row("agent", STOP, ("504", "503", VERDICT), _EITHER, _UNASKED),
    Row("agent", RESTART, ("503", VERDICT), _EITHER, _UNASKED, "SIGTERM, then started again"),
    Row("v1 agent", NEVER, ("503",), _UNASKED, _UNASKED),
    Row("v1 agent", LATE, ("503", VERDICT), _EITHER, _UNASKED),
    Row("v1 agent", KILL, ("503", VERDICT), _EITHER, _UNASKED),
    Row("v1 agent", STOP, ("504", "503", VERDICT), _EITHER, _UNASKED),
    Row("v1 agent", RESTART, ("503", VERDICT), _EITHER, _UNASKED, "SIGTERM, then started again"),
    Row("agentd", NEVER, ("503",), _UNASKED, _UNASKED),
    Row("agentd", LATE, ("503", VERDICT), _EITHER, _UNASKED),
    Row("agentd", KILL, ("503", VERDICT), _EITHER, _UNASKED),
    Row("agentd", STOP, ("504", "503", VERDICT), _EITHER, _UNASKED),
    Row("agentd", RESTART, ("503", VERDICT), _EITHER, _UNASKED, "SIGTERM, then started again"),
    # The arbiter forks workers as long as it lives, so "not started" is a successor that does not come up.
    Row(
        "one worker",
        NEVER,
        (VERDICT, *GONE),
        (VERDICT, *GONE),
        (PASSED, *GONE),
        "killed, and its successor is stopped at its fork, until the arbiter gives it up",
    ),
    Row(
        "one worker",
        LATE,
        (VERDICT, *GONE),
        (VERDICT, *GONE),
        (PASSED, *GONE),
        "killed, and its successor is stopped at its fork, for half a second",
    ),
    Row("one worker", KILL, (VERDICT, *GONE), (VERDICT, *GONE), (PASSED, *GONE)),
    Row("one worker", STOP, (VERDICT, "504"), _EITHER, _UNASKED),
    Row("one worker", RESTART, _WELL, _WELL, _UNASKED, "SIGTERM, it drains, the arbiter forks another"),
    Row(
        "one worker",
        STUCK,
        (VERDICT, *GONE),
        (VERDICT, *GONE),
        (PASSED, *GONE),
        "until the arbiter kills it after `worker_timeout_s`",
    ),
    Row("all workers", NEVER, ("refused",), ("refused",), ("refused",), "the proxy is not started"),
    Row(
        "all workers",
        LATE,
        ("refused", "503", VERDICT),
        ("refused", *_EITHER),
        ("refused", PASSED),
        "the proxy is started under traffic",
    ),
    Row("all workers", KILL, ("503", VERDICT, *GONE), (*_EITHER, *GONE), (PASSED, *GONE)),
    Row("all workers", STOP, (VERDICT, "504"), _EITHER, _UNASKED),
    Row("all workers", RESTART, _WELL, _WELL, _UNASKED, "SIGHUP to the arbiter, new workers start, the old ones drain"),
    Row("upstream", NEVER, _DOWN, _DOWN, ("502", "504")),
    Row("upstream", LATE, _DOWN, _DOWN, ("502", "504", PASSED)),
    Row("upstream", KILL, _DOWN, _DOWN, ("502", "504", PASSED)),
    Row("upstream", STOP, _DOWN, _DOWN, ("502", "504", PASSED)),
    Row("upstream", RESTART, _DOWN, _DOWN, ("502", "504", PASSED), "SIGTERM, then started again"),
)
BY_KEY: Final = {row.key: row for row in ROWS}


def of(component: str) -> tuple[Row, ...]:
    """The component's rows, in the order in which they are played."""
    return tuple(row for row in ROWS if row.component == component)
