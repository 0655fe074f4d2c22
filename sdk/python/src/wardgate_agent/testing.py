"""Test an agent's hooks without a proxy.

    from wardgate_agent.testing import TestClient

    def test_admin_is_blocked():
        with TestClient(MyAgent()) as client:
            client.request_headers("GET", "/admin").assert_blocked(403)

Events are built as Wardgate builds them and go through the same decoding, dispatching and encoding as
in production, so what a test sees is what agentd would. In an async test use AsyncTestClient and await
the same calls.

Kind: pure (runs hooks on an event loop of its own, or on the running one).
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import orjson

from wardgate_agent import wire
from wardgate_agent.agent import Agent
from wardgate_agent.answer import Answer, HeadersLike, header_map
from wardgate_agent.body import Body, Talk, pieces, talk
from wardgate_agent.dispatcher import Dispatcher
from wardgate_agent.events import Configure

R = TypeVar("R")
B = TypeVar("B")
_CORRELATION_ID = "test-0000000000000001"


class _Client(Generic[R, B]):
    """The events that can be sent; how they are sent is the subclass's matter."""

    def _send(self, event: Any, body: bytes) -> R:
        raise NotImplementedError

    def _talk(self, conversation: Talk) -> B:
        raise NotImplementedError

    def send_raw(self, event: Any, body: bytes = b"") -> R:
        """Any event, as its JSON would decode."""
        return self._send(event, body)

    def request_headers(
        self,
        method: str = "GET",
        uri: str = "/",
        headers: HeadersLike | None = None,
        *,
        has_body: bool = False,
        **metadata: Any,
    ) -> R:
        """A request's head. `metadata` members (client_ip="192.0.2.1", ...) replace the defaults."""
        event = _head("request_headers", method, uri, metadata)
        event |= {"headers": header_map(headers or {}), "has_body": has_body}
        return self._send(event, b"")

    def response_headers(
        self,
        status: int = 200,
        headers: HeadersLike | None = None,
        *,
        method: str = "GET",
        uri: str = "/",
        has_body: bool = True,
        **metadata: Any,
    ) -> R:
        """A response's head."""
        event = _head("response_headers", method, uri, metadata)
        event |= {"status": status, "headers": header_map(headers or {}), "has_body": has_body}
        return self._send(event, b"")

    def request_body_chunk(
        self,
        body: bytes = b"",
        *,
        chunk_index: int = 0,
        is_last: bool = True,
        bytes_received: int | None = None,
        total_size: int | None = None,
    ) -> R:
        """A piece of a request's body."""
        event = _chunk("request_body_chunk", chunk_index, is_last, total_size)
        event["bytes_received"] = len(body) if bytes_received is None else bytes_received
        return self._send(event, body)

    def response_body_chunk(
        self,
        body: bytes = b"",
        *,
        chunk_index: int = 0,
        is_last: bool = True,
        bytes_sent: int | None = None,
        total_size: int | None = None,
    ) -> R:
        """A piece of a response's body."""
        event = _chunk("response_body_chunk", chunk_index, is_last, total_size)
        event["bytes_sent"] = len(body) if bytes_sent is None else bytes_sent
        return self._send(event, body)

    def request_body(
        self,
        data: bytes | Iterable[bytes],
        *,
        chunk_bytes: int | None = None,
        is_sized: bool = True,
        correlation_id: str = _CORRELATION_ID,
    ) -> B:
        """A whole request body, chunk by chunk as the proxy shows it; the answer says what goes upstream.

        `data`: the chunks, or bytes that are cut at `chunk_bytes` (without it they are one chunk, as where the route
        buffers). `is_sized`: whether Content-Length was told.
        """
        return self._body("request_body_chunk", pieces(data, chunk_bytes), is_sized, correlation_id)

    def response_body(
        self,
        data: bytes | Iterable[bytes],
        *,
        chunk_bytes: int | None = None,
        is_sized: bool = True,
        correlation_id: str = _CORRELATION_ID,
    ) -> B:
        """The same for a response's body; the answer says what the client gets."""
        return self._body("response_body_chunk", pieces(data, chunk_bytes), is_sized, correlation_id)

    def _body(self, event_type: str, chunks: list[bytes], is_sized: bool, correlation_id: str) -> B:
        return self._talk(talk(event_type, chunks, sum(map(len, chunks)) if is_sized else None, correlation_id))

    def request_complete(self, status: int = 200, *, method: str = "GET", uri: str = "/", **members: Any) -> R:
        """A request is over; nothing is answered."""
        event = _head("request_complete", method, uri, members.pop("metadata", {}))
        event |= {
            "status": status,
            "duration_ms": 1.5,
            "request_body_size": 0,
            "response_body_size": 0,
            "upstream_attempts": 1,
        }
        return self._send(event | members, b"")

    def websocket_frame(
        self,
        payload: bytes | str = b"",
        *,
        opcode: str | None = None,
        client_to_server: bool = True,
        frame_index: int = 0,
        fin: bool = True,
        client_ip: str = "127.0.0.1",
        route_id: str = "default",
    ) -> R:
        """A WebSocket message: text for str, binary for bytes unless `opcode` says otherwise."""
        event = {
            "event_type": "websocket_frame",
            "correlation_id": _CORRELATION_ID,
            "opcode": opcode or ("text" if isinstance(payload, str) else "binary"),
            "client_to_server": client_to_server,
            "frame_index": frame_index,
            "fin": fin,
            "route_id": route_id,
            "client_ip": client_ip,
        }
        return self._send(event, payload.encode() if isinstance(payload, str) else payload)

    def guardrail_inspect(
        self,
        content: str,
        *,
        inspection_type: str = "prompt_injection",
        direction: str = "prompt",
        model: str | None = None,
        categories: Sequence[str] = (),
    ) -> R:
        """Text to or from a model."""
        event: dict[str, Any] = {
            "event_type": "guardrail_inspect",
            "correlation_id": _CORRELATION_ID,
            "inspection_type": inspection_type,
            "content": content,
            "direction": direction,
            "model": model,
            "categories": list(categories),
            "metadata": {},
        }
        return self._send(event, b"")


def _head(event_type: str, method: str, uri: str, metadata: dict[str, Any]) -> dict[str, Any]:
    known = {
        "correlation_id": _CORRELATION_ID,
        "request_id": _CORRELATION_ID,
        "client_ip": "127.0.0.1",
        "client_port": 40000,
        "server_name": "example.com",
        "protocol": "HTTP/1.1",
        "route_id": "default",
        "upstream_id": "app",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "traceparent": "00-00000000000000000000000000000001-0000000000000001-01",
    }
    return {"event_type": event_type, "metadata": known | metadata, "method": method, "uri": uri}


def _chunk(event_type: str, chunk_index: int, is_last: bool, total_size: int | None) -> dict[str, Any]:
    return {
        "event_type": event_type,
        "correlation_id": _CORRELATION_ID,
        "chunk_index": chunk_index,
        "is_last": is_last,
        "total_size": total_size,
    }


class _Exchange:
    """One agent behind a dispatcher whose socket is a list."""

    def __init__(self, agent: Agent | type[Agent], timeout_s: float) -> None:
        self.agent = agent() if isinstance(agent, type) else agent
        self._timeout_s = timeout_s
        self._calls = 0
        self._got: list[list[bytes]] = []
        self._arrived: asyncio.Event | None = None
        self._dispatcher = Dispatcher(
            self.agent, max_concurrency=100, send=self._take, wake=self._flush, idle=self._flush
        )

    def _take(self, frames: list[bytes]) -> bool:
        self._got.append(frames)
        if self._arrived is not None:
            self._arrived.set()
        return True

    def _flush(self) -> None:
        self._dispatcher.flush()
        if self._arrived is not None and not self._dispatcher.in_flight:
            self._arrived.set()

    async def ask(self, event: Any, body: bytes) -> Answer:
        self._calls += 1
        self._got.clear()
        self._arrived = asyncio.Event()
        entry = [f"t{self._calls}", 1000, event, *([0] if body else [])]
        self._dispatcher.events([wire.EVENTS, orjson.dumps([entry]), *([body] if body else [])])
        self._dispatcher.flush()
        if not self._got and self._dispatcher.in_flight:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                await self._dispatcher.stop()
                raise AssertionError(f"the hook did not answer within {self._timeout_s:g} s") from None
        given = event if isinstance(event, dict) else {}
        if not self._got:
            return Answer(None, None, given)
        _, verdicts, *frames = self._got[0]
        ((_, verdict, *index),) = orjson.loads(verdicts)
        return Answer(verdict, frames[index[0]] if index else None, given)

    async def configure(self, config: Any, raw: Mapping[str, Any]) -> None:
        result: Any = self.agent.on_configure(Configure({"config": config, "config_version": "1", **raw}))
        if isinstance(result, Awaitable):
            result = await result
        if isinstance(result, BaseException):
            raise result
        assert result is None, f"on_configure returned {result!r}; it returns nothing and raises to reject"

    async def close(self) -> None:
        await self._dispatcher.stop()


class TestClient(_Client[Answer, Body]):
    """Sends events to an agent and gives its answers. A context manager: it closes its event loop."""

    __test__ = False  # no test class, whatever pytest thinks of its name

    def __init__(self, agent: Agent | type[Agent], *, timeout_s: float = 5.0) -> None:
        self._exchange = _Exchange(agent, timeout_s)
        self._runner = asyncio.Runner()
        self.agent = self._exchange.agent

    def _send(self, event: Any, body: bytes) -> Answer:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("an event loop is running here: use AsyncTestClient, and await its answers")
        return self._runner.run(self._exchange.ask(event, body))

    def _talk(self, conversation: Talk) -> Body:
        event, body = next(conversation)
        while True:
            try:
                event, body = conversation.send(self._send(event, body))
            except StopIteration as done:
                found: Body = done.value
                return found

    def configure(self, config: Any = None, **raw: Any) -> None:
        """Call on_configure; what it raises to reject is raised here."""
        self._runner.run(self._exchange.configure(config, raw))

    def close(self) -> None:
        self._runner.run(self._exchange.close())
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self._runner.close()  # a client that was no context manager leaves no event loop behind
        except Exception:  # noqa: S110 - interpreter shutdown
            pass


class AsyncTestClient(_Client[Awaitable[Answer], Awaitable[Body]]):
    """The same on the running event loop: `await client.request_headers(...)`."""

    __test__ = False

    def __init__(self, agent: Agent | type[Agent], *, timeout_s: float = 5.0) -> None:
        self._exchange = _Exchange(agent, timeout_s)
        self.agent = self._exchange.agent

    def _send(self, event: Any, body: bytes) -> Awaitable[Answer]:
        return self._exchange.ask(event, body)

    async def _talk(self, conversation: Talk) -> Body:
        event, body = next(conversation)
        while True:
            answer = await self._exchange.ask(event, body)
            try:
                event, body = conversation.send(answer)
            except StopIteration as done:
                found: Body = done.value
                return found

    async def configure(self, config: Any = None, **raw: Any) -> None:
        """Call on_configure; what it raises to reject is raised here."""
        await self._exchange.configure(config, raw)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exchange.close()
