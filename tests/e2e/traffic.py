"""Constant traffic for the failure matrix: one thread, many connections, and a record of every request.

A lane is one connection that asks again and again at a fixed pace, whatever it gets, and dials again when
it has lost its connection; `once` makes lanes that ask a single time. What an answer is called:

    verdict     200 that the agent has let pass, or its own 403: signed for this very request
    passed      200 whose request had no verdict
    503 ...     any other status
    closed      the connection ended before the first byte of the answer; cut: inside the answer
    refused     nobody listened
    late        nothing came for PATIENCE_S
    wrong       something else: another request's answer, a false signature, a byte too many

Nothing is judged here.

Kind: IO.
"""

import re
import selectors
import socket
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.e2e.recording_upstream import body_of
from tests.e2e.signing_agent import sign

Address = tuple[str, int] | str
PATIENCE_S = 12.0
BLOCK_EVERY = 8  # of a lane's requests one in so many is to be blocked
_TICK_S = 0.02


class Sample(NamedTuple):
    """One request as the client saw it; times are time.monotonic()."""

    lane: int
    route: str
    sent: float
    done: float
    end: str

    @property
    def took_s(self) -> float:
        return self.done - self.sent


class Lane:
    """One connection's requests, one after the other."""

    def __init__(
        self, number: int, route: str, pace_s: float, fields: Mapping[str, str], is_once: bool, is_plain: bool
    ) -> None:
        self.number = number
        self.route = route
        self.pace_s = pace_s
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.is_once = is_once
        self.is_plain = is_plain  # asks for no blocks
        self.socket: socket.socket | None = None
        self.port = 0  # of its own end, while it is connected over TCP
        self.buffer = b""
        self.asked = 0
        self.request_id = ""
        self.is_block = False
        self.sent = 0.0  # 0 = nothing is asked now
        self.due = 0.0
        self.last: Sample | None = None

    @property
    def is_done(self) -> bool:
        return self.is_once and self.last is not None and not self.sent

    def request(self) -> bytes:
        self.asked += 1
        self.request_id = f"{self.number}.{self.asked}"
        self.is_block = not self.is_plain and not self.is_once and self.asked % BLOCK_EVERY == 0
        block = "X-Block: 1\r\n" if self.is_block else ""
        head = f"GET /{self.route}/{self.request_id} HTTP/1.1\r\nHost: matrix\r\nX-Id: {self.request_id}\r\n"
        return f"{head}{block}{self.fields}\r\n".encode()

    def read(self, data: bytes) -> tuple[str, bool]:
        """(what the answer is called, "" = it is not whole yet; the connection ends with it)."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)", head) if found else None
        if not found or (length and len(body) < int(length[1])):
            return "", False
        self.buffer = b""
        is_last = re.search(rb"(?im)^connection: *close", head) is not None
        if length is None or len(body) > int(length[1]):
            return "wrong", True
        return self._name(int(head.split(None, 2)[1]), head, body), is_last

    def _name(self, status: int, head: bytes, body: bytes) -> str:
        signature = sign(self.request_id).encode()
        if status == 200:
            got = re.search(rb"(?im)^x-got: *(\S+)", head)
            if body != body_of(self.request_id) or got is None or got[1] not in (signature, b"-"):
                return "wrong"
            if got[1] == b"-":
                return "passed"
            return "wrong" if self.is_block else "verdict"  # a block that was not obeyed
        if status == 403:
            is_true = self.is_block and b"x-verdict: " + signature in head.lower()
            return "verdict" if is_true else "wrong"
        return str(status)


class Traffic:
    """The thread. `lanes` per route, each asking every `pace_s`; `samples` grows while it runs."""

    def __init__(self, address: Address, routes: Iterable[str], lanes: int = 10, pace_s: float = 0.05) -> None:
        self.address = address
        self.samples: list[Sample] = []
        self.lanes: list[Lane] = []
        self._new: deque[Lane] = deque()
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._is_ending = False
        for route in routes:
            for i in range(lanes):
                lane = self._make(route, pace_s, {})
                lane.due = time.monotonic() + pace_s * i / lanes
                self._new.append(lane)
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _make(
        self, route: str, pace_s: float, fields: Mapping[str, str], is_once: bool = False, is_plain: bool = False
    ) -> Lane:
        self._number += 1
        return Lane(self._number, route, pace_s, fields, is_once, is_plain)

    # --- from the test's thread -------------------------------------------------------------------

    def once(self, route: str, count: int, fields: Mapping[str, str]) -> list[Lane]:
        """`count` new connections that ask once each; `lane.last` is what came of it."""
        made = [self._make(route, 0, fields, is_once=True) for _ in range(count)]
        self._new.extend(made)
        return made

    def burst(self, route: str, lanes: int, seconds: float) -> float:
        """Answers a second when `lanes` more connections ask without a pause, for so long."""
        made = [self._make(route, 0, {}, is_plain=True) for _ in range(lanes)]
        self._new.extend(made)
        began = len(self.samples)
        numbers = {lane.number for lane in made}
        time.sleep(seconds)
        for lane in made:
            lane.is_once = True  # ends with the answer that it waits for
        rows = [sample for sample in self.samples[began:] if sample.lane in numbers]
        assert {sample.end for sample in rows} == {"passed"}, Counter(sample.end for sample in rows)
        return len(rows) / (rows[-1].done - rows[0].sent)

    def touched(self, start: float, end: float, route: str = "") -> list[Sample]:
        """Whatever was under way between the two times, and has ended."""
        return [s for s in self.samples if s.done >= start and s.sent < end and route in ("", s.route)]

    def sent(self, start: float, end: float, route: str = "") -> list[Sample]:
        """Whatever was sent between the two times, and has ended."""
        return [s for s in self.touched(start, end, route) if s.sent >= start]

    def close(self) -> None:
        self._is_ending = True
        self._thread.join(5)
        for lane in self.lanes:
            self._drop(lane)
        self._selector.close()

    # --- the thread -------------------------------------------------------------------------------

    def _main(self) -> None:
        while not self._is_ending:
            while self._new:
                self.lanes.append(self._new.popleft())
            now = time.monotonic()
            soonest = now + _TICK_S
            for lane in self.lanes:
                if lane.sent:
                    if now - lane.sent > PATIENCE_S:
                        self._ended(lane, "late", True)
                elif lane.due <= now:
                    self._ask(lane)
                elif lane.due < soonest:
                    soonest = lane.due
            for key, _ in self._selector.select(max(0.0, soonest - time.monotonic())):
                self._read(key.data)
            if any(lane.is_done for lane in self.lanes):
                for lane in self.lanes:
                    if lane.is_done:
                        self._drop(lane)
                self.lanes = [lane for lane in self.lanes if not lane.is_done]

    def _ask(self, lane: Lane) -> None:
        request = lane.request()
        lane.sent = time.monotonic()
        try:
            if lane.socket is None:
                self._dial(lane)
            assert lane.socket is not None
            lane.socket.sendall(request)
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):
            self._ended(lane, "refused", True)
        except OSError:
            self._ended(lane, "closed", True)

    def _dial(self, lane: Lane) -> None:
        made = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        try:
            made.settimeout(PATIENCE_S)
            made.connect(self.address)
            if not isinstance(self.address, str):
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                lane.port = made.getsockname()[1]
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        lane.socket = made
        lane.buffer = b""
        self._selector.register(made, selectors.EVENT_READ, lane)

    def _read(self, lane: Lane) -> None:
        if lane.socket is None:
            return
        try:
            data = lane.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not lane.sent:  # idle: the other end may close, and nothing else
            if data:
                self._ended(lane, "wrong", True)
            self._drop(lane)
        elif not data:
            self._ended(lane, "cut" if lane.buffer else "closed", True)
        else:
            name, is_last = lane.read(data)
            if name:
                self._ended(lane, name, is_last or name == "wrong")

    def _ended(self, lane: Lane, end: str, is_gone: bool) -> None:
        now = time.monotonic()
        lane.last = Sample(lane.number, lane.route, lane.sent or now, now, end)
        self.samples.append(lane.last)
        lane.due = max(now, lane.sent + lane.pace_s) if end != "refused" else now + max(lane.pace_s, _TICK_S)
        lane.sent = 0.0
        if is_gone:
            self._drop(lane)

    def _drop(self, lane: Lane) -> None:
        if lane.socket is not None:
            self._selector.unregister(lane.socket)
            lane.socket.close()
            lane.socket = None
            lane.port = 0


def median_ms(seconds: Iterable[float]) -> float:
    """Of durations in seconds; 0 where there are none."""
    values = list(seconds)
    return statistics.median(values) * 1000 if values else 0.0
