"""An agent in a process of its own whose verdict repeats the request's number (hostile.py, `own_verdict`).

    number_agent.py v2|v1 ENDPOINT NAME INSTANCE LATE_MS [SECRET_FILE]

With a LATE_MS above 0 every request whose number is 3 modulo 40 is answered that much later, rightly.
"""

import hashlib
import hmac
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import zmq

from tests.e2e.hostile import is_late, own_verdict


def v2(sock: "zmq.Socket[bytes]", name: str, instance: str, late_s: float, secret: bytes) -> None:
    hello = {"protocol": 2, "agent": name, "instance": instance, "events": ["request_headers"]}
    sock.send_multipart([b"HELLO", json.dumps({**hello, "max_batch": 64, "max_concurrency": 5_000}).encode()])
    due: deque[tuple[float, list[Any]]] = deque()
    while True:
        answers = []
        if sock.poll(10 if due else 1_000):
            verb, *frames = sock.recv_multipart()
            if verb == b"CONFIG":
                result = {"config_version": json.loads(frames[0])["config_version"], "accepted": True}
                sock.send_multipart([b"CONFIG_RESULT", json.dumps(result).encode()])
            elif verb == b"CHALLENGE":
                said = b"wardgate-v2\0" + frames[0] + f"{name}\0{instance}".encode()
                sock.send_multipart([b"PROOF", hmac.new(secret, said, hashlib.sha256).digest()])
            elif verb == b"PING":
                sock.send_multipart([b"PONG", *frames])
            elif verb == b"EVENTS":
                for call, _budget, event in json.loads(frames[0]):
                    entry = [call, own_verdict(event)]
                    if late_s and is_late(event):
                        due.append((time.monotonic() + late_s, entry))
                    else:
                        answers.append(entry)
        while due and due[0][0] <= time.monotonic():
            answers.append(due.popleft()[1])
        if answers:
            sock.send_multipart([b"VERDICTS", json.dumps(answers).encode()])


def v1(sock: "zmq.Socket[bytes]", late_s: float) -> None:
    """A ROUTER in REP's place: an answer may wait while others go."""
    due: deque[tuple[float, list[bytes]]] = deque()
    while True:
        if sock.poll(10 if due else 1_000):
            *envelope, body = sock.recv_multipart()
            message = json.loads(body)
            event = message["payload"]
            is_configure = message["event_type"] == "configure"
            verdict = {"decision": "allow"} if is_configure else own_verdict(event)
            frames = [*envelope, json.dumps({"version": 1, **verdict}).encode()]
            if late_s and not is_configure and is_late(event):
                due.append((time.monotonic() + late_s, frames))
            else:
                sock.send_multipart(frames)
        while due and due[0][0] <= time.monotonic():
            sock.send_multipart(due.popleft()[1])


def main(protocol: str, endpoint: str, name: str, instance: str, late_ms: str, secret_file: str = "") -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    late_s = int(late_ms) / 1000
    if protocol == "v1":
        sock = context.socket(zmq.ROUTER)
        sock.bind(endpoint)
        v1(sock, late_s)
    else:
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.connect(endpoint)
        v2(sock, name, instance, late_s, Path(secret_file).read_bytes().rstrip(b"\n"))


if __name__ == "__main__":
    main(*sys.argv[1:])
