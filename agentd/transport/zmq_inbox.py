"""Takes messages off the agents' ROUTER, and tells one connection's from another's by their routing ids.

What they say is read elsewhere (agentd/transport/zmq_dealer.py); nothing here knows a verb.

Kind: IO.
"""

import time
from collections.abc import Callable, Container, Sequence
from typing import Any

import zmq

from agentd.transport.zmq_session import V2Session
from shared.clock import MS
from shared.defaults import VERDICT_MAX_US, VERDICTS_CUT_MS, VERDICTS_MAX_MS

_NOBLOCK = int(zmq.NOBLOCK)


def receiver(socket: "zmq.Socket[bytes]", known: Container[bytes], dead: Container[bytes]) -> Callable[[], list[Any]]:
    """Takes a message off the ROUTER: bytes from peers that are known, frames with their origin from others,
    nothing ([]) from the dead, of whom there may be tens of thousands left."""
    recv = socket.recv

    def receive() -> list[Any]:
        routing_id = recv(_NOBLOCK)
        frames: list[Any] = [routing_id]
        is_known = routing_id in known
        if not is_known and routing_id in dead:
            while recv(_NOBLOCK, False).more:
                pass
            return []
        more = True
        while more:
            frame = recv(_NOBLOCK, False)
            frames.append(frame.bytes if is_known else frame)
            more = frame.more
        return frames

    return receive


def is_older(one: bytes, other: bytes) -> bool:
    """Whether ZeroMQ made this routing id before the other: a zero byte and a number that counts up and round."""
    if one[0] or other[0]:
        return False
    return 0 < (int.from_bytes(other, "big") - int.from_bytes(one, "big")) & 0xFFFF_FFFF < 1 << 31


def take_large(
    shut_out: Callable[[V2Session, str], None], session: V2Session, frames: Sequence[bytes], now: int
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
