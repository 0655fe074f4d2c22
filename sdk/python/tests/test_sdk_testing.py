"""The test client gives authors what agentd would get."""

import asyncio
from typing import Any

import pytest

from wardgate_agent import (
    Agent,
    Allow,
    Block,
    Challenge,
    Detection,
    Guardrail,
    Redirect,
    WebSocketClose,
    WebSocketReplace,
)
from wardgate_agent.testing import AsyncTestClient, TestClient


class Sample(Agent):
    def __init__(self) -> None:
        self.done: list[int] = []
        self.level = 0

    def on_configure(self, configure: Any) -> None:
        if configure.config is None:
            raise ValueError("no config")
        self.level = configure.get("level", 1)

    async def on_request_headers(self, event: Any) -> Any:
        await asyncio.sleep(0)
        if event.path == "/admin":
            return Block(403, "no\n", {"X-Blocked-By": "sample"}).audit(tags=["admin"])
        if event.path == "/old":
            return Redirect("/new")
        if event.path == "/members":
            return Challenge("basic", realm="m")
        if event.path == "/captcha":
            return Challenge("captcha", site="s")
        if event.path == "/hang":
            await asyncio.Event().wait()
        if event.path == "/raise":
            raise RuntimeError("boom")
        return (
            Allow()
            .set_request_header("X-Agent", event.client_ip)
            .add_request_header("accept", "x")
            .remove_request_header("cookie")
            .set_response_header("x-served", "w")
            .routing("app2")
        )

    def on_response_headers(self, event: Any) -> Any:
        return Allow().remove_response_header("server").skip_body()

    def on_request_body_chunk(self, event: Any) -> Any:
        if not event.is_last:
            return Allow().needs_more()
        return Allow().replace_chunk(event.body[::-1]) if event.body else Allow().drop_chunk()

    def on_websocket_frame(self, event: Any) -> Any:
        return WebSocketClose(1008, "x") if event.opcode == "binary" else WebSocketReplace(event.text.upper())

    def on_guardrail_inspect(self, event: Any) -> Any:
        return Guardrail(True, 0.9, [Detection("c")], "***")

    def on_request_complete(self, event: Any) -> None:
        self.done.append(event.status)


def test_sync_client_with_async_hooks() -> None:
    with TestClient(Sample()) as client:
        answer = client.request_headers("GET", "/", {"Cookie": "a", "Accept": ["y"]}, client_ip="192.0.2.9")
        answer.assert_allowed()
        assert answer.request_headers == {"accept": ["y", "x"], "x-agent": ["192.0.2.9"]}
        assert answer.response_headers == {"x-served": ["w"]}
        assert answer.routing == {"upstream": "app2"}
        blocked = client.request_headers(uri="/admin").assert_blocked(403)
        assert (blocked.body, blocked.headers, blocked.tags) == (b"no\n", {"x-blocked-by": ["sample"]}, ["admin"])
        assert client.request_headers(uri="/old").assert_redirected("/new").status == 302
        challenge = client.request_headers(uri="/members").assert_challenged("basic")
        assert (challenge.status, challenge.challenge_params) == (401, {"realm": "m"})
        assert client.request_headers(uri="/captcha").status == 403
        client.request_headers(uri="/raise").assert_error("exception")


def test_every_event() -> None:
    with TestClient(Sample) as client:
        response = client.response_headers(200, {"Server": "nginx", "x": "1"})
        assert response.response_headers == {"x": ["1"]}
        assert response.skip_body
        assert client.request_body_chunk(b"abc", is_last=False).needs_more
        chunk = client.request_body_chunk(b"abc", chunk_index=1, bytes_received=6, total_size=6)
        assert (chunk.mutation, chunk.replacement) == ("replace", b"cba")
        assert client.request_body_chunk(b"").mutation == "drop"
        assert client.response_body_chunk(b"x").is_allow
        frame = client.websocket_frame("hé")
        assert (frame.websocket, frame.replacement) == ("replace", "HÉ".encode())
        assert client.websocket_frame(b"\x00").websocket == "close"
        found = client.guardrail_inspect("x").guardrail
        assert (found["detected"], found["redacted_content"]) == (True, "***")
        assert client.request_complete(404, duration_ms=7).decision == "none"
        assert client.agent.done == [404]  # type: ignore[attr-defined]
        client.send_raw({"event_type": "nope"}).assert_error("unsupported")
        client.send_raw([1, 2]).assert_error("malformed")


def test_configure() -> None:
    with TestClient(Sample) as client:
        client.configure({"level": 3})
        assert client.agent.level == 3  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="no config"):
            client.configure()


def test_asserts_say_what_was_answered() -> None:
    with TestClient(Sample) as client:
        with pytest.raises(AssertionError, match="X-Blocked-By"):
            client.request_headers(uri="/admin").assert_allowed()
        allowed = client.request_headers()
        for check in (
            allowed.assert_blocked,
            allowed.assert_redirected,
            allowed.assert_challenged,
            allowed.assert_error,
        ):
            with pytest.raises(AssertionError, match="allow"):
                check()


def test_a_hook_that_hangs_fails_the_test() -> None:
    with TestClient(Sample, timeout_s=0.01) as client:
        with pytest.raises(AssertionError, match="did not answer"):
            client.request_headers(uri="/hang")
        client.request_headers().assert_allowed()


def test_a_client_that_is_no_context_manager_leaves_nothing_behind() -> None:
    assert TestClient(Sample).request_headers().is_allow


async def test_async_client() -> None:
    async with AsyncTestClient(Sample()) as client:
        await client.configure({"level": 2})
        (await client.request_headers(uri="/admin")).assert_blocked(403)
        assert (await client.request_body_chunk(b"abc")).replacement == b"cba"


async def test_the_sync_client_says_what_to_use_in_async_tests() -> None:
    with pytest.raises(RuntimeError, match="AsyncTestClient"):
        TestClient(Sample).request_headers()
