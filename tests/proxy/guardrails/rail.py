"""A flow of nothing but one stage, and agents that find what a pattern finds."""

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import orjson

from proxy.chunks import Stage
from proxy.guardrails.asking import Rail
from proxy.guardrails.inspect import Judged
from proxy.guardrails.stream import StreamStage
from proxy.guardrails.whole import WholeStage
from shared.config.schema_routes import Guardrail
from shared.decision import ALLOW, Decision, Finding, Inspection
from shared.events import EventKind

Event = dict[str, Any]
Decide = Callable[[Event], Decision]


def found(event: Event, pattern: str, category: str = "secret", severity: int = 2, *, spans: bool = True) -> Decision:
    """What an agent says that looks for a pattern."""
    content = event["content"]
    findings = []
    for match in re.finditer(pattern, content):
        start = len(content[: match.start()].encode())
        span = (start, start + len(match[0].encode())) if spans else (-1, -1)
        findings.append(Finding(category, severity, "", 0.9, *span))
    if not findings:
        return ALLOW
    redacted = None if spans else re.sub(pattern, "<gone>", content)
    return Decision(inspections=(Inspection("g", True, 0.9, tuple(findings), redacted),))


class FakeFlow:
    """What a stage needs of proxy/flow.py; answers at once, or when told to (`is_slow`)."""

    def __init__(
        self, decide: Decide, *, is_slow: bool = False, content_type: bytes = b"application/json", charset: bytes = b""
    ) -> None:
        self.decide = decide
        self.is_slow = is_slow
        self.content_type = content_type
        self.charset = charset
        self.exchange_id = 7
        self.correlation_id = b"c-7"
        self.client_ip = "192.0.2.1"
        self.is_over = False
        self.is_plain = True
        self.may_edit = True
        self.events: list[Event] = []
        self.out: list[bytes] = []
        self.is_ended = False
        self.refused: Decision | None = None
        self.ops: list[Decision] = []
        self.waiting = 0
        self.questions: list[tuple[Any, Event]] = []

    def ask(self, asker: Any, view: Any, event: bytes, body: bytes = b"", index: int = 0, is_last: bool = False) -> Any:
        told = orjson.loads(event)
        self.events.append(told)
        if not self.is_slow:
            return self.decide(told)
        self.questions.append((asker, told))
        return None

    def answer(self) -> bool:
        """Answer the oldest question; False = there is none."""
        if not self.questions or self.is_over:
            return False
        asker, told = self.questions.pop(0)
        asker.decided(self.decide(told))
        return True

    def refuse(self, decision: Decision, kind: EventKind) -> None:
        assert kind is EventKind.GUARDRAIL_INSPECT
        if not self.is_over:
            self.is_over = True
            self.refused = decision

    def edited(self, agent: str) -> bool:
        return self.may_edit

    def add_ops(self, decision: Decision) -> None:
        self.ops.append(decision)

    def pressure(self, delta_bytes: int) -> None:
        self.waiting += delta_bytes
        assert self.waiting >= 0

    @property
    def body(self) -> bytes:
        return b"".join(self.out)


class End(Stage):
    """Behind the stage."""

    __slots__ = ()

    def take(self, data: bytes) -> None:
        assert data
        self.flow.out.append(data)  # type: ignore[attr-defined]

    def end(self) -> None:
        assert not self.flow.is_ended
        self.flow.is_ended = True

    def settle(self) -> None:
        """Nothing is behind it."""


class Watch:
    def __init__(self) -> None:
        self.seen: list[tuple[str, Judged]] = []

    def found(self, flow: Any, part: str, judged: Judged) -> None:
        self.seen.append((part, judged))

    @property
    def told(self) -> list[tuple[str, str]]:
        """(category, action) of everything accounted for."""
        return [(one.category, one.action) for _, judged in self.seen for one in judged.found]


class Run:
    """One body through one stage."""

    def __init__(
        self,
        decide: Decide,
        rules: Guardrail | None = None,
        *,
        part: str = "completion",
        kind: type[WholeStage] | type[StreamStage] = WholeStage,
        window: int = 32,
        max_bytes: int = 100_000,
        is_slow: bool = False,
        content_type: bytes = b"application/json",
        charset: bytes = b"",
    ) -> None:
        self.flow = FakeFlow(decide, is_slow=is_slow, content_type=content_type, charset=charset)
        self.watch = Watch()
        rules = rules or Guardrail(("g",), "redact", ("pii_detection",))
        view: Any = SimpleNamespace(kind=EventKind.GUARDRAIL_INSPECT, mask=1)
        rail = Rail(view, part, rules, max_bytes, window, "llm", self.watch)
        flow: Any = self.flow
        self.stage = kind(flow, rail)
        self.stage.next = End(flow)
        self.stage.start()

    def feed(self, *pieces: bytes) -> "Run":
        for piece in pieces:
            if piece and not self.flow.is_over:
                self.stage.take(piece)
                if not self.flow.is_over:
                    self.stage.settle()
        return self

    def end(self) -> "Run":
        if not self.flow.is_over:
            self.stage.end()
        if not self.flow.is_over:
            self.stage.settle()
        return self

    def answers(self) -> "Run":
        """Answer until nobody asks any more."""
        while self.flow.answer():
            pass
        return self


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The bytes in pieces of these sizes, over and over."""
    pieces = []
    at = turn = 0
    while at < len(data):
        size = max(sizes[turn % len(sizes)], 1)
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces
