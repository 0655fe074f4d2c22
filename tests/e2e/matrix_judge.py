"""Judges one playing of a row: what was answered, how soon, by whom, and what became of held requests.

`broken` must not happen at all; `slow` is a bound in time that was missed, to be measured once more. What a
route may answer stands in matrix.py, what was done in matrix_play.py.

Kind: pure (waits for held requests to end).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.defaults import AGENTD_STALE_MS
from tests.e2e.matrix import GONE, KILL, LATE, NEVER, PASSED, STOP, STUCK, VERDICT, Row
from tests.e2e.stage import BREAKER_WAIT_S, ROUTES, TIMEOUT_MS
from tests.e2e.traffic import Lane, Sample, Traffic, median_ms
from tests.support import wait_until

SAMPLES = 20  # a bound in time is asserted on the median of at least so many
LATE_MS = TIMEOUT_MS + 250  # no answer later than the deadline and this
LOCAL_MS = 5  # a worker's own failure answer
PENDING_MS = 100  # calls of a connection that has died; their timeout is 100 times that
RECOVERY_S = 2.0  # after the process is back; and the breaker's wait where timeouts have opened it
KEPT_SHARE = 0.95  # of the requests/s of routes that need nothing of what has failed
_ASKING = ("agent", "v1 agent", "agentd")
GOOD = {"closed": VERDICT, "open": VERDICT, "free": PASSED}


@dataclass
class Seen:
    """What one playing of a row has shown. `broken`: must not happen. `slow`: may be measured again once."""

    row: Row
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    answer_ms: float = 0.0  # median of the fail-closed route's answers while it failed
    slowest_ms: float = 0.0  # median of the 20 slowest answers of the routes with agents
    back_ms: float = 0.0  # median over the lanes: from the process being back to the first good answer
    broken: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    logs: str = ""


@dataclass
class Scene:
    """What was done, when: the fault, the moment from which only failures are expected, the process's return."""

    fault: float = 0.0
    firm: float = 0.0
    back: float = 0.0
    whole: float = 0.0  # when all workers were ready again
    victims: set[int] = field(default_factory=set)  # lanes whose connection a killed or stopped worker held
    held: list[Lane] = field(default_factory=list)
    newcomers: list[Lane] = field(default_factory=list)  # connected while a worker was stopped
    piled_up: int = 0  # events that workers waited for while agentd was away


class Judge:
    """One playing; fills `seen`."""

    def __init__(self, seen: Seen, scene: Scene, traffic: Traffic) -> None:
        self.seen = seen
        self.row = seen.row
        self.scene = scene
        self.traffic = traffic

    def answers(self, before: float, settled: float) -> None:
        """Only what the row allows, in time. `before`: since when all was well; `settled`: from when it is again."""
        scene = self.scene
        for route in ROUTES:
            samples = self.traffic.touched(scene.fault, settled, route)
            ends = self.seen.ends[route] = Counter(sample.end for sample in samples)
            if strange := set(ends) - set(self.row.allowed[route]):
                self.seen.broken.append(f"{route} answered {dict(ends)}, among it {sorted(strange)}")
            self._gone(samples)
        if scene.piled_up:
            self.seen.broken.append(f"workers waited for {scene.piled_up} events while agentd was away")
        if self.row.component in _ASKING:
            for route in ("open", "free"):
                self._rate(before, settled, route)
            slow = [s.took_s for s in self._with_agents(settled)]
            self.seen.slowest_ms = median_ms(sorted(slow)[-SAMPLES:])
            if len(slow) < SAMPLES or self.seen.slowest_ms > LATE_MS:
                self.seen.slow.append(
                    f"the {SAMPLES} slowest answers took {self.seen.slowest_ms:.0f} ms, not {LATE_MS}"
                )
        failed = [s for s in self.traffic.sent(scene.firm, scene.back, "closed") if s.end in ("502", "503", "504")]
        self.seen.answer_ms = median_ms(s.took_s for s in failed)
        if self.row.component == "agentd" and (len(failed) < SAMPLES or self.seen.answer_ms >= LOCAL_MS):
            self.seen.slow.append(f"{len(failed)} failure answers took {self.seen.answer_ms:.1f} ms, not {LOCAL_MS}")

    def _with_agents(self, settled: float) -> list[Sample]:
        scene = self.scene
        return [s for s in self.traffic.touched(scene.fault, settled) if s.route in ("closed", "open")]

    def _gone(self, samples: Sequence[Sample]) -> None:
        """A connection ends only where its worker was killed, and takes one request with it."""
        scene = self.scene
        gone = Counter(s.lane for s in samples if s.end in GONE)
        if strangers := set(gone) - scene.victims:
            self.seen.broken.append(f"connections of living workers were closed: {sorted(strangers)}")
        if more := [lane for lane, count in gone.items() if count > 1]:
            self.seen.broken.append(f"connections were closed more than once: {more}")

    def _rate(self, before: float, settled: float, route: str) -> None:
        """The paced lanes are answered as often as before: nobody waits for what has failed."""
        rates = []
        for start, end in ((before, self.scene.fault), (self.scene.firm, settled)):
            rates.append(len(self.traffic.sent(start, end, route)) / (end - start))
        if rates[1] < KEPT_SHARE * rates[0]:
            self.seen.slow.append(f"{route} has served {rates[1]:.0f}/s, {rates[0]:.0f}/s before")

    def others(self, before: float, settled: float) -> None:
        """Connections of other workers, and new ones, are served as before."""
        scene = self.scene
        until = scene.back if scene.back > scene.fault else settled
        others = {lane.number for lane in self.traffic.lanes if not lane.is_once} - scene.victims
        rates = []
        for start, end in ((before, scene.fault), (scene.fault, until)):
            samples = [s for s in self.traffic.sent(start, end) if s.lane in others]
            rates.append(len(samples) / (end - start))
        if rates[1] < KEPT_SHARE * rates[0]:
            self.seen.slow.append(f"the other workers' connections got {rates[1]:.0f} answers/s, {rates[0]:.0f} before")
        lasts = [lane.last for lane in scene.newcomers]
        if any(last is None or last.end != VERDICT for last in lasts):
            self.seen.broken.append(f"new connections beside a stopped worker got {lasts}")
        waited_ms = median_ms(last.took_s for last in lasts if last is not None)
        if waited_ms > LATE_MS:
            self.seen.slow.append(f"new connections beside a stopped worker waited {waited_ms:.0f} ms")

    def recovery(self, settled: float, now: float) -> None:
        """How soon each connection has got what it shall; and nothing else any more since it is settled."""
        scene = self.scene
        for route in ROUTES:
            ends = Counter(sample.end for sample in self.traffic.sent(settled, now, route))
            if set(ends) - {GOOD[route]}:
                self.seen.broken.append(f"after the recovery {route} answered {dict(ends)}")
        first: dict[int, float] = {}
        for sample in self.traffic.touched(scene.back, now):
            if sample.end == GOOD.get(sample.route):
                first.setdefault(sample.lane, sample.done - scene.back)
        self.seen.back_ms = median_ms(first.values())
        has_timed_out = self.row.fault == STOP and self.row.component in ("agent", "v1 agent")
        bound_s = RECOVERY_S + BREAKER_WAIT_S * has_timed_out
        if self.row.fault in (KILL, STUCK, NEVER, LATE) and scene.whole - scene.back > RECOVERY_S:
            self.seen.slow.append(f"all workers were ready after {scene.whole - scene.back:.1f} s")
        if len(first) < SAMPLES or self.seen.back_ms > bound_s * 1000:
            self.seen.slow.append(f"back after {self.seen.back_ms:.0f} ms on {len(first)} lanes, not {bound_s:g} s")

    def held(self) -> None:
        """Calls of a dead connection end at once; requests in workers as complete or not at all."""
        scene = self.scene
        if not scene.held:
            return
        wait_until(lambda: all(lane.is_done for lane in scene.held), 15, "the held requests have ended")
        lasts = [lane.last for lane in scene.held if lane.last is not None and lane.last.done >= scene.fault]
        if not lasts:
            self.seen.slow.append("nothing was held any more when it happened")
        if self.row.component in ("agent", "agentd"):
            ends = Counter(last.end for last in lasts)
            took_ms = median_ms(last.done - scene.fault for last in lasts)
            if set(ends) != {"503"}:
                self.seen.broken.append(f"held calls of a dead connection ended as {dict(ends)}")
            if took_ms > (PENDING_MS if self.row.fault == KILL else AGENTD_STALE_MS + LATE_MS):
                self.seen.slow.append(f"{len(lasts)} held calls of a dead connection ended after {took_ms:.0f} ms")
            return
        if self.row.fault in (KILL, STOP, STUCK) and not any(last.lane in scene.victims for last in lasts):
            self.seen.slow.append("the victim held nothing any more when it happened")
        is_killed = self.row.fault in (KILL, STUCK, NEVER, LATE)
        for last in lasts:
            if last.lane in scene.victims and is_killed:
                if last.end not in GONE:
                    self.seen.broken.append(f"a request that a killed worker held ended as {last}")
            elif last.end not in (VERDICT, PASSED, *(("504",) if self.row.fault == STOP else ())):
                self.seen.broken.append(f"a held request ended as {last}")
            if last.lane in scene.victims and self.row.fault == STOP and last.done < scene.back:
                self.seen.broken.append(f"a request that a stopped worker held was answered: {last}")
