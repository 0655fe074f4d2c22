"""Plays one component's rows of the failure matrix on one stage, under constant traffic, and notes what was seen.

    settled --> fault --> a while --> back --> every lane well again --> a little longer

A bound in time that was missed is measured again once, by playing the row a second time; an answer that a
route must not give, or an undecided request at the upstream, is a failure at once. What may be answered
stands in matrix.py.

Kind: IO.
"""

import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable

from shared.segment import WorkerState
from tests.e2e.matrix import KILL, LATE, NEVER, RESTART, STOP, STUCK, Row, of
from tests.e2e.matrix_judge import GOOD, Judge, Scene, Seen
from tests.e2e.stage import PARTS, ROUTES, Stage
from tests.e2e.traffic import Lane, Traffic
from tests.support import wait_until

BEFORE_S = 0.5
AFTER_S = 0.25
WORKER_TIMEOUT_S = 3
HELD = 20
HOLD_MS = "700"  # less than the upstream's response timeout

_MISSING = {
    "agent": ("a", "h"),
    "v1 agent": ("a",),
    "agentd": ("agentd",),
    "all workers": ("proxy",),
    "upstream": ("upstream",),
}


class Play:
    """One component on one stage."""

    def __init__(self, component: str) -> None:
        self.component = component
        self.stage = Stage(
            worker_timeout_s=WORKER_TIMEOUT_S if component == "one worker" else 30, is_v1=component == "v1 agent"
        )
        self.parts = _MISSING.get(component, ())
        self.scene = Scene()
        self.traffic: Traffic | None = None

    def rows(self) -> dict[str, Seen]:
        """Every row of the component, by fault; the stage is gone when this returns."""
        try:
            self.stage.start(*(part for part in PARTS if part not in self.parts))
            if "proxy" not in self.parts:
                self.stage.wait_ready_workers()
            is_away = self.component == "all workers"  # no TCP address yet: the unix socket is known before
            self.traffic = Traffic(self.stage.front if is_away else self.stage.address, ROUTES)
            return self._all()
        finally:
            try:
                if self.traffic is not None:
                    self.traffic.close()
            finally:
                self.stage.close()

    def _all(self) -> dict[str, Seen]:
        found: dict[str, Seen] = {}
        for row in of(self.component):
            try:
                found[row.fault] = self._row(row)
            except Exception:
                # The stage is in no known state now: what comes after is not played.
                why = f"{traceback.format_exc()}\n{self.stage.logs()}"
                rest = [other for other in of(self.component) if other.fault not in found]
                return found | {
                    other.fault: Seen(other, broken=[f"while {row.key} was played: {why}"]) for other in rest
                }
        return found

    def _row(self, row: Row) -> Seen:
        seen = self._once(row)
        if seen.slow and not seen.broken:
            if row.fault == LATE and self.parts:
                self.stage.stop(*self.parts)
            seen = self._once(row)
        return seen

    @property
    def _traffic(self) -> Traffic:
        assert self.traffic is not None
        return self.traffic

    def _once(self, row: Row) -> Seen:
        seen = Seen(row)
        scene = self.scene = Scene()
        judge = Judge(seen, scene, self._traffic)
        if all(part in self.stage.running for part in self.parts):
            self._settle(0.0, seen)
        before = time.monotonic()
        time.sleep(BEFORE_S)
        blamed = self.stage.blame() if row.component == "upstream" else {}
        _ACTS[row.component, row.fault](self)
        if row.fault == NEVER and self.parts:
            judge.answers(before, scene.back)
        else:
            settled = self._settle(scene.back, seen)
            judge.answers(before, settled)
            time.sleep(AFTER_S)
            judge.recovery(settled, time.monotonic())
            if row.component == "one worker":
                judge.others(before, settled)
        judge.held()
        if row.component == "upstream" and self.stage.blame() != blamed:
            seen.broken.append(f"an agent was blamed: {blamed} before, {self.stage.blame()} after")
        if undecided := self.stage.undecided():
            seen.broken.append(f"reached the upstream without a verdict: {undecided[:5]}")
        if seen.broken or seen.slow:
            seen.logs = self.stage.logs()
        return seen

    def _settle(self, since: float, seen: Seen) -> float:
        """Until every lane's last answer is a good one and was asked for after `since`; when that was."""
        lanes = [lane for lane in self._traffic.lanes if not lane.is_once]

        def is_well(lane: Lane) -> bool:
            return lane.last is not None and lane.last.sent >= since and lane.last.end == GOOD[lane.route]

        try:
            wait_until(lambda: all(map(is_well, lanes)), 15, f"{seen.row.key}: every lane well")
        except AssertionError as error:
            ill = Counter((lane.route, lane.last.end if lane.last else "") for lane in lanes if not is_well(lane))
            seen.broken.append(f"{error}: {dict(ill)}")
        return time.monotonic()

    # --- acting -----------------------------------------------------------------------------------

    def _was(self, fault: float, firm: float, back: float) -> None:
        self.scene.fault, self.scene.firm, self.scene.back = fault, firm, back
        self.scene.whole = time.monotonic() if "worker" in self.component else back

    def missing(self) -> None:
        """It was not started."""
        began = time.monotonic()
        time.sleep(0.8)
        self._was(began, began, time.monotonic())

    def started_late(self) -> None:
        began = time.monotonic()
        self.stage.start(*self.parts)
        self._was(began, began, time.monotonic())

    def killed(self) -> None:
        self._hold("9000")
        fault = time.monotonic()
        self.stage.kill(*self.parts)
        self._return(fault, 0.1)

    def restarted(self) -> None:
        fault = time.monotonic()
        self.stage.stop(*self.parts)
        self._return(fault, 0.1)

    def _return(self, fault: float, firm_s: float) -> None:
        firm = time.monotonic() + firm_s
        time.sleep(0.7)
        self._count_waiting()
        self.stage.start(*self.parts)
        self._was(fault, firm, time.monotonic())

    def frozen(self) -> None:
        """For so long that agentd's heartbeat is stale, and agents' timeouts have opened the breaker."""
        if self.component == "agentd":
            self._hold("2500")  # nobody closes their connection: they end when the heartbeat is stale
        with self.stage.stopped([self.stage.running[part].pid for part in self.parts]):
            fault = time.monotonic()
            time.sleep(2.0)
            self._count_waiting()
            back = time.monotonic()
        firm_s = 0.0 if self.component == "upstream" else 1.3  # nobody tells the proxy about an upstream
        self._was(fault, fault + firm_s, back)

    def _count_waiting(self) -> None:
        if self.component == "agentd":
            self.scene.piled_up = self.stage.pending_events()

    def _hold(self, hold_ms: str) -> None:
        """Calls that are not answered for so long, if the agent does not die; they may take ten seconds."""
        if self.component in ("agent", "agentd"):
            self.scene.held = self._traffic.once("held", HELD, {"X-Agent-Hold-Ms": hold_ms})
            wait_until(lambda: self._in_flight_calls() >= HELD, 5, "held calls are under way")

    def _in_flight_calls(self) -> int:
        return next(agent.in_flight for agent in self.stage.admin.agents().agents if agent.name == "h")

    # --- workers ----------------------------------------------------------------------------------

    def _hold_in_workers(self) -> None:
        """Requests that wait for an agent, for the upstream, and inside the upstream's answer."""
        traffic = self._traffic
        self.scene.held = traffic.once("held", 8, {"X-Agent-Hold-Ms": HOLD_MS})
        self.scene.held += traffic.once("free", 8, {"X-Hold-Ms": HOLD_MS})
        self.scene.held += traffic.once("free", 8, {"X-Half-Ms": HOLD_MS})
        wait_until(lambda: all(lane.sent for lane in self.scene.held), 5, "held requests are sent")
        sent_on = [lane.request_id for lane in self.scene.held if lane.route == "free"]
        wait_until(lambda: self._in_flight_calls() >= 8, 5, "held calls are under way")
        wait_until(lambda: self.stage.has_reached(sent_on), 5, "held requests are under way")

    def _victim(self) -> int:
        """The worker that holds most of the held requests; its lanes are the victims."""
        self._hold_in_workers()
        by_port = self.stage.served_by(lane.port for lane in self._traffic.lanes if lane.port)
        holders = {lane.number: by_port.get(lane.port, 0) for lane in self._traffic.lanes}
        held = Counter(holders[lane.number] for lane in self.scene.held)
        pid = held.most_common(1)[0][0]
        assert pid
        self.scene.victims = {number for number, holder in holders.items() if holder == pid}
        return pid

    def worker_killed(self) -> None:
        pid = self._victim()
        fault = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.stage.wait_ready_workers({pid})
        self._was(fault, fault, fault)

    def worker_frozen(self) -> None:
        with self.stage.stopped([self._victim()]):
            fault = time.monotonic()
            self.scene.newcomers = self._traffic.once("closed", HELD, {})
            time.sleep(0.8)
            back = time.monotonic()
        self._was(fault, fault, back)

    def worker_stuck(self) -> None:
        pid = self._victim()
        with self.stage.stopped([pid]):
            fault = time.monotonic()
            self.scene.newcomers = self._traffic.once("closed", HELD, {})
            wait_until(lambda: pid not in self.stage.children(), WORKER_TIMEOUT_S + 5, "the arbiter kills it")
            back = time.monotonic()
            self.stage.wait_ready_workers({pid})
        self._was(fault, fault, back)

    def worker_restarted(self) -> None:
        pid = self._victim()
        self.scene.victims = set()
        fault = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        self.stage.wait_ready_workers({pid})
        wait_until(lambda: pid not in self.stage.children(), 10, "it has drained")
        self._was(fault, fault, fault)

    def successor_missing(self) -> None:
        self._successor(lambda pid: wait_until(lambda: pid not in self.stage.children(), WORKER_TIMEOUT_S + 5))

    def successor_late(self) -> None:
        self._successor(lambda pid: time.sleep(0.5))

    def _successor(self, wait: Callable[[int], object]) -> None:
        pid = self._victim()
        known = self.stage.children()
        fault = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        fresh = wait_until(lambda: self.stage.children() - known, 5, "a successor")
        with self.stage.stopped(fresh):
            for one in fresh:
                assert self.stage.worker_states().get(one) is not WorkerState.READY, "stopped too late"
                wait(one)
            back = time.monotonic()
        self.stage.wait_ready_workers(known - (known - {pid}))
        self._was(fault, fault, back)

    def workers_killed(self) -> None:
        self._hold_in_workers()
        pids = self.stage.wait_ready_workers()
        self.scene.victims = {lane.number for lane in self._traffic.lanes}
        fault = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.stage.wait_ready_workers(pids)
        self._was(fault, fault, fault)

    def workers_frozen(self) -> None:
        self._hold_in_workers()
        self.scene.victims = {lane.number for lane in self._traffic.lanes}
        with self.stage.stopped(self.stage.wait_ready_workers()):
            fault = time.monotonic()
            time.sleep(0.8)
            back = time.monotonic()
        self._was(fault, fault, back)

    def workers_restarted(self) -> None:
        self._hold_in_workers()
        pids = self.stage.wait_ready_workers()
        fault = time.monotonic()
        self.stage.running["proxy"].signal(signal.SIGHUP)
        wait_until(lambda: not pids & self.stage.children(), 15, "the old workers have drained")
        self.stage.wait_ready_workers(pids)
        self._was(fault, fault, fault)


_ACTS: dict[tuple[str, str], Callable[[Play], None]] = {
    **{(name, NEVER): Play.missing for name in _MISSING},
    **{(name, LATE): Play.started_late for name in _MISSING},
    **{(name, KILL): Play.killed for name in _MISSING},
    **{(name, STOP): Play.frozen for name in _MISSING},
    **{(name, RESTART): Play.restarted for name in _MISSING},
    ("one worker", NEVER): Play.successor_missing,
    ("one worker", LATE): Play.successor_late,
    ("one worker", KILL): Play.worker_killed,
    ("one worker", STOP): Play.worker_frozen,
    ("one worker", RESTART): Play.worker_restarted,
    ("one worker", STUCK): Play.worker_stuck,
    ("all workers", KILL): Play.workers_killed,
    ("all workers", STOP): Play.workers_frozen,
    ("all workers", RESTART): Play.workers_restarted,
}
