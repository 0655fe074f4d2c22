"""Many instances of many agents in one process, for tests: raw ZeroMQ and JSON, none of the product's code.

    python crowd.py ENDPOINT SECRET INSTANCES WORDS AGENT...

Says `ready` when every instance has its CONFIG. Calls are kept unanswered until the file WORDS says `answer`: then
all that are kept are answered, and all that come, until it says something else.
"""

import hashlib
import hmac
import json
import resource
import sys
from pathlib import Path
from typing import Any

import zmq

ALLOW = {"decision": "allow"}


def main(endpoint: str, secret: bytes, instances: int, words: Path, agents: list[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4_096)
    poller = zmq.Poller()
    who: dict[Any, tuple[str, str]] = {}
    for agent in agents:
        for number in range(instances):
            sock = context.socket(zmq.DEALER)
            sock.setsockopt(zmq.LINGER, 0)
            sock.connect(endpoint)
            hello = {
                "protocol": 2, "agent": agent, "instance": f"i-{number}", "events": ["request_headers"],
                "max_concurrency": 100, "max_batch": 16,
            }  # fmt: skip
            sock.send_multipart([b"HELLO", json.dumps(hello).encode()])
            who[sock] = (agent, f"i-{number}")
            poller.register(sock, zmq.POLLIN)
    kept: dict[Any, list[str]] = {sock: [] for sock in who}
    ready: set[Any] = set()
    while True:
        ripe = poller.poll(20)
        is_holding = words.read_text() != "answer"
        if not is_holding:
            for sock, calls in kept.items():
                if calls:
                    answer(sock, calls)
                    calls.clear()
        for sock, _ in ripe:
            verb, *frames = sock.recv_multipart()
            if verb == b"CHALLENGE":
                agent, instance = who[sock]
                said = b"wardgate-v2\0" + frames[0] + f"{agent}\0{instance}".encode()
                sock.send_multipart([b"PROOF", hmac.new(secret, said, hashlib.sha256).digest()])
            elif verb == b"CONFIG":
                version = json.loads(frames[0])["config_version"]
                result = {"config_version": version, "accepted": True}
                sock.send_multipart([b"CONFIG_RESULT", json.dumps(result).encode()])
                ready.add(sock)
                if len(ready) == len(who):
                    print("ready", flush=True)
            elif verb == b"EVENTS":
                calls = [call for call, *_ in json.loads(frames[0])]
                if is_holding:
                    kept[sock] += calls
                else:
                    answer(sock, calls)
            elif verb == b"CANCEL":
                gone = {call for call, _ in json.loads(frames[0])}
                kept[sock] = [call for call in kept[sock] if call not in gone]
            elif verb == b"PING":
                sock.send_multipart([b"PONG", *frames])
            elif verb == b"REFUSE":
                print("refused", frames[0].decode(), flush=True)


def answer(sock: Any, calls: list[str]) -> None:
    """All of them in one message."""
    sock.send_multipart([b"VERDICTS", json.dumps([[call, ALLOW] for call in calls]).encode()])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).read_bytes(), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
