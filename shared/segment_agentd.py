"""agentd.seg: what agentd tells workers and the CLI, by one writer, read without asking it.

    AgentdWriter  in agentd: heartbeat, one row per agent, its own health
    AgentdView    in workers, the arbiter and the CLI

No file, a file of another layout, a heartbeat that is too old or that says goodbye: agentd is dead.
What follows from that is decided by the reader.

Kind: IO.
"""

from shared.clock import MS, now_ns
from shared.defaults import AGENT_ROWS, AGENTD_STALE_MS
from shared.errors import SegmentError
from shared.segment_file import SegmentView, SegmentWriter, read_row, write_row
from shared.wire.segment import (
    AGENT_VALUES,
    AGENTD_CELLS,
    AGENTS,
    H_BEAT_NS,
    H_ROWS,
    HEALTH,
    HEALTH_NUMBERS,
    MAGIC_AGENTD,
    MESSAGE_CELLS,
    NAME_CELLS,
    AgentdHealth,
    AgentRow,
    BreakerState,
    HealthStatus,
    pack_message,
    pack_name,
    unpack_message,
    unpack_name,
)

_STALE_NS = AGENTD_STALE_MS * MS
_EARLY_NS = -_STALE_NS


class AgentdWriter(SegmentWriter):
    """agentd's side. Row numbers are the caller's choice."""

    MAGIC = MAGIC_AGENTD
    CELLS = AGENTD_CELLS
    __slots__ = ("_rows",)

    def __init__(self, path: str, config_digest: str, now: int) -> None:
        self._rows: dict[int, AgentRow] = {}
        super().__init__(path, config_digest, now)

    @classmethod
    def create(cls, path: str, config_digest: str) -> "AgentdWriter":
        """Make the file. Raises SegmentError."""
        return cls(path, config_digest, now_ns())

    def _fill(self) -> None:
        self.reserve(0, self.CELLS)

    def put_agent(self, row: int, agent: AgentRow) -> bool:
        """Store one row; the generation goes up only if something changed, which is what this returns."""
        if self._rows.get(row) == agent:
            return False
        if not 0 <= row < AGENT_ROWS:
            raise SegmentError(f"agent row {row} is not one of {AGENT_ROWS}")
        values = (agent.hello_mask, agent.live_instances, agent.breaker, agent.retry_at_ns)
        write_row(self._cells, AGENTS.at + row * AGENTS.row_cells, (*pack_name(agent.name), *values))
        self._rows[row] = agent
        if self._cells[H_ROWS] <= row:
            self._cells[H_ROWS] = row + 1
        self.bump()
        return True

    def clear_from(self, row: int) -> None:
        """Rows from this one on are not in use any more."""
        gone = [used for used in self._rows if used >= row]
        for used in gone:
            write_row(self._cells, AGENTS.at + used * AGENTS.row_cells, (0,) * AGENT_VALUES)
            del self._rows[used]
        self._cells[H_ROWS] = min(self._cells[H_ROWS], row)
        if gone:
            self.bump()

    def put_health(self, health: AgentdHealth) -> None:
        """Store agentd's own state; does not touch the generation."""
        numbers = (
            health.at_ns,
            health.status,
            health.is_ready,
            health.workers,
            health.sessions,
            health.calls_in_flight,
            health.calls_queued,
            health.audit_queued,
            health.audit_dropped,
            health.loop_lag_ns,
            health.rss_bytes,
        )
        write_row(self._cells, HEALTH.at, (*numbers, *pack_message(health.message)))


class AgentdView(SegmentView):
    """Everybody else's side."""

    MAGIC = MAGIC_AGENTD
    CELLS = AGENTD_CELLS
    __slots__ = ("_good", "_health")

    def __init__(self, path: str) -> None:
        self._good: dict[int, AgentRow] = {}
        self._health: AgentdHealth | None = None
        super().__init__(path)

    def is_alive(self, now_ns: int) -> bool:
        """One cell read: its loop turned less than AGENTD_STALE_MS ago. A beat of another boot is dead too."""
        return _EARLY_NS < now_ns - self._cells[H_BEAT_NS] < _STALE_NS

    def agents(self) -> dict[str, AgentRow]:
        """The agents by name; a row that its writer left half written is the last good one, or missing."""
        cells = self._cells
        found: dict[str, AgentRow] = {}
        for row in range(min(cells[H_ROWS], AGENT_ROWS)):
            values = read_row(cells, AGENTS.at + row * AGENTS.row_cells, AGENT_VALUES)
            if values is not None:
                agent = _agent(values)
                self._good[row] = agent
            else:
                agent = self._good.get(row, _NO_AGENT)
            if agent.name:
                found[agent.name] = agent
        return found

    def health(self) -> AgentdHealth | None:
        """agentd's own last word; None = it never said one."""
        if not self.is_mapped:
            return None
        values = read_row(self._cells, HEALTH.at, HEALTH_NUMBERS + MESSAGE_CELLS)
        if values is not None and values[0]:
            self._health = _health(values)
        return self._health

    def _forget(self) -> None:
        self._good.clear()
        self._health = None


_NO_AGENT = AgentRow("")


def _agent(values: list[int]) -> AgentRow:
    mask, instances, breaker, retry_at_ns = values[NAME_CELLS:]
    state = BreakerState(breaker) if breaker <= BreakerState.FORCED_OPEN else BreakerState.CLOSED
    return AgentRow(unpack_name(values[:NAME_CELLS]), mask, instances, state, retry_at_ns)


def _health(values: list[int]) -> AgentdHealth:
    at_ns, status, is_ready, workers, sessions, in_flight, queued, audit_queued, audit_dropped, lag_ns, rss = values[
        :HEALTH_NUMBERS
    ]
    return AgentdHealth(
        at_ns,
        HealthStatus(status) if status <= HealthStatus.UNHEALTHY else HealthStatus.UNKNOWN,
        bool(is_ready),
        workers,
        sessions,
        in_flight,
        queued,
        audit_queued,
        audit_dropped,
        lag_ns,
        rss,
        unpack_message(values[HEALTH_NUMBERS:]),
    )
