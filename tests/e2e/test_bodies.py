"""Bodies decided by real agents: request and response, whole and in pieces, changed, held, refused."""

import gzip
import random
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agents import ALLOW
from tests.e2e.body_world import (
    BLOCK,
    LIMIT,
    NEEDS_MORE,
    BodyWorld,
    Gate,
    chunk_is,
    chunked,
    edit,
    head,
    payload,
    split,
)
from tests.e2e.hostile import metrics
from tests.http.corpus import Answer
from tests.support import wait_until


@pytest.fixture(scope="module")
def whole_world() -> Iterator[BodyWorld]:
    tmp = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    world = BodyWorld(tmp)
    yield world
    world.close()
    shutil.rmtree(tmp, ignore_errors=True)


@pytest.fixture
def world(whole_world: BodyWorld) -> BodyWorld:
    whole_world.reset()
    return whole_world


def answered(body: bytes, *fields: str, status: str = "200 OK", length: bool = True) -> bytes:
    """A response as the upstream sends it."""
    framing = (f"Content-Length: {len(body)}",) if length else ()
    return "\r\n".join((f"HTTP/1.1 {status}", *framing, *fields, "", "")).encode() + body


class TestRequestsWhole:
    """`request_body = "buffer"`."""

    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_one_chunk_after_the_head(self, world: BodyWorld, is_chunked: bool) -> None:
        """The agent gets the head, then the whole body as one chunk; the upstream gets it with its length."""
        answer = world.post("/buffer/x", b"hello ", b"world", is_chunked=is_chunked)
        assert (answer.status, answer.body) == (200, b"ok")
        (chunk,) = world.events("a", "request_body_chunk")
        assert chunk == {
            "event_type": "request_body_chunk",
            "correlation_id": chunk["correlation_id"],
            "chunk_index": 0,
            "is_last": True,
            "bytes_received": 11,
            "body": b"hello world",
            **({} if is_chunked else {"total_size": 11}),
        }
        fields, body = split(world.upstream.seen[0])
        assert (body, fields["content-length"]) == (b"hello world", ["11"])
        assert "transfer-encoding" not in fields

    def test_no_byte_goes_upstream_before_the_verdict(self, world: BodyWorld) -> None:
        """Not even a connection: the agent holds its answer, the upstream has heard nothing."""
        gate = Gate()
        before = world.upstream.connections
        world.on["a"] = lambda event: gate.hold(ALLOW) if chunk_is(event) else ALLOW
        with world.client() as client:
            client.send(head("/buffer/x", "Content-Length: 4") + b"body")
            world.wait_for("a", "request_body_chunk")
            assert (world.upstream.seen, world.upstream.cut) == ([], [])
            assert world.upstream.connections == before or not world.upstream.seen
            gate.set()
            assert client.answer().status == 200
        assert len(world.upstream.seen) == 1

    def test_a_block_never_reaches_the_upstream(self, world: BodyWorld) -> None:
        world.on["a"] = lambda event: BLOCK if chunk_is(event) else ALLOW
        answer = world.post("/buffer/x", b"attack")
        assert (answer.status, payload(answer)) == (403, b"no")
        assert world.upstream.seen == []
        wait_until(lambda: any(r["phase"] == "request_body_chunk" for r in world.records(answer)))
        assert {r["decision"] for r in world.records(answer)} == {"block"}

    @pytest.mark.parametrize(
        ("new", "sent"), [(b"longer than before", b"longer than before"), (b"s", b"s"), (b"", b"")]
    )
    def test_replaced(self, world: BodyWorld, new: bytes, sent: bytes) -> None:
        """Growing, shrinking, emptied: Content-Length is ours, digests of the old bytes are gone."""
        world.on["a"] = lambda event: edit(event, "replace", new) if chunk_is(event) else ALLOW
        fields = ["Content-Digest: sha-256=:abc=:", "Digest: x", "Content-MD5: y", "X-Kept: 1"]
        assert world.post("/buffer/x", b"before", fields=fields).status == 200
        got, body = split(world.upstream.seen[0])
        assert (body, got["content-length"], got["x-kept"]) == (sent, [str(len(sent))], ["1"])
        assert not {"content-digest", "digest", "content-md5"} & set(got)

    def test_dropped(self, world: BodyWorld) -> None:
        world.on["a"] = lambda event: edit(event, "drop") if chunk_is(event) else ALLOW
        assert world.post("/buffer/x", b"before").status == 200
        assert split(world.upstream.seen[0])[0]["content-length"] == ["0"]

    def test_untouched_bodies_keep_their_digests(self, world: BodyWorld) -> None:
        assert world.post("/buffer/x", b"same", fields=["Content-Digest: sha-256=:abc=:"]).status == 200
        assert split(world.upstream.seen[0])[0]["content-digest"] == ["sha-256=:abc=:"]

    def test_header_operations_beside_the_chunk(self, world: BodyWorld) -> None:
        """The head has not gone yet: what the body's verdict says of it acts."""
        ops = {
            "request_headers": [{"set": {"name": "x-scanned", "value": "yes"}}],
            "response_headers": [{"set": {"name": "x-by", "value": "a"}}],
        }
        world.on["a"] = lambda event: {**ALLOW, **ops} if chunk_is(event) else ALLOW
        answer = world.post("/buffer/x", b"body")
        assert split(world.upstream.seen[0])[0]["x-scanned"] == ["yes"]
        assert b"x-by: a" in answer.head.lower()

    def test_an_empty_chunked_body_is_shown_once(self, world: BodyWorld) -> None:
        assert world.post("/buffer/x", is_chunked=True).status == 200
        (chunk,) = world.events("a", "request_body_chunk")
        assert (chunk["is_last"], chunk["body"], chunk["bytes_received"]) == (True, b"", 0)
        assert split(world.upstream.seen[0])[0]["content-length"] == ["0"]

    def test_requests_without_a_body_ask_nobody(self, world: BodyWorld) -> None:
        with world.client() as client:
            client.send(head("/buffer/x", method="GET"))
            assert client.answer().status == 200
        assert world.events("a", "request_body_chunk") == []

    @pytest.mark.parametrize("is_chunked", [False, True])
    def test_over_the_agents_limit(self, world: BodyWorld, is_chunked: bool) -> None:
        """413 where the agent is fail-closed, also when the length is not told."""
        answer = world.post("/buffer/x", bytes(LIMIT + 1), is_chunked=is_chunked)
        assert answer.status == 413
        assert world.events("a", "request_body_chunk") == []
        assert world.upstream.seen == []
        wait_until(lambda: any(r["reason"] == "body_too_large" for r in world.records(answer)))

    @pytest.mark.parametrize("route", ["open", "openstream"])
    def test_over_the_limit_of_a_fail_open_agent(self, world: BodyWorld, route: str) -> None:
        """It is left out, the request goes on, and the audit says so."""
        body = bytes(LIMIT + 1)
        answer = world.post(f"/{route}/x", body, is_chunked=True)
        assert answer.status == 200
        assert split(world.upstream.seen[0])[1] == body
        wait_until(lambda: any(r["reason"] == "body_too_large" for r in world.records(answer)))

    def test_expect_100_is_answered_when_the_head_was_allowed(self, world: BodyWorld) -> None:
        with world.client() as client:
            client.send(head("/buffer/x", "Content-Length: 4", "Expect: 100-continue"))
            assert client.answer().status == 100
            client.send(b"body")
            assert client.answer().status == 200
        world.on["a"] = lambda event: BLOCK
        with world.client() as client:
            client.send(head("/buffer/x", "Content-Length: 4", "Expect: 100-continue"))
            assert client.answer().status == 403

    def test_expect_100_is_not_said_to_a_body_that_is_too_long(self, world: BodyWorld) -> None:
        with world.client() as client:
            client.send(head("/buffer/x", f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"))
            assert client.answer().status == 413

    def test_needs_more_on_the_last_chunk_is_malformed(self, world: BodyWorld) -> None:
        world.on["a"] = lambda event: NEEDS_MORE if chunk_is(event) else ALLOW
        assert world.post("/buffer/x", b"body").status == 503
        assert world.upstream.seen == []

    def test_silence_is_504(self, world: BodyWorld) -> None:
        world.on["a"] = lambda event: None if chunk_is(event) else ALLOW
        assert world.post("/buffer/x", b"body").status == 504
        assert world.post("/open/x", b"body").status == 200

    def test_a_truncated_body_is_never_decided(self, world: BodyWorld) -> None:
        """The client leaves in mid-body: nobody is asked about it, nothing goes upstream."""
        with world.client() as client:
            client.send(head("/buffer/truncated", "Content-Length: 100") + b"half")
            world.wait_for("a", "request_headers")
        done = world.completion("/buffer/truncated")
        assert (done["error"], done["status"], done["request_body_size"]) == ("client_gone", 0, 4)
        assert world.upstream.seen == []
        assert world.events("a", "request_body_chunk") == []

    def test_a_broken_chunk_size(self, world: BodyWorld) -> None:
        with world.client() as client:
            client.send(head("/buffer/zz", "Transfer-Encoding: chunked") + b"4\r\nbody\r\nzz\r\n")
            assert client.answer().status == 400
        assert world.upstream.seen == []
        assert world.completion("/buffer/zz")["status"] == 400

    def test_trailers_are_dropped(self, world: BodyWorld) -> None:
        with world.client() as client:
            client.send(head("/buffer/x", "Transfer-Encoding: chunked") + b"4\r\nbody\r\n0\r\nX-Evil: 1\r\n\r\n")
            assert client.answer().status == 200
        assert b"Evil" not in world.upstream.seen[0]

    def test_pipelined_bodies_keep_apart(self, world: BodyWorld) -> None:
        world.on["a"] = lambda event: edit(event, "replace", event["body"] * 2) if chunk_is(event) else ALLOW
        with world.client() as client:
            client.send(
                head("/buffer/1", "Content-Length: 3") + b"one" + head("/buffer/2", "Content-Length: 3") + b"two"
            )
            assert [client.answer().status, client.answer().status] == [200, 200]
        assert [split(request)[1] for request in world.upstream.seen] == [b"oneone", b"twotwo"]


class TestRequestsStreamed:
    """`request_body = "stream"`."""

    def send_slowly(self, world: BodyWorld, path: str, *pieces: bytes) -> Answer:
        """Each piece when the one before it was shown."""
        with world.client() as client:
            client.send(head(path, "Transfer-Encoding: chunked"))
            for count, piece in enumerate(pieces, 1):
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                world.wait_for("a", "request_body_chunk", count)
            client.send(b"0\r\n\r\n")
            return client.answer()

    def test_chunk_by_chunk(self, world: BodyWorld) -> None:
        answer = self.send_slowly(world, "/stream/x", b"one", b"two")
        assert answer.status == 200
        chunks = world.events("a", "request_body_chunk")
        assert [(c["chunk_index"], c["body"], c["is_last"], c["bytes_received"]) for c in chunks] == [
            (0, b"one", False, 3),
            (1, b"two", False, 6),
            (2, b"", True, 6),
        ]
        fields, body = split(world.upstream.seen[0])
        assert (body, fields["transfer-encoding"]) == (b"onetwo", ["chunked"])
        assert "content-length" not in fields

    def test_a_length_that_was_told_is_chunked_upstream(self, world: BodyWorld) -> None:
        """An agent may change any piece of it."""
        assert world.post("/stream/x", b"body").status == 200
        fields, body = split(world.upstream.seen[0])
        assert (body, fields["transfer-encoding"], "content-length" in fields) == (b"body", ["chunked"], False)
        (chunk,) = world.events("a", "request_body_chunk")
        assert (chunk["is_last"], chunk["total_size"]) == (True, 4)

    def test_pass_drop_replace(self, world: BodyWorld) -> None:
        acts = {b"p": ("pass", b""), b"d": ("drop", b""), b"r": ("replace", b"[new]")}
        world.on["a"] = lambda e: edit(e, *acts[e["body"]]) if chunk_is(e) and e["body"] else ALLOW
        assert self.send_slowly(world, "/stream/x", b"p", b"d", b"r", b"p").status == 200
        assert split(world.upstream.seen[0])[1] == b"p[new]p"

    def test_needs_more_then_replace_acts_on_everything_held(self, world: BodyWorld) -> None:
        def decide(event: dict[str, Any]) -> dict[str, Any]:
            if not chunk_is(event):
                return ALLOW
            if event["body"] in (b"se", b"cr"):
                return NEEDS_MORE
            return edit(event, "replace", b"******") if event["body"] == b"et" else ALLOW

        world.on["a"] = decide
        assert self.send_slowly(world, "/stream/x", b"my ", b"se", b"cr", b"et", b"!").status == 200
        assert split(world.upstream.seen[0])[1] == b"my ******!"

    def test_needs_more_then_allow_passes_everything_held(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: NEEDS_MORE if chunk_is(e) and e["body"] == b"a" else ALLOW
        assert self.send_slowly(world, "/stream/x", b"a", b"b", b"c").status == 200
        assert split(world.upstream.seen[0])[1] == b"abc"

    def test_needs_more_on_the_last_chunk_is_a_failure(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: NEEDS_MORE if chunk_is(e) else ALLOW
        assert self.send_slowly(world, "/stream/x", b"a", b"b").status == 503
        wait_until(lambda: world.upstream.cut or world.upstream.broken or not world.upstream.seen)
        assert world.upstream.seen == []

    def test_skip_body(self, world: BodyWorld) -> None:
        """No more chunks of it; they pass."""
        world.on["a"] = lambda e: {"decision": "allow", "skip_body": True} if chunk_is(e) else ALLOW
        with world.client() as client:
            client.send(head("/stream/x", "Transfer-Encoding: chunked") + b"1\r\na\r\n")
            world.wait_for("a", "request_body_chunk")
            client.send(b"1\r\nb\r\n" + b"0\r\n\r\n")
            assert client.answer().status == 200
        assert split(world.upstream.seen[0])[1] == b"ab"
        assert len(world.events("a", "request_body_chunk")) == 1

    def test_skip_body_beside_the_head(self, world: BodyWorld) -> None:
        """Nothing of the body is shown; with the other direction it has nothing to do."""
        skip = {"decision": "allow", "skip_body": True}
        world.on["a"] = lambda e: skip if e["event_type"] == "request_headers" else ALLOW
        for route in ("stream", "buffer"):
            world.upstream.seen.clear()
            assert world.post(f"/{route}/x", b"body", b"more", is_chunked=True).status == 200
            assert split(world.upstream.seen[0])[1] == b"bodymore"
        assert world.events("a", "request_body_chunk") == []
        assert len(world.events("a", "response_body_chunk")) == 2
        world.reset()
        world.on["a"] = lambda e: skip if e["event_type"] == "response_headers" else ALLOW
        answer = world.post("/buffer/x", b"body")
        assert (answer.status, payload(answer)) == (200, b"ok")
        assert world.events("a", "response_body_chunk") == []

    def test_a_block_in_mid_body_aborts_the_upstream(self, world: BodyWorld) -> None:
        """What went on is cut off there, and the client gets a proper refusal."""
        world.on["a"] = lambda e: BLOCK if chunk_is(e) and e["body"] == b"bad" else ALLOW
        assert self.send_slowly(world, "/stream/x", b"good", b"bad").status == 403
        wait_until(lambda: world.upstream.cut)
        assert b"bad" not in world.upstream.cut[0]
        assert world.upstream.seen == []

    def test_wrong_index_and_wrong_direction_are_malformed(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: (
            {"decision": "allow", "request_body_mutation": {"chunk_index": 7, "action": "drop"}}
            if chunk_is(e)
            else ALLOW
        )
        assert world.post("/stream/x", b"body").status == 503
        world.on["a"] = lambda e: (
            {"decision": "allow", "response_body_mutation": {"chunk_index": 0, "action": "drop"}}
            if chunk_is(e)
            else ALLOW
        )
        assert world.post("/stream/x", b"body").status == 503

    def test_framing_fields_cannot_be_set(self, world: BodyWorld) -> None:
        ops = [{"set": {"name": "content-length", "value": "1"}}, {"set": {"name": "transfer-encoding", "value": "x"}}]
        world.on["a"] = lambda e: {"decision": "allow", "request_headers": ops}
        assert world.post("/buffer/x", b"body").status == 200
        assert split(world.upstream.seen[0])[0]["content-length"] == ["4"]

    def test_back_pressure_reaches_the_client(self, world: BodyWorld) -> None:
        """An agent that is slow with the first chunk: what the client sends is not read without end."""
        gate = Gate()
        world.on["a"] = lambda e: gate.hold({"decision": "allow", "skip_body": True}) if chunk_is(e) else ALLOW
        body = bytes(3_900_000)
        with world.client() as client:
            client.send(head("/stream/x", f"Content-Length: {len(body)}"))
            sender = threading.Thread(target=client.send, args=(body,), daemon=True)
            sender.start()
            assert client.answer().status == 413  # over the agent's limit long before it is whole
            gate.set()
            sender.join(10)
        assert world.upstream.seen == []

    def test_upstream_that_answers_before_the_body_is_complete(self, world: BodyWorld) -> None:
        """Its answer is relayed although a chunk is still with the agent; that question is taken back."""
        world.upstream.is_hasty = True
        world.on["a"] = lambda e: None if chunk_is(e) else ALLOW
        with world.client() as client:
            client.send(head("/stream/early", "Transfer-Encoding: chunked") + b"3\r\none\r\n")
            answer = client.answer()
            assert (answer.status, answer.body) == (200, b"ok")
            assert b"connection: close" in answer.head.lower()
            assert client.is_closed(), "what is left of the body would be taken for a request"
        done = world.completion("/stream/early")
        assert (done["status"], done["request_body_size"]) == (200, 3)
        wait_until(lambda: world.agents["a"].cancelled)
        assert world.agents["a"].cancelled[0][1] == "decided"


class TestSeveralAgents:
    def test_parallel_the_first_in_the_chain_may_change(self, world: BodyWorld) -> None:
        """The second mutation of the same chunk is that agent's Malformed: fail-closed 503."""
        world.on["a"] = lambda e: edit(e, "replace", b"A") if chunk_is(e) else ALLOW
        assert world.post("/par/x", b"body").status == 200
        assert split(world.upstream.seen[0])[1] == b"A"
        world.on["b"] = lambda e: edit(e, "replace", b"B") if chunk_is(e) else ALLOW
        assert world.post("/par/x", b"body").status == 503

    def test_parallel_one_holds_while_the_other_passes(self, world: BodyWorld) -> None:
        world.on["b"] = lambda e: NEEDS_MORE if chunk_is(e) and not e["is_last"] else ALLOW
        with world.client() as client:
            client.send(head("/par/x", "Transfer-Encoding: chunked") + b"1\r\na\r\n")
            world.wait_for("b", "request_body_chunk")
            world.wait_for("a", "request_body_chunk")
            client.send(b"1\r\nb\r\n0\r\n\r\n")
            assert client.answer().status == 200
        assert split(world.upstream.seen[0])[1] == b"ab"

    def test_parallel_any_block_blocks(self, world: BodyWorld) -> None:
        world.on["b"] = lambda e: BLOCK if chunk_is(e) else ALLOW
        assert world.post("/par/x", b"body").status == 403

    def test_sequential_each_gets_its_predecessors_bytes(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: edit(e, "replace", b"from a") if chunk_is(e) else ALLOW
        world.on["b"] = lambda e: edit(e, "replace", e["body"] + b" and b") if chunk_is(e) and e["body"] else ALLOW
        assert world.post("/seq/x", b"body").status == 200
        assert split(world.upstream.seen[0])[1] == b"from a and b"
        assert world.wait_for("b", "request_body_chunk")[0]["body"] == b"from a"
        assert world.wait_for("o", "request_body_chunk")[0]["body"] == b"body"

    def test_sequential_a_refusal_keeps_the_second_from_being_asked(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: BLOCK if chunk_is(e) else ALLOW
        assert world.post("/seq/x", b"body").status == 403
        assert world.events("b", "request_body_chunk") == []

    def test_an_observer_sees_and_changes_nothing(self, world: BodyWorld) -> None:
        world.on["o"] = lambda e: BLOCK
        answer = world.post("/seen/x", b"body", fields=["Content-Digest: x"])
        assert (answer.status, answer.body) == (200, b"ok")
        assert world.wait_for("o", "request_body_chunk")[0]["body"] == b"body"
        assert world.wait_for("o", "response_body_chunk")[0]["body"] == b"ok"
        fields, body = split(world.upstream.seen[0])
        assert (body, fields["content-length"], fields["content-digest"]) == (b"body", ["4"], ["x"])


class TestV1:
    def test_base64_both_ways(self, world: BodyWorld) -> None:
        """v1 carries bytes in `data`, and so does its answer."""
        world.on["c"] = lambda e: (
            {"decision": "allow", "request_body_mutation": {"chunk_index": 0, "data": "bmV3"}}
            if chunk_is(e) and e["body"] == b"body"
            else ALLOW
        )
        assert world.post("/v1/x", b"body").status == 200
        assert split(world.upstream.seen[0])[1] == b"new"
        world.wait_for("c", "response_body_chunk")
        world.wait_for("c", "request_complete")


class TestResponses:
    def get(self, world: BodyWorld, path: str, *fields: str, method: str = "GET") -> Answer:
        with world.client() as client:
            client.send(head(path, *fields, method=method))
            return client.answer(is_head=method == "HEAD")

    def test_whole(self, world: BodyWorld) -> None:
        """One chunk, after the head; nothing goes to the client before it was decided."""
        world.upstream.reply = lambda request: [answered(b"hello", "ETag: x", "Content-Type: text/plain")]
        answer = self.get(world, "/buffer/x")
        assert (answer.status, answer.body) == (200, b"hello")
        assert b"etag: x" in answer.head.lower()
        (chunk,) = world.events("a", "response_body_chunk")
        assert (chunk["body"], chunk["is_last"], chunk["bytes_sent"], chunk["total_size"]) == (b"hello", True, 5, 5)

    @pytest.mark.parametrize("route", ["buffer", "stream"])
    def test_changed(self, world: BodyWorld, route: str) -> None:
        """Lengths, ETag and digests of the old bytes do not survive."""
        world.upstream.reply = lambda request: [
            answered(b"the secret", "ETag: x", "Repr-Digest: y", "Accept-Ranges: bytes", "X-Kept: 1")
        ]
        world.on["a"] = lambda e: edit(e, "replace", b"the ******!") if chunk_is(e, "response") else ALLOW
        answer = self.get(world, f"/{route}/x")
        assert (answer.status, payload(answer)) == (200, b"the ******!")
        top = answer.head.lower()
        assert b"x-kept: 1" in top
        assert not any(name in top for name in (b"etag", b"repr-digest", b"accept-ranges"))

    @pytest.mark.parametrize("route", ["buffer", "stream"])
    @pytest.mark.parametrize(
        ("verdict", "status"),
        [
            (BLOCK, 403),
            ({"decision": {"redirect": {"url": "/else"}}}, 302),
            ({"decision": {"challenge": {"challenge_type": "basic", "params": {}}}}, 401),
        ],
    )
    def test_refused_before_the_first_byte(
        self, world: BodyWorld, route: str, verdict: dict[str, Any], status: int
    ) -> None:
        world.on["a"] = lambda e: verdict if chunk_is(e, "response") else ALLOW
        answer = self.get(world, f"/{route}/x")
        assert answer.status == status
        assert b"ok" not in payload(answer)

    def test_aborted_after_the_first_byte(self, world: BodyWorld) -> None:
        """The client sees a cut stream, not an end; the audit says who did it."""
        more = threading.Event()
        world.upstream.reply = lambda request: [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n",
            more,
            b"3\r\nbad\r\n0\r\n\r\n",
        ]
        world.on["a"] = lambda e: BLOCK if chunk_is(e, "response") and b"bad" in e["body"] else ALLOW
        with world.client() as client:
            client.send(head("/stream/aborted", method="GET"))
            while b"good" not in client.buffer:
                client._more()
            more.set()
            with pytest.raises((EOFError, ConnectionResetError)):
                while True:
                    client._more()
            assert b"bad" not in client.buffer
            assert not client.buffer.endswith(b"0\r\n\r\n")
        done = world.completion("/stream/aborted")
        assert (done["decided_by"], done["status"], done["response_body_size"]) == ("a", 200, 4)
        wait_until(
            lambda: any(r["phase"] == "response_body_chunk" and r["source"] == "worker" for r in world.system.audit())
        )

    def test_an_event_stream_flows(self, world: BodyWorld) -> None:
        """Its head comes at once, each event when it was decided; the agent sees them one by one."""
        first, second = threading.Event(), threading.Event()
        world.upstream.reply = lambda request: [
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            first,
            b"9\r\ndata: 1\n\n\r\n",
            second,
            b"9\r\ndata: 2\n\n\r\n0\r\n\r\n",
        ]
        with world.client() as client:
            client.send(head("/stream/x", method="GET"))
            while b"\r\n\r\n" not in client.buffer:
                client._more()
            first.set()
            while b"data: 1" not in client.buffer:
                client._more()
            second.set()
            answer = client.answer()
        assert payload(answer) == b"data: 1\n\ndata: 2\n\n"
        assert [e["body"] for e in world.events("a", "response_body_chunk")][:2] == [b"data: 1\n\n", b"data: 2\n\n"]

    def test_head_and_304_have_no_chunks(self, world: BodyWorld) -> None:
        world.upstream.reply = lambda request: [b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"]
        assert self.get(world, "/buffer/x").status == 304
        world.upstream.reply = lambda request: [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"]
        answer = self.get(world, "/buffer/x", method="HEAD")
        assert (answer.status, b"content-length: 5" in answer.head.lower()) == (200, True)
        assert world.events("a", "response_body_chunk") == []

    def test_an_empty_body_is_shown(self, world: BodyWorld) -> None:
        world.upstream.reply = lambda request: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
        answer = self.get(world, "/buffer/x")
        assert (answer.status, payload(answer)) == (200, b"")
        (chunk,) = world.events("a", "response_body_chunk")
        assert (chunk["is_last"], chunk["body"]) == (True, b"")

    def test_ranges_are_not_asked_for(self, world: BodyWorld) -> None:
        """A part cannot be judged like the whole: nobody gets a forbidden page piece by piece."""
        assert self.get(world, "/buffer/x", "Range: bytes=0-3", 'If-Range: "x"').status == 200
        assert not {"range", "if-range"} & set(split(world.upstream.seen[0])[0])
        assert self.get(world, "/seen/x", "Range: bytes=0-3").status == 200
        assert split(world.upstream.seen[1])[0]["range"] == ["bytes=0-3"]

    def test_over_the_agents_limit(self, world: BodyWorld) -> None:
        """502 before the first byte where it is fail-closed, without the agent where it is not."""
        body = bytes(LIMIT + 1)
        world.upstream.reply = lambda request: [answered(body)]
        assert self.get(world, "/buffer/x").status == 502
        answer = self.get(world, "/open/x")
        assert (answer.status, len(payload(answer))) == (200, LIMIT + 1)

    def test_upstream_cut_in_mid_body(self, world: BodyWorld) -> None:
        """Buffered: a 502, never half a body that looks whole."""
        world.upstream.reply = lambda request: [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", None]
        assert self.get(world, "/buffer/x").status == 502

    def test_http_1_0_gets_the_whole_with_its_length(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: edit(e, "replace", b"new") if chunk_is(e, "response") else ALLOW
        with world.client() as client:
            client.send(b"GET /stream/x HTTP/1.0\r\nHost: a\r\n\r\n")
            answer = client.answer()
        assert (answer.body, b"content-length: 3" in answer.head.lower()) == (b"new", True)

    def test_silence_about_a_response_is_504(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: None if chunk_is(e, "response") else ALLOW
        assert self.get(world, "/buffer/x").status == 504
        answer = self.get(world, "/open/x")
        assert (answer.status, payload(answer)) == (200, b"ok")


class TestCodings:
    """`decode_bodies = true`."""

    def test_agents_see_decoded_bytes_and_the_upstream_the_coded_ones(self, world: BodyWorld) -> None:
        coded = gzip.compress(b"hello " * 100)
        for route in ("z", "zs"):
            world.reset()
            assert world.post(f"/{route}/x", coded, fields=["Content-Encoding: gzip"]).status == 200
            assert b"".join(e["body"] for e in world.events("a", "request_body_chunk")) == b"hello " * 100
            fields, body = split(world.upstream.seen[0])
            assert (body, fields["content-encoding"]) == (coded, ["gzip"])

    def test_a_change_sends_it_decoded(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: edit(e, "replace", b"changed") if chunk_is(e) else ALLOW
        for route in ("z", "zs"):
            world.upstream.seen.clear()
            assert world.post(f"/{route}/x", gzip.compress(b"hello"), fields=["Content-Encoding: gzip"]).status == 200
            fields, body = split(world.upstream.seen[0])
            assert (body, "content-encoding" in fields) == (b"changed", False)

    def test_bombs_and_garbage(self, world: BodyWorld) -> None:
        bomb = zlib.compress(bytes(50_000_000), 9)
        assert world.post("/z/x", bomb, fields=["Content-Encoding: deflate"]).status == 413
        assert world.post("/z/x", b"not gzip", fields=["Content-Encoding: gzip"]).status == 400
        assert world.post("/z/x", gzip.compress(b"hello")[:-4], fields=["Content-Encoding: gzip"]).status == 400
        assert world.post("/z/x", b"x", fields=["Content-Encoding: lzma"]).status == 415
        assert world.upstream.seen == []

    def test_responses(self, world: BodyWorld) -> None:
        """We ask for no coding; what comes coded all the same is decoded for agents and passed on as it came."""
        coded = gzip.compress(b"hello " * 100)
        world.upstream.reply = lambda request: [answered(coded, "Content-Encoding: gzip", "ETag: x")]
        with world.client() as client:
            client.send(head("/z/x", "Accept-Encoding: gzip, br", method="GET"))
            answer = client.answer()
        assert split(world.upstream.seen[0])[0]["accept-encoding"] == ["identity"]
        assert (payload(answer), b"content-encoding: gzip" in answer.head.lower()) == (coded, True)
        assert world.events("a", "response_body_chunk")[0]["body"] == b"hello " * 100
        world.on["a"] = lambda e: edit(e, "replace", b"new") if chunk_is(e, "response") else ALLOW
        with world.client() as client:
            client.send(head("/z/x", method="GET"))
            answer = client.answer()
        assert (payload(answer), b"content-encoding" in answer.head.lower()) == (b"new", False)

    def test_a_broken_coding_of_the_upstream_is_502(self, world: BodyWorld) -> None:
        world.upstream.reply = lambda request: [answered(b"not gzip", "Content-Encoding: gzip")]
        with world.client() as client:
            client.send(head("/z/x", method="GET"))
            assert client.answer().status == 502


class TestComplete:
    """request_complete: for every request, however it ended, with true numbers."""

    def test_of_a_good_request(self, world: BodyWorld) -> None:
        world.upstream.reply = lambda request: [answered(b"x" * 1000)]
        world.post("/buffer/good?y=1", b"body")
        done = world.completion("/buffer/good?y=1")
        assert (done["status"], done["request_body_size"], done["response_body_size"]) == (200, 4, 1000)
        assert (done["method"], done["uri"], done["upstream_attempts"]) == ("POST", "/buffer/good?y=1", 1)
        assert 0 < done["duration_ms"] < 10_000
        assert "error" not in done
        assert "decided_by" not in done
        assert done["metadata"]["route_id"] == "buffer"

    def test_of_a_blocked_one(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: BLOCK
        world.post("/buffer/blocked", b"body")
        done = world.completion("/buffer/blocked")
        assert (done["status"], done["decided_by"], done["upstream_attempts"]) == (403, "a", 0)

    def test_of_one_that_nobody_answered(self, world: BodyWorld) -> None:
        world.on["a"] = lambda e: None
        world.post("/buffer/silent", b"body")
        done = world.completion("/buffer/silent")
        assert (done["status"], done["error"]) == (504, "timeout")

    def test_of_one_whose_upstream_failed(self, world: BodyWorld) -> None:
        world.upstream.reply = lambda request: [None]
        assert world.post("/buffer/failed", b"body").status == 502
        done = world.completion("/buffer/failed")
        assert (done["status"], done["error"], done["upstream_attempts"]) == (502, "closed_early", 1)

    def test_of_one_whose_client_left(self, world: BodyWorld) -> None:
        """The pending question is taken back first."""
        world.on["a"] = lambda e: None if chunk_is(e) else ALLOW
        with world.client() as client:
            client.send(head("/buffer/left", "Content-Length: 4") + b"body")
            world.wait_for("a", "request_body_chunk")
        done = world.completion("/buffer/left")
        assert (done["status"], done["error"]) == (0, "client_gone")
        wait_until(lambda: world.agents["a"].cancelled)
        assert world.agents["a"].cancelled[0][1] == "client_gone"


def test_chunks_without_heads(world: BodyWorld) -> None:
    """An agent that asks for bodies alone gets bodies alone."""
    assert world.post("/bodies/x", b"body").status == 200
    assert [e["event_type"] for e in world.agents["d"].seen] == ["request_body_chunk", "response_body_chunk"]


def test_many_at_once_keep_their_own(world: BodyWorld) -> None:
    """Forty clients, each body changed by its own verdict."""
    world.on["a"] = lambda e: edit(e, "replace", b"<" + e["body"] + b">") if chunk_is(e) and e["body"] else ALLOW
    clients = [world.client() for _ in range(40)]
    for number, client in enumerate(clients):
        client.send(head(f"/stream/{number}", "Transfer-Encoding: chunked") + chunked(b"%d" % number))
    assert [client.answer().status for client in clients] == [200] * 40
    for client in clients:
        client.close()
    got = {request.split(b" ")[1]: split(request)[1] for request in world.upstream.seen}
    assert got == {b"/stream/%d" % n: b"<%d>" % n for n in range(40)}


def test_nothing_is_left_of_random_bodies(world: BodyWorld) -> None:
    """Three hundred requests of every kind, some left by their clients: afterwards nobody waits for anything."""
    dice = random.Random(7)

    def decide(event: dict[str, Any]) -> dict[str, Any] | None:
        if not event["event_type"].endswith("_chunk"):
            return BLOCK if dice.random() < 0.05 else ALLOW
        what = dice.choice(("pass", "pass", "drop", "replace", "skip", "hold", "block", "index"))
        if what == "hold":
            return ALLOW if event["is_last"] else NEEDS_MORE
        if what == "skip":
            return {"decision": "allow", "skip_body": True}
        if what == "block":
            return BLOCK
        if what == "index":
            return edit({**event, "chunk_index": 99}, "drop")
        return edit(event, what, b"new" if what == "replace" else b"")

    for name in "abc":
        world.on[name] = decide
    world.upstream.reply = lambda request: [
        answered(bytes(dice.randrange(2_000)), length=True)
        if dice.random() < 0.7
        else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(bytes(dice.randrange(1, 900)), b"end")
    ]
    routes = ["buffer", "stream", "par", "seq", "open", "openstream", "v1", "seen", "z", "bodies"]
    statuses = set()
    for number in range(300):
        path = f"/{dice.choice(routes)}/{number}"
        with world.client() as client:
            pieces = [bytes(dice.randrange(1, 3_000)) for _ in range(dice.randrange(4))]
            client.send(head(path, "Transfer-Encoding: chunked"))
            for piece in pieces:
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            if dice.random() < 0.2:
                continue
            client.send(b"0\r\n\r\n")
            try:
                statuses.add(client.answer().status)
            except (EOFError, ConnectionResetError):
                statuses.add(0)
    assert statuses >= {200, 403, 503}
    assert not statuses & {500, 502, 504}

    def is_idle() -> bool:
        lines = [line for line in metrics(world.system).splitlines() if line.startswith(_LEFT)]
        return len(lines) >= len(_LEFT) and all(float(line.rpartition(" ")[2]) == 0 for line in lines)

    wait_until(is_idle, 10)


_LEFT = (
    "wardgate_requests_in_flight ",
    "wardgate_events_pending ",
    "wardgate_bodies_outstanding_bytes ",
    "wardgate_agentd_exchanges_open ",
    "wardgate_agent_calls_in_flight{",
    "wardgate_agent_calls_queued{",
    "wardgate_agent_exchanges_pinned{",
)


def test_http_1_0_sees_a_cut_stream(world: BodyWorld) -> None:
    """Its response has no length and no chunks: the end of the connection would be the end of the body."""
    more = threading.Event()
    world.upstream.reply = lambda request: [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n",
        more,
        b"3\r\nbad\r\n0\r\n\r\n",
    ]
    world.on["a"] = lambda e: BLOCK if chunk_is(e, "response") and b"bad" in e["body"] else ALLOW
    with world.client() as client:
        client.send(b"GET /stream/x HTTP/1.0\r\nHost: a\r\n\r\n")
        while b"good" not in client.buffer:
            client._more()
        more.set()
        with pytest.raises(ConnectionResetError):
            client._more()


def test_observers_see_a_response_whose_head_took_its_time(world: BodyWorld) -> None:
    """The body was complete before the head was decided; the agent that decides about heads sees no bodies."""
    assert world.post("/heads/x", b"").status == 200
    (chunk,) = world.wait_for("o", "response_body_chunk")
    assert (chunk["body"], chunk["is_last"]) == (b"ok", True)


def test_agents_may_keep_a_body_longer_than_the_upstream_may_be_silent(world: BodyWorld) -> None:
    """needs_more on every chunk: the upstream has the head and waits for us, which is no fault of its own."""
    world.on["a"] = lambda e: NEEDS_MORE if chunk_is(e) and not e["is_last"] else ALLOW
    with world.client() as client:
        client.send(head("/patient/x", "Transfer-Encoding: chunked"))
        for count in range(1, 9):
            client.send(b"1\r\nx\r\n")
            world.wait_for("a", "request_body_chunk", count)
            time.sleep(0.2)  # no synchronisation: the client takes its time
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
    assert split(world.upstream.seen[0])[1] == b"x" * 8


def test_the_head_is_taken_back_from_its_agent_as_decided(world: BodyWorld) -> None:
    """Its body was too long meanwhile. The client has not left, and the agent is not told so."""
    world.on["a"] = lambda e: None
    with world.client() as client:
        client.send(head("/buffer/decided", "Transfer-Encoding: chunked"))
        world.wait_for("a", "request_headers")
        client.send(chunked(bytes(LIMIT + 1)))
        assert client.answer().status == 413
    wait_until(lambda: world.agents["a"].cancelled)
    assert [reason for _, reason in world.agents["a"].cancelled] == ["decided"]
    assert world.completion("/buffer/decided")["status"] == 413
