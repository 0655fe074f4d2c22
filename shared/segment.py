"""The two segment files as the rest of the project uses them.

    shared/wire/segment.py    the layouts: which cell holds what
    shared/segment_file.py    making, mapping, comparing a file; rows under a sequence counter
    shared/segment_agentd.py  agentd.seg: AgentdWriter, AgentdView
    shared/segment_proxy.py   proxy.seg: ProxyWriter, WorkerSlot
    shared/segment_totals.py  proxy.seg: ProxyView
    shared/metrics.py         what the cells of a slot count

Names only; nothing is written here.

Kind: table.
"""

from shared.segment_agentd import AgentdView, AgentdWriter
from shared.segment_proxy import ProxyWriter, WorkerSlot
from shared.segment_totals import ProxyView, Totals, WorkerRow
from shared.wire.segment import (
    NEVER_NS,
    AgentdHealth,
    AgentRow,
    BreakerState,
    HealthStatus,
    Reload,
    ReloadResult,
    WorkerState,
)

FREE = WorkerState.FREE
STARTING = WorkerState.STARTING
READY = WorkerState.READY
DRAINING = WorkerState.DRAINING

__all__ = [
    "DRAINING",
    "FREE",
    "NEVER_NS",
    "READY",
    "STARTING",
    "AgentRow",
    "AgentdHealth",
    "AgentdView",
    "AgentdWriter",
    "BreakerState",
    "HealthStatus",
    "ProxyView",
    "ProxyWriter",
    "Reload",
    "ReloadResult",
    "Totals",
    "WorkerRow",
    "WorkerSlot",
    "WorkerState",
]
