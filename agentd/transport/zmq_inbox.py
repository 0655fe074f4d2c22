"""Takes messages in that cost much to read, within bounds on our own time.

Kind: IO (reads this thread's CPU clock).
"""

import time
from collections.abc import Callable, Sequence

from agentd.transport.zmq_session import V2Session
from shared.clock import MS
from shared.defaults import VERDICT_MAX_US, VERDICTS_CUT_MS, VERDICTS_MAX_MS
from shared.zmtp import Frame


def take_large(
    shut_out: Callable[[V2Session, str], None], session: V2Session, frames: Sequence[Frame], now: int
) -> str:
    """VERDICTS of much JSON: what is wrong with them. `shut_out` ends a session that costs too much.

    16 MiB of the right kind of JSON take a second to read, and nobody else is served meanwhile. So beyond all bounds
    on sizes and numbers our own CPU time counts (not the clock's: we may have been put off the CPU).
    """
    before, start_ns = len(session.calls), time.thread_time_ns()
    wrong = session.take_verdicts(frames, now)
    answered = max(0, before - len(session.calls))
    over_ms = (time.thread_time_ns() - start_ns) // MS - answered * VERDICT_MAX_US // 1_000
    if over_ms >= VERDICTS_MAX_MS:
        wrong = f"VERDICTS: {len(frames[0])} bytes of JSON take too long to read"
    if over_ms >= VERDICTS_CUT_MS:
        shut_out(session, wrong)
    return wrong
