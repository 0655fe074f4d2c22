"""A server that answers like a provider of language models, in a thread; what it says is the request's last text.

    POST /v1/chat/completions, /v1/messages      JSON, or events where the body says "stream": true

The request's header `x-do` asks for something else: `fail STATUS`, `fail-in-pieces STATUS` (the head first), `early
503` (before the body was read), `cut` (a stream breaks off in the middle), `garbage` (a stream of no events), `close`
(no response at all), `gzip` (a coded response).
"""

import gzip
import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def openai_events(text: str, model: str) -> list[bytes]:
    head = {"id": "c", "object": "chat.completion.chunk", "model": model}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": p} for p in pieces(text))]
    events = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events.append({**head, "choices": [], "usage": USAGE})
    return [b"data: %b\n\n" % json.dumps(event).encode() for event in events] + [b"data: [DONE]\n\n"]


def anthropic_events(text: str, model: str) -> list[bytes]:
    message = {"id": "m", "role": "assistant", "content": [], "model": model, "usage": {"input_tokens": 11}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces(text)
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    return [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        if self.headers.get("x-do") == "early 503" and not self.server.provider.is_spare:
            self.close_connection = True  # not a byte of the body is read
            self._answer(503, b"{}")
            return
        if self.headers.get("transfer-encoding") == "chunked":
            raw = b""
            while size := int(self.rfile.readline(), 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        provider = self.server.provider
        provider.seen.append(raw)
        provider.heads.append({name.lower(): value for name, value in self.headers.items()})
        do = self.headers.get("x-do", "") if not provider.is_spare else ""
        if do == "close":
            self.close_connection = True
            return
        if do.startswith("fail"):
            self._answer(int(do.split()[1]), b'{"error":{"message":"not now"}}', do)
            return
        if self.headers.get("content-encoding") == "gzip":
            raw = gzip.decompress(raw)
        body = json.loads(raw)
        content = body["messages"][-1]["content"]
        said = content if isinstance(content, str) else content[-1]["text"]
        text = f"{provider.name}: {said}"
        is_openai = self.path == "/v1/chat/completions"
        if body.get("stream"):
            events = (openai_events if is_openai else anthropic_events)(text, body["model"])
            self._stream(events, do)
            return
        reply: dict[str, Any]
        if is_openai:
            reply = {"model": body["model"], "choices": [{"message": {"content": text}}], "usage": USAGE}
        else:
            reply = {"model": body["model"], "content": [{"type": "text", "text": text}],
                     "usage": {"input_tokens": 11, "output_tokens": 7}}  # fmt: skip
        self._answer(200, json.dumps(reply).encode(), do)

    def _answer(self, status: int, body: bytes, do: str = "") -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if do == "gzip":
            body = gzip.compress(body)
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if do.startswith("fail-in-pieces"):
            self.wfile.flush()
        self.wfile.write(body)

    def _stream(self, events: list[bytes], do: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        if do == "gzip":
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if do == "garbage":
            events = [b"data: {oh no\n\n"]
        elif do == "cut":
            events = events[: len(events) // 2]
        elif do == "gzip":
            packer = zlib.compressobj(wbits=31)
            events = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in events] + [packer.flush()]
        for event in events:
            for part in filter(None, (event[:9], event[9:])):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()
        if do == "cut":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not for it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    provider: "FakeProvider"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A proxy that hangs up is part of the tests."""


class FakeProvider:
    """`is_spare`: does nothing else than asked for in the body."""

    def __init__(self, name: str, *, is_spare: bool = False) -> None:
        self.name = name
        self.is_spare = is_spare
        self.seen: list[bytes] = []
        self.heads: list[dict[str, str]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
