"""The test client gives authors what agentd would get."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

import wardgate_agent
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
        return Allow().remove_response_header("server")

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
        assert not response.skip_body
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


SECRET = re.compile(rb"sec-[0-9]{4}")
CUT = re.compile(rb"s(e(c(-[0-9]{0,3})?)?)?\Z")


class Redactor(Agent):
    """Holds a chunk only where a secret may be cut at its end."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def on_request_body_chunk(self, event: Any) -> Any:
        body = self.held.pop(event.correlation_id, b"") + event.body
        if not event.is_last and CUT.search(body):
            self.held[event.correlation_id] = body
            return Allow().needs_more()
        return Allow().replace_chunk(SECRET.sub(b"XXX", body))

    async def on_response_body_chunk(self, event: Any) -> Any:
        await asyncio.sleep(0)
        if b"!" in event.body:
            return Block(502)
        if event.chunk_index == 1:
            return Allow().drop_chunk().skip_body()
        return Allow() if event.body else None

    def on_request_complete(self, event: Any) -> None:
        self.held.pop(event.correlation_id, None)


class TestBodies:
    TEXT = b"one sec-1234 two sec-99 three sec-5678"

    @pytest.mark.parametrize("chunk_bytes", [None, *range(1, 40)])
    def test_what_is_held_is_replaced_whole(self, chunk_bytes: int | None) -> None:
        """Wherever the chunks end, the same comes out."""
        with TestClient(Redactor) as client:
            body = client.request_body(self.TEXT, chunk_bytes=chunk_bytes)
            body.assert_passed(b"one XXX two sec-99 three XXX")
            assert len(body.answers) == (-(-len(self.TEXT) // chunk_bytes) if chunk_bytes else 1)
            assert client.agent.held == {}  # type: ignore[attr-defined]

    def test_what_goes_on_when(self) -> None:
        """Pieces as they could leave: none while something is held."""
        with TestClient(Redactor) as client:
            body = client.request_body([b"a se", b"c-1", b"234 b", b"", b"c"])
            assert [answer.needs_more for answer in body.answers] == [True, True, False, False, False]
            assert body.pieces == [b"a XXX b", b"c"]

    def test_events_are_the_proxys(self) -> None:
        """Index, end, sizes, and the id that keeps bodies apart."""
        seen: list[dict[str, Any]] = []

        class Reader(Agent):
            def on_request_body_chunk(self, event: Any) -> Any:
                seen.append(event.raw)
                return Allow()

        with TestClient(Reader) as client:
            client.request_body([b"ab", b"c"], correlation_id="x-1").assert_passed(b"abc")
            client.request_body(b"", is_sized=False).assert_passed(b"")
        assert [tuple(event.values())[1:] for event in seen] == [
            ("x-1", 0, False, 2, 3),
            ("x-1", 1, True, 3, 3),
            (seen[2]["correlation_id"], 0, True, 0),
        ]

    def test_drop_and_skip(self) -> None:
        """What comes after skip_body is not shown and passes."""
        with TestClient(Redactor) as client:
            body = client.response_body([b"a", b"b", b"!c", b"d"])
            assert (body.passed, len(body.answers)) == (b"a!cd", 2)

    def test_a_refusal_ends_it(self) -> None:
        """What had passed had passed."""
        with TestClient(Redactor) as client:
            body = client.response_body([b"a", b"b!", b"c"]).assert_blocked(502)
            assert (body.passed, len(body.answers)) == (b"a", 2)
            with pytest.raises(AssertionError, match="answered"):
                body.assert_passed()

    def test_an_error_ends_it(self) -> None:
        """A hook that gives no verdict never lets a body pass."""
        with TestClient(Redactor) as client:
            body = client.response_body(b"")
            assert body.refusal is not None
            body.refusal.assert_error("bad_verdict")
            with pytest.raises(AssertionError, match="expected a block"):
                client.request_body(b"x").assert_blocked()
            with pytest.raises(AssertionError, match="passed"):
                client.request_body(b"x").assert_passed(b"y")

    def test_what_is_left_is_forgotten(self) -> None:
        """A body that never ends has a request that does."""
        with TestClient(Redactor) as client:
            client.request_body_chunk(b"se", is_last=False)
            assert client.agent.held  # type: ignore[attr-defined]
            client.request_complete(0, error="client_gone")
            assert not client.agent.held  # type: ignore[attr-defined]


README = (Path(__file__).parents[1] / "README.md").read_text()


def readme(name: str) -> dict[str, Any]:
    """What a block of Python in the README makes when it is run."""
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if name in block]
    space: dict[str, Any] = {name: getattr(wardgate_agent, name) for name in wardgate_agent.__all__}
    space |= {"pytest": pytest, "TestClient": TestClient}
    exec(block, space)
    return space


@pytest.mark.parametrize("chunk_bytes", range(1, 30))
def test_the_redactor_of_the_readme(chunk_bytes: int) -> None:
    space = readme("class Redactor")
    test = readme("def test_tokens_are_cut")["test_tokens_are_cut_out_wherever_chunks_end"]
    test.__globals__.update(space)
    test(chunk_bytes)


def test_the_websocket_agent_of_the_readme() -> None:
    with TestClient(readme("class Polite")["Polite"]) as client:
        assert client.websocket_frame("I swear").replacement == b"I *****"
        assert client.websocket_frame("I swear", client_to_server=False).websocket == "allow"


async def test_bodies_in_async_tests() -> None:
    async with AsyncTestClient(Redactor) as client:
        (await client.request_body([b"se", b"c-0000"])).assert_passed(b"XXX")
        (await client.response_body(b"!")).assert_blocked(502)


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
