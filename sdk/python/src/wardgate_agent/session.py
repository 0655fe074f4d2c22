"""An agent's side of its connection, as its author sees it: `self.session`.

It is there before the first connection and stays the same over reconnects: what was said last (paused,
health) is said again to a new agentd. It holds wishes and facts; conversation.py does the talking.

Kind: pure.
"""

import threading
from collections.abc import Callable
from typing import Any, Literal, get_args

import orjson

from wardgate_agent import wire
from wardgate_agent.events import Configure
from wardgate_agent.metrics import Metrics

HealthState = Literal["healthy", "degraded", "draining", "unhealthy"]
_Send = Callable[[list[bytes]], Any]
_FromThread = Callable[[_Send, list[bytes]], Any]


class Session:
    """Pause, resume, health, metrics; and what is known about the connection.

    `pause`, `resume` and `health` may be called from any thread, everything else from the loop's.
    """

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.agent = ""  # the name that HELLO carries
        self.instance = ""
        self.is_ready = False  # configured: events may come
        self.configuration: Configure | None = None  # the last one accepted
        self._is_paused = False
        self._health: bytes | None = None
        self._send: _Send | None = None
        self._from_thread: _FromThread | None = None
        self._thread = 0

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def pause(self) -> None:
        """No new requests to this instance; those it has seen go on."""
        self._is_paused = True
        self._say([wire.PAUSE])

    def resume(self) -> None:
        """New requests again."""
        self._is_paused = False
        self._say([wire.RESUME])

    def health(self, state: HealthState, message: str | None = None, load: float | None = None) -> None:
        """Tell how this instance is; agentd prefers the healthy and the less loaded (`load` from 0 to 1)."""
        if state not in get_args(HealthState):
            raise ValueError(f"health {state!r} is not one of {', '.join(get_args(HealthState))}")
        if load is not None and not 0 <= load <= 1:
            raise ValueError(f"load {load!r} is not from 0 to 1")
        report: dict[str, Any] = {"state": state}
        if message is not None:
            report["message"] = message[: wire.MAX_REASON_CHARS].encode("utf-8", "replace").decode()
        if load is not None:
            report["load"] = load
        self._health = orjson.dumps(report)
        self._say([wire.HEALTH, self._health])

    def _say(self, frames: list[bytes]) -> None:
        send = self._send
        if send is None:
            return  # said by `greeting` once there is a session
        if self._from_thread is not None and threading.get_ident() != self._thread:
            self._from_thread(send, frames)
        else:
            send(frames)

    def greeting(self) -> list[list[bytes]]:
        """What a new agentd must be told again."""
        frames: list[list[bytes]] = []
        if self._health is not None:
            frames.append([wire.HEALTH, self._health])
        if self._is_paused:
            frames.append([wire.PAUSE])
        return frames

    def opened(self, send: _Send, from_thread: _FromThread | None) -> None:
        """There is somebody to talk to. `from_thread` is the loop's call_soon_threadsafe."""
        self._send = send
        self._from_thread = from_thread
        self._thread = threading.get_ident()

    def closed(self) -> None:
        """There is nobody to talk to."""
        self._send = None
        self.is_ready = False
