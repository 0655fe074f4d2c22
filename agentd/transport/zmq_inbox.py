"""Makes the agents' ROUTER, takes messages off it, and tells one connection's from another's by their routing ids.

What they say is read elsewhere (agentd/transport/zmq_dealer.py); nothing here knows a verb.

Kind: IO.
"""

import time
from collections.abc import Callable, Container, Sequence
from typing import Any

import zmq

from agentd.gate import DOMAIN
from agentd.transport.zmq_session import V2Session
from shared.clock import MS
from shared.defaults import (
    AGENT_MAX_FRAMES,
    AGENT_MAX_MESSAGE_BYTES,
    BACKLOG,
    HOP_BODY_FRAME_BYTES,
    SKIP_FRAMES,
    VERDICT_MAX_US,
    VERDICTS_CUT_MS,
    VERDICTS_MAX_MS,
    ZMTP_HANDSHAKE_MS,
)

_NOBLOCK = int(zmq.NOBLOCK)
_HWM_SLACK = 100  # messages of a session that it does not count: WELCOME, PONG and the like
REPLY_FRAMES_MAX = 16  # the delimiter, the JSON, and what makes clear that it is wrong
_ALL = range(AGENT_MAX_FRAMES)
_A_FEW = range(SKIP_FRAMES)
_REPLY = range(REPLY_FRAMES_MAX)


def agents_socket(context: "zmq.Context[zmq.Socket[bytes]]", hwm: int) -> "zmq.Socket[bytes]":
    """The ROUTER, not bound yet; a session leaves at most `hwm` messages unread."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    for option, value in (
        (zmq.ROUTER_MANDATORY, 1),
        # Sessions stop at runtime.agent_hwm by their own count. libzmq learns that messages were read in lumps of
        # half the mark: with twice as much it does not refuse what they let through.
        (zmq.SNDHWM, 2 * hwm + _HWM_SLACK),
        # None: once libzmq 4.3.5 stops reading a peer at the mark, a PING of that peer behind a broken
        # connection aborts the process (agentd/peers.py). What a peer may say is bounded by what it may say
        # in a second (Session.is_chatter) and by the memory guard instead.
        (zmq.RCVHWM, 0),
        (zmq.MAXMSGSIZE, AGENT_MAX_MESSAGE_BYTES),
        (zmq.LINGER, 0),
        (zmq.BACKLOG, BACKLOG),
        (zmq.HANDSHAKE_IVL, ZMTP_HANDSHAKE_MS),
        # No ZMTP heartbeats; see agentd/peers.py. PING and PONG of the protocol tell who is silent.
    ):
        socket.setsockopt(option, value)
    return socket


def receiver(
    socket: "zmq.Socket[bytes]",
    known: Container[bytes],
    dead: Container[bytes],
    cut: Callable[[bytes, "zmq.Frame"], None],
) -> Callable[[], list[Any]]:
    """Takes a message off the ROUTER: bytes from peers that are known (long bodies, behind verb and JSON, stay frames:
    they are passed on as such), frames with their origin from others, nothing ([]) from the dead, of whom there may be
    tens of thousands left.

    A frame costs 1.2 us to take off, and a message within all bounds on bytes may have a million of them (20 s of
    standing still, 2026-11). So one of more frames than any agent sends goes to `cut(routing id, frame)` as soon as
    that shows, and what is thrown away is taken off a few frames at a time: the loop turns meanwhile.
    """
    recv = socket.recv
    is_skipping = False

    def skip() -> list[Any]:
        nonlocal is_skipping
        for _ in _A_FEW:
            if not recv(_NOBLOCK, False).more:
                is_skipping = False
                return []
        is_skipping = True
        return []

    def receive() -> list[Any]:
        nonlocal is_skipping
        if is_skipping:
            return skip()
        routing_id = recv(_NOBLOCK)
        frames: list[Any] = [routing_id]
        is_known = routing_id in known
        if not is_known and routing_id in dead:
            return skip()
        for place in _ALL:
            frame = recv(_NOBLOCK, False)
            is_bytes = is_known and (place < 2 or len(frame) < HOP_BODY_FRAME_BYTES)
            frames.append(frame.bytes if is_bytes else frame)
            if not frame.more:
                return frames
        is_skipping = True
        cut(routing_id, frame)
        return []

    return receive


def receive_reply(socket: "zmq.Socket[bytes]") -> Callable[[], list[Any]]:
    """Takes a v1 agent's message as bytes: all of it, or REPLY_FRAMES_MAX frames of one that has more; its socket has
    to be closed then."""
    recv = socket.recv

    def receive() -> list[Any]:
        frames: list[Any] = []
        for _ in _REPLY:
            frame = recv(_NOBLOCK, False)
            frames.append(frame.bytes)
            if not frame.more:
                break
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
