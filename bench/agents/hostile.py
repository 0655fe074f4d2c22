"""Agents that mean harm, one mode each: raw ZMTP over a unix socket, so that no library keeps them from anything.

    hostile.py MODE --connect ipc:///.../agents/v2 --name AGENT [--secret-file FILE] [--victim AGENT]

Each registers properly (an impostor tries to), does its harm, and dials again 20 ms after it was cut, for ever.
They share no code with the product. What happens to others meanwhile is looked at elsewhere: by the bench
(`bench/run.py --isolation`) and by tests/e2e/test_isolation.py.

Kind: IO.
"""

import argparse
import hashlib
import hmac
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER\x08Identity" + struct.pack(">I", 0)
MORE, LONG, COMMAND = 1, 2, 4
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
DIAL_AGAIN_S = 0.02
ALLOW = {"decision": "allow"}
BLOCK = {"decision": {"block": {"status": 418, "body": "by the wrong agent\n"}}}


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame as ZMTP 3 has it on the wire."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return struct.pack(">BQ", flags | LONG, len(body)) + body


def message(*frames: bytes) -> bytes:
    return b"".join([*(frame(body, MORE) for body in frames[:-1]), frame(frames[-1])])


def verdicts(entries: Sequence[Any]) -> bytes:
    return message(b"VERDICTS", json.dumps(entries).encode())


class Gone(Exception):
    """The connection has ended."""


class Wire:
    """One connection to agentd's socket, as bytes."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self._unread = b""
        try:
            self.socket.connect(path)
            self.socket.sendall(GREETING + frame(READY, COMMAND))
            # Theirs, whole: what is said before their READY breaks the protocol.
            while len(self._unread) < len(GREETING) or (ready := self._frame(len(GREETING))) is None:
                self._receive()
        except OSError as error:
            self.socket.close()
            raise Gone from error
        self._unread = self._unread[ready[2] :]

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Gone from error

    def _receive(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        self._unread += data

    def read(self, wait_s: float) -> Iterator[list[bytes]]:
        """The messages that are there, or come first within so long."""
        if select.select([self.socket], [], [], wait_s)[0]:
            try:
                self._receive()
            except OSError as error:
                raise Gone from error
        at, frames = 0, []
        while True:
            found = self._frame(at)
            if found is None:
                break
            flags, body, end = found
            if flags & COMMAND:
                self._unread = self._unread[end:]
                at = 0
                continue
            frames.append(body)
            at = end
            if not flags & MORE:
                self._unread = self._unread[at:]
                yield frames
                at, frames = 0, []

    def _frame(self, at: int) -> tuple[int, bytes, int] | None:
        data = self._unread
        if len(data) < at + 2:
            return None
        flags, size, start = data[at], data[at + 1], at + 2
        if flags & LONG:
            if len(data) < at + 9:
                return None
            size, start = int.from_bytes(data[at + 1 : at + 9], "big"), at + 9
        if len(data) < start + size:
            return None
        return flags, data[start : start + size], start + size


class Hostile:
    """Registers as `name`, then does `harm(wire)` until it is cut."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: str = options.connect.removeprefix("ipc://")
        self.name: str = options.name
        self.secret = b""
        if options.secret_file:
            with open(options.secret_file, "rb") as file:
                self.secret = file.read().removesuffix(b"\n")
        self.victim: str = options.victim or options.name
        self.instance = f"hostile-{os.getpid()}"
        self.harm: Callable[[Wire], None] = getattr(self, options.mode.replace("-", "_"))

    def run(self) -> None:
        while True:
            try:
                wire = Wire(self.path)
                try:
                    if self.harm != self.impostor:
                        self.register(wire, self.name, self.secret)
                    self.harm(wire)
                finally:
                    wire.socket.close()
            except Gone:
                pass
            time.sleep(DIAL_AGAIN_S)

    def hello(self, wire: Wire, name: str) -> None:
        hello = {"protocol": 2, "agent": name, "instance": self.instance, "events": ["request_headers"]}
        wire.send(message(b"HELLO", json.dumps({**hello, "max_concurrency": 10_000, "max_batch": 256}).encode()))

    def register(self, wire: Wire, name: str, secret: bytes) -> None:
        """HELLO to CONFIG_RESULT; whoever is refused waits for the cut."""
        self.hello(wire, name)
        while True:
            for verb, *frames in wire.read(1.0):
                if verb == b"CHALLENGE":
                    who = f"{name}\0{self.instance}".encode()
                    mac = hmac.new(secret, b"wardgate-v2\0" + frames[0] + who, hashlib.sha256).digest()
                    wire.send(message(b"PROOF", mac))
                elif verb == b"CONFIG":
                    version = json.loads(frames[0])["config_version"]
                    result = {"config_version": version, "accepted": True}
                    wire.send(message(b"CONFIG_RESULT", json.dumps(result).encode()))
                    return
                elif verb == b"REFUSE":
                    time.sleep(0.1)
                    raise Gone

    def calls(self, wire: Wire, wait_s: float = 1.0) -> Iterator[tuple[str, int]]:
        """What it is asked, as it comes; says PONG, since the dead are not asked."""
        for verb, *frames in wire.read(wait_s):
            if verb == b"EVENTS":
                yield from ((call, budget_ms) for call, budget_ms, *_ in json.loads(frames[0]))
            elif verb == b"PING":
                wire.send(message(b"PONG", *frames))
            elif verb == b"REFUSE":
                raise Gone

    # --- what they do -----------------------------------------------------------------------------

    def mute(self, wire: Wire) -> None:
        """Never answers."""
        while True:
            for _ in self.calls(wire):
                pass

    def late(self, wire: Wire) -> None:
        """Answers 50 ms after the time it was given."""
        due: deque[tuple[float, str]] = deque()
        while True:
            for call, budget_ms in self.calls(wire, 0.01 if due else 1.0):
                due.append((time.monotonic() + (budget_ms + 50) / 1000, call))
            ready = []
            while due and due[0][0] <= time.monotonic():
                ready.append([due.popleft()[1], BLOCK])
            if ready:
                wire.send(verdicts(ready))

    def oversized(self, wire: Wire) -> None:
        """A message of 16 MiB and a byte whenever it is asked something."""
        while True:
            if list(self.calls(wire)):
                wire.send(message(b"VERDICTS", bytes(MAX_MESSAGE_BYTES + 1)))

    def endless(self, wire: Wire) -> None:
        """A message that has no end, its frames as large as they may be sent in one go."""
        while not list(self.calls(wire)):
            pass
        wire.send(frame(b"VERDICTS", MORE))
        part = frame(bytes(1 << 20), MORE)
        while True:
            wire.send(part)

    def crumbs(self, wire: Wire) -> None:
        """A message that has no end, its frames as small as they get: each costs agentd more than its sender."""
        while not list(self.calls(wire)):
            pass
        wire.send(frame(b"VERDICTS", MORE))
        part = frame(b"", MORE) * 30_000
        while True:
            wire.send(part)

    def grains(self, wire: Wire) -> None:
        """A message of half a million frames, whole, whenever it is asked something."""
        while True:
            if list(self.calls(wire)):
                wire.send(frame(b"VERDICTS", MORE) + frame(b"", MORE) * 500_000 + frame(b""))

    def garbage(self, wire: Wire) -> None:
        """Bytes that mean nothing in place of each answer."""
        kinds = [
            lambda: message(b"VERDICTS", os.urandom(40)),
            lambda: message(os.urandom(12), os.urandom(300)),
            lambda: message(b"VERDICTS", b'[["x",{"decision":"perhaps"}],7,[]]'),
            lambda: message(b""),
        ]
        turn = 0
        while True:
            for _ in self.calls(wire):
                wire.send(kinds[turn % len(kinds)]())
                turn += 1

    def stranger(self, wire: Wire) -> None:
        """Answers for calls it was not asked about: those numbered before its own are its neighbours'."""
        own: deque[str] = deque(maxlen=5_000)
        while True:
            for call, _ in self.calls(wire):
                own.append(call)
                nonce, _, number = call.rpartition("-")
                near = (f"{nonce}-{int(number, 16) - step:x}" for step in range(1, 200))
                wire.send(verdicts([[other, BLOCK] for other in near if other not in own]))

    def heavy(self, wire: Wire) -> None:
        """JSON within every limit of size that takes as long as possible to read; some of it answers its calls."""
        fields = b'{"set":{"name":"x-a","value":"1"}},'
        bulk = b'["%b",{"decision":"allow","request_headers":[' + fields * 55_000 + fields[:-1] + b"]}]"
        strange = json.dumps([[f"nobody-{number:x}", ALLOW] for number in range(300_000)]).encode()
        kinds: list[Callable[[bytes], bytes]] = [
            lambda call: b"[" + bulk.replace(b"%b", call) + b"]",
            lambda call: b"[" + b"7," * 7_000_000 + b"7]",
            lambda call: strange,
        ]
        turn = 0
        while True:
            for call, _ in self.calls(wire):
                wire.send(message(b"VERDICTS", kinds[turn % 3](call.encode())))
                turn += 1

    def impostor(self, wire: Wire) -> None:
        """Registers as its victim, without the victim's secret."""
        self.register(wire, self.victim, b"guessed")
        self.stranger(wire)

    def flood(self, wire: Wire) -> None:
        """More messages than anybody can read, of all kinds, large ones among them."""
        metrics = json.dumps({"counters": [{"name": "n", "labels": {"i": str(i)}, "value": 1} for i in range(900)]})
        mix = message(b"PING", b"x" * 200) * 400 + message(b"HEALTH", b'{"state":"healthy"}') * 100
        mix += message(b"METRICS", metrics.encode()) + message(b"NONSENSE", bytes(60_000))
        mix += verdicts([["nobody-1", ALLOW]]) * 50
        while True:
            wire.send(mix)

    def deaf(self, wire: Wire) -> None:
        """Reads nothing, and says that it is well, so that nobody takes it for dead."""
        while True:
            wire.send(message(b"HEALTH", b'{"state":"healthy"}'))
            time.sleep(0.2)


MODES = (
    "mute", "late", "oversized", "endless", "crumbs", "grains", "garbage", "heavy", "stranger", "impostor",
    "flood", "deaf",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="hostile.py", description=__doc__.rpartition("\n\nKind")[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--connect", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--secret-file")
    parser.add_argument("--victim", help="whom an impostor claims to be")
    Hostile(parser.parse_args()).run()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
