"""A body on its way past an agent, in a test: pieces in, what the proxy would let through out.

    chunks --event--> agent --answer--> held? passed, dropped, replaced --> Body

The proxy's rules for one agent that decides: needs_more holds, the next verdict without it acts on all that
is held, skip_body lets the rest pass, a refusal or an error (where the agent is fail-closed) ends it. How the
agent is asked is the test client's matter (testing.py).

Kind: pure.
"""

from collections.abc import Generator, Iterable
from typing import Any

from wardgate_agent.answer import Answer

Talk = Generator[tuple[dict[str, Any], bytes], Answer, "Body"]


class Body:
    """What became of a body."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []  # what went on, in the order in which it could
        self.answers: list[Answer] = []  # one per chunk that was shown
        self.refusal: Answer | None = None  # a block, redirect, challenge or error: the body's end

    @property
    def passed(self) -> bytes:
        """All that went on; where `refusal` is given, until then (a buffered body: nothing of it would)."""
        return b"".join(self.pieces)

    def assert_passed(self, expected: bytes | None = None) -> "Body":
        """The body went through, perhaps changed, as this."""
        assert self.refusal is None, f"expected a body that passes, the agent answered {self.refusal!r}"
        assert expected is None or self.passed == expected, f"expected {expected!r}, {self.passed!r} passed"
        return self

    def assert_blocked(self, status: int | None = None) -> "Body":
        """Some chunk was answered with a block."""
        assert self.refusal is not None, f"expected a block, {self.passed!r} passed"
        self.refusal.assert_blocked(status)
        return self

    def __repr__(self) -> str:
        return f"Body(passed={self.passed!r}, refusal={self.refusal!r})"


def pieces(data: bytes | Iterable[bytes], chunk_bytes: int | None) -> list[bytes]:
    """The chunks of a body: as they are given, or bytes cut at `chunk_bytes`. An empty body is one empty chunk."""
    if not isinstance(data, bytes):
        given = [bytes(chunk) for chunk in data]
    elif chunk_bytes is None:
        given = [data]
    else:
        given = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return given or [b""]


def talk(event_type: str, chunks: list[bytes], total_size: int | None, correlation_id: str) -> Talk:
    """Yields (event, its bytes), wants the agent's answer, and returns the Body."""
    body = Body()
    size_name = "bytes_received" if event_type == "request_body_chunk" else "bytes_sent"
    held: list[bytes] = []
    so_far = 0
    for index, chunk in enumerate(chunks):
        so_far += len(chunk)
        event = {
            "event_type": event_type,
            "correlation_id": correlation_id,
            "chunk_index": index,
            "is_last": index == len(chunks) - 1,
            size_name: so_far,
        }
        if total_size is not None:
            event["total_size"] = total_size
        answer = yield event, chunk
        body.answers.append(answer)
        if not answer.is_allow:
            body.refusal = answer
            return body
        held.append(chunk)
        if answer.needs_more:
            continue
        if answer.mutation == "replace":
            held = [answer.replacement or b""]
        elif answer.mutation == "drop":
            held = []
        body.pieces += filter(None, held)
        held = []
        if answer.skip_body:
            body.pieces += filter(None, chunks[index + 1 :])
            break
    return body
