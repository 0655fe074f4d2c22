"""A body past several stages: each sees what the one before it made of it."""

import json
from types import SimpleNamespace
from typing import Any

from proxy.flow import Flow
from proxy.plan_view import PlanView
from shared.decision import ALLOW, ChunkAction, ChunkVerdict, Decision
from shared.events import EventKind
from shared.plan import Ask, Plan

CHUNK = EventKind.REQUEST_BODY_CHUNK


class Front:
    """The exchange in front of a flow, and agents that answer at once."""

    def __init__(self, *said: Any) -> None:
        self.said = said  # per stage: from the chunk's bytes to the decision
        self.shown: list[tuple[int, dict[str, Any], bytes]] = []
        self.out = b""
        self.is_ended = False
        self.exchange_id = 1
        self.connects = 0
        self.correlation_id = b"c-1"
        self.client_ip = "192.0.2.1"
        self.route = SimpleNamespace(tally=[0] * 1_000)
        dispatch = SimpleNamespace(send_body=self._asked, forget=lambda *_: None, chunk_bytes=65_536, connects=1)
        self.protocol = SimpleNamespace(context=SimpleNamespace(dispatch=dispatch))

    def flow(self, total: int) -> Flow:
        """One stage for each who says something."""
        ask = (Ask("waf", "closed", False, 200, False, 1 << 20),)
        views = []
        for stage in range(len(self.said)):
            view = PlanView(Plan(stage, "r", CHUNK, False, False, ask, stage), {})
            view.mask = view.enforcing = 1
            views.append(view)
        return Flow(self, views, is_request=True, is_whole=False, total=total)  # type: ignore[arg-type]

    def _asked(
        self, asker: Any, view: PlanView, mask: int, event: bytes, body: bytes, index: int, is_last: bool, now: int
    ) -> Decision:
        self.shown.append((view.number, json.loads(event), body))
        made: Decision = self.said[view.number](body)
        return made

    def let_through(self, flow: Flow, out: Any, is_all: bool) -> None:
        self.out += b"".join(out)
        self.is_ended = self.is_ended or is_all


def doubled(body: bytes) -> Decision:
    return Decision(body=body * 2, chunk=ChunkVerdict(ChunkAction.REPLACE, 0))


def passed(body: bytes) -> Decision:
    return ALLOW


def test_a_body_that_grew_does_not_end_where_its_length_was() -> None:
    """Content-Length is what the client sent: only the first stage may tell the end by it."""
    front = Front(doubled, passed)
    flow = front.flow(total=10)
    flow.start()
    for data in (b"first", b"secon"):
        flow.take(data)
        flow.settle()
    flow.end()
    flow.settle()
    assert front.out == b"firstfirstseconsecon"
    assert front.is_ended
    first, second = ([event for stage, event, _ in front.shown if stage == number] for number in (0, 1))
    assert [(event["is_last"], event["total_size"]) for event in first] == [(False, 10), (True, 10)]
    assert [event["is_last"] for event in second[:-1]] == [False] * (len(second) - 1)
    assert second[-1]["is_last"]
    assert all("total_size" not in event for event in second)
