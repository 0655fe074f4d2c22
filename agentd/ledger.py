"""What became of a lane's calls: counters, a histogram of durations, and the last calls one by one.

Kept by the lane, read by the exporter and the admin API. Nothing here decides anything.

Kind: pure.
"""

from bisect import bisect_left
from collections import deque
from typing import Any

from agentd.call import Call
from shared.clock import MS
from shared.decision import Outcome
from shared.defaults import FLIGHT_RECORDER_CALLS, FLIGHT_RECORDER_MS
from shared.metrics import DURATION_BOUNDS_NS, DURATION_BUCKETS

# Decisions under load: one a millisecond, so that the recorder looks back further and no failure is pushed out.
# Ends that never reached an agent, many and alike: counted, but the flight recorder leaves them out.
# (By identity: an Enum's hash is a Python function, 0.1 us.)
_BREAKER_OPEN, _QUEUE_FULL, _CANCELLED = Outcome.BREAKER_OPEN, Outcome.QUEUE_FULL, Outcome.CANCELLED
_DECISION = Outcome.DECISION
_DECISIONS_APART_NS = FLIGHT_RECORDER_MS * MS


class Ledger:
    """Counts of one lane, from agentd's start; observers' calls apart from those that decide."""

    __slots__ = (
        "_not_before_ns",
        "body_bytes_received",
        "body_bytes_sent",
        "buckets",
        "completions_dropped",
        "completions_sent",
        "duration_ns_total",
        "late_verdicts",
        "observed",
        "outcomes",
        "queue_ns_total",
        "queued_total",
        "recorder",
    )

    def __init__(self) -> None:
        self.outcomes = [0] * len(Outcome)
        self.observed = [0] * len(Outcome)
        self.late_verdicts = 0
        self.completions_sent = 0  # of request_complete, which is no call
        self.completions_dropped = 0
        self.body_bytes_sent = 0  # beside events
        self.body_bytes_received = 0  # of replacements
        self.queued_total = 0
        self.queue_ns_total = 0
        self.buckets = [0] * DURATION_BUCKETS  # of calls sent and not cancelled, from sending to end; not cumulative
        self.duration_ns_total = 0
        self._not_before_ns = 0  # the recorder takes no further decision before
        # (ended ns, call id, event, outcome, instance, ns before sending, ns since, message)
        self.recorder: deque[tuple[int, str, str, Outcome, str, int, int, str]] = deque(maxlen=FLIGHT_RECORDER_CALLS)

    def decided(self, call: Call) -> None:
        """`add`, for nearly all: a call that was sent to decide and has been answered."""
        self.outcomes[0] += 1
        ended_ns = call.ended_ns
        sent_ns = call.sent_ns
        duration_ns = ended_ns - sent_ns
        self.queue_ns_total += sent_ns - call.started_ns
        self.duration_ns_total += duration_ns
        self.buckets[bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1
        if ended_ns >= self._not_before_ns:
            self._not_before_ns = ended_ns + _DECISIONS_APART_NS
            self._record(call, sent_ns - call.started_ns, duration_ns)

    def add(self, call: Call) -> None:
        """A call that has just ended; `outcome`, `ended_ns` and the rest are set."""
        outcome, asked = call.outcome, call.asked
        if asked.is_observer:
            if asked.is_told:
                if call.sent_ns:
                    self.completions_sent += 1
                else:
                    self.completions_dropped += 1
                return
            self.observed[outcome] += 1
        else:
            self.outcomes[outcome] += 1
        if outcome is not _DECISION and (outcome is _BREAKER_OPEN or outcome is _QUEUE_FULL):
            return
        ended_ns, sent_ns = call.ended_ns, call.sent_ns
        if sent_ns:
            duration_ns = ended_ns - sent_ns
            self.queue_ns_total += sent_ns - call.started_ns
            if outcome is not _CANCELLED:
                self.buckets[bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1
                self.duration_ns_total += duration_ns
        else:
            sent_ns, duration_ns = ended_ns, 0
        if outcome is _DECISION:
            if ended_ns < self._not_before_ns:
                return
            self._not_before_ns = ended_ns + _DECISIONS_APART_NS
        self._record(call, sent_ns - call.started_ns, duration_ns)

    def _record(self, call: Call, queued_ns: int, duration_ns: int) -> None:
        name = call.instance.name if call.instance is not None else ""
        self.recorder.append(
            (call.ended_ns, call.call_id, call.asked.event, call.outcome, name, queued_ns, duration_ns, call.message)
        )

    def snapshot(self, now: int) -> dict[str, Any]:
        """For the admin API; times in ms, newest call first."""
        return {
            "outcomes": {outcome.word: self.outcomes[outcome] for outcome in Outcome},
            "observed": {outcome.word: self.observed[outcome] for outcome in Outcome},
            "late_verdicts": self.late_verdicts,
            "completions": {"sent": self.completions_sent, "dropped": self.completions_dropped},
            "body_bytes": {"sent": self.body_bytes_sent, "received": self.body_bytes_received},
            "queued_total": self.queued_total,
            "queue_ms_total": self.queue_ns_total / MS,
            "duration_ms_total": self.duration_ns_total / MS,
            "duration_buckets": list(self.buckets),
            "last_calls": [
                {
                    "ago_ms": (now - ended_ns) / MS,
                    "call": call_id,
                    "event": event,
                    "outcome": outcome.word,
                    "instance": instance,
                    "queued_ms": queued_ns / MS,
                    "duration_ms": duration_ns / MS,
                    "message": message,
                }
                for ended_ns, call_id, event, outcome, instance, queued_ns, duration_ns, message in reversed(
                    self.recorder
                )
            ],
        }
