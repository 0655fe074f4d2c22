"""Agents for tests, written from the protocol alone: raw ZeroMQ and JSON, a thread each.

They share no code with the product or its SDK, so that a mistake of both cannot hide. A chunk's bytes are its
event's "body"; a verdict's "body" leaves as a frame, with protocol 1 in base64.
"""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import zmq

Event = dict[str, Any]
Verdict = dict[str, Any]
Decide = Callable[[Event], Verdict | None]  # None = no answer, ever

ALLOW: Verdict = {"decision": "allow"}


class _Thread:
    """A thread with a ZeroMQ context of its own that ends with `close`."""

    def __init__(self, endpoint: str, decide: Decide) -> None:
        self.endpoint = endpoint
        self.decide = decide
        self.seen: list[Event] = []
        self.cancelled: list[list[str]] = []
        self.ready = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.bind(f"inproc://stop-{id(self)}")
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        stop = self._context.socket(zmq.PAIR)
        stop.connect(f"inproc://stop-{id(self)}")
        sock = self._open()
        poller = zmq.Poller()
        poller.register(stop, zmq.POLLIN)
        poller.register(sock, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(200))
            if stop in ready:
                break
            if sock in ready:
                self._message(sock)
            else:
                self._quiet(sock)
        sock.close(0)
        stop.close(0)

    def _open(self) -> "zmq.Socket[bytes]":
        raise NotImplementedError

    def _message(self, sock: "zmq.Socket[bytes]") -> None:
        raise NotImplementedError

    def _quiet(self, sock: "zmq.Socket[bytes]") -> None:
        """Nothing came for a while."""

    def close(self) -> None:
        self._stop.send(b"")
        self.thread.join(5)
        self._stop.close(0)
        self._context.term()

    def __enter__(self) -> "_Thread":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class V2Agent(_Thread):
    """Dials in and speaks zmq-v2."""

    def __init__(
        self,
        endpoint: str,
        name: str,
        events: Sequence[str],
        decide: Decide,
        *,
        instance: str = "t-1",
        batch: int = 16,
        secret: bytes = b"",
    ) -> None:
        self.secret = secret
        self.hello = {"protocol": 2, "agent": name, "instance": instance, "events": list(events), "max_batch": batch}
        self.refused: list[Any] = []
        self.config: Any = None
        self.batches: list[int] = []
        self.drains: list[int] = []  # how many events had come before each DRAIN
        super().__init__(endpoint, decide)

    def _open(self) -> "zmq.Socket[bytes]":
        sock = self._context.socket(zmq.DEALER)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, 20)
        sock.connect(self.endpoint)
        return sock

    def _quiet(self, sock: "zmq.Socket[bytes]") -> None:
        # Unknown yet: HELLO. Known: a PING, which a restarted agentd answers with REFUSE hello_first.
        ask = [b"PING", b"q"] if self.ready.is_set() else [b"HELLO", json.dumps(self.hello).encode()]
        try:
            sock.send_multipart(ask, zmq.NOBLOCK)
        except zmq.Again:
            pass

    def _message(self, sock: "zmq.Socket[bytes]") -> None:
        verb, *frames = sock.recv_multipart()
        if verb == b"CHALLENGE":
            who = f"{self.hello['agent']}\0{self.hello['instance']}".encode()
            proof = hmac.new(self.secret, b"wardgate-v2\0" + frames[0] + who, hashlib.sha256).digest()
            sock.send_multipart([b"PROOF", proof])
        elif verb == b"CONFIG":
            self.config = json.loads(frames[0])
            answer = {"config_version": self.config["config_version"], "accepted": True}
            sock.send_multipart([b"CONFIG_RESULT", json.dumps(answer).encode()])
            sock.send_multipart([b"PING", b"ready"])  # its answer says that the result before it was read
        elif verb == b"EVENTS":
            entries = json.loads(frames[0])
            self.batches.append(len(entries))
            answers: list[list[Any]] = []
            bodies: list[bytes] = []
            for call, _budget, event, *n in entries:
                if n or event["event_type"].endswith(("_chunk", "_frame")):
                    event["body"] = frames[1 + n[0]] if n else b""
                self.seen.append(event)
                verdict = self.decide(event)
                if verdict is None or event["event_type"] == "request_complete":
                    continue
                body = verdict.get("body", b"")
                verdict = {name: value for name, value in verdict.items() if name != "body"}
                answers.append([call, verdict, len(bodies)] if body else [call, verdict])
                bodies += [body] if body else []
            if answers:
                sock.send_multipart([b"VERDICTS", json.dumps(answers).encode(), *bodies])
        elif verb == b"CANCEL":
            self.cancelled += json.loads(frames[0])
        elif verb == b"DRAIN":
            self.drains.append(len(self.seen))
        elif verb == b"PONG" and frames == [b"ready"]:
            self.ready.set()
        elif verb == b"PING":
            sock.send_multipart([b"PONG", *frames])
        elif verb == b"REFUSE":
            self.refused.append(json.loads(frames[0]))
            if self.refused[-1]["code"] == "hello_first":
                self.ready.clear()


class V1Agent(_Thread):
    """Listens and speaks zmq-v1. A ROUTER in REP's place: REP could not receive again after a silence."""

    def _open(self) -> "zmq.Socket[bytes]":
        sock = self._context.socket(zmq.ROUTER)
        sock.bind(self.endpoint)
        return sock

    def _message(self, sock: "zmq.Socket[bytes]") -> None:
        *envelope, body = sock.recv_multipart()
        message = json.loads(body)
        verdict: Verdict | None = ALLOW
        if message["event_type"] == "configure":
            self.ready.set()
        else:
            event = message["payload"]
            if "data" in event:
                event["body"] = base64.b64decode(event["data"])
            self.seen.append(event)
            verdict = self.decide(event)
        if verdict is not None:
            sock.send_multipart([*envelope, json.dumps({"version": 1, **_in_json(verdict)}).encode()])


def _in_json(verdict: Verdict) -> Verdict:
    """Protocol 1's way to change a chunk: `data` is null, "" or base64."""
    verdict = dict(verdict)
    body = verdict.pop("body", b"")
    for name in ("request_body_mutation", "response_body_mutation"):
        if "action" in verdict.get(name, ()):
            action = verdict[name]["action"]
            data = None if action == "pass" else base64.b64encode(body).decode() if action == "replace" else ""
            verdict[name] = {"chunk_index": verdict[name]["chunk_index"], "data": data}
    return verdict
