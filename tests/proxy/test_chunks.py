"""One stage: whatever comes in whatever pieces and whatever agents say when, what goes on is what they let through."""

import gzip
import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.chunks import ChunkStage
from proxy.flow import Flow
from proxy.plan_view import PlanView
from shared.decision import ALLOW, ChunkAction, ChunkVerdict, Decision, Outcome, Verb
from shared.defaults import BODY_CHUNK_BYTES
from shared.errors import CodingTooLarge
from shared.events import EventKind
from shared.plan import Ask, Plan

BLOCK = Decision(Verb.BLOCK, 403)
HOLD = Decision(chunk=ChunkVerdict(hold=1))
SKIP = Decision(chunk=ChunkVerdict(skip=1))
DROP = Decision(chunk=ChunkVerdict(ChunkAction.DROP, 0))


def replaced(by: bytes, place: int = 0, hold: int = 0) -> Decision:
    return Decision(body=by, chunk=ChunkVerdict(ChunkAction.REPLACE, place, hold))


class Front:
    """A flow's surroundings; questions are answered by the test."""

    def __init__(
        self,
        *asks: Ask,
        is_whole: bool = False,
        total: int = -1,
        chunk_bytes: int = BODY_CHUNK_BYTES,
    ) -> None:
        self.asked: list[tuple[Any, int, dict[str, Any], bytes]] = []
        self.masks: list[int] = []
        self.shown: list[tuple[dict[str, Any], bytes]] = []
        self.out = b""
        self.ends = 0
        self.refusals: list[Decision] = []
        self.holds: list[bool] = []
        self.exchange_id, self.correlation_id, self.client_ip = 1, b"c-1", ""
        self.route = SimpleNamespace(tally=[0] * 1_000)
        self.is_congested = False
        self.dispatch = SimpleNamespace(
            send_body=self._send,
            forget=self._forget,
            chunk_bytes=chunk_bytes,
            connects=1,
            failed=lambda view, mask, outcome: view.failed(mask, outcome),
            has_room=lambda size: not self.is_congested,
        )
        self.protocol = SimpleNamespace(context=SimpleNamespace(dispatch=self.dispatch, cells=[0] * 64))
        self.notes: list[str] = []
        self.coding_errors: list[Exception] = []
        self.was_shown = False
        self.connects = 0
        self.number = 0
        plan = Plan(0, "r", EventKind.REQUEST_BODY_CHUNK, False, False, asks)
        self.view = PlanView(plan, {})
        self.view.mask = plan.full_mask
        self.view.enforcing = plan.enforcing_mask
        self.view.observers = plan.full_mask & ~plan.enforcing_mask
        self.flow = Flow(self, [self.view], is_request=True, is_whole=is_whole, total=total)  # type: ignore[arg-type]

    def _send(
        self, asker: Any, view: PlanView, mask: int, event: bytes, body: bytes, index: int, is_last: bool, now: int
    ) -> "int | Decision":
        told = json.loads(event)
        assert (told["chunk_index"], told["is_last"]) == (index, is_last)
        self.shown.append((told, body))
        self.masks.append(mask)
        if not mask & view.deciders:
            return ALLOW
        assert not self.asked, "an agent never has two unanswered events of one direction"
        self.number += 1
        self.asked.append((asker, mask, told, body))
        return self.number

    def _forget(self, view: PlanView, event_id: int) -> None:
        self.asked.clear()

    def answer(self, decision: Decision = ALLOW) -> None:
        asker, *_ = self.asked.pop()
        asker.decided(decision)

    def let_through(self, flow: Flow, out: Any, is_all: bool) -> None:
        self.out += b"".join(out)
        self.ends += is_all

    def flow_refused(self, decision: Decision, kind: EventKind) -> None:
        self.refusals.append(decision)
        self.flow.close()

    def coding_failed(self, flow: Flow, error: Exception) -> None:
        flow.is_over = True
        self.coding_errors.append(error)

    def add_ops(self, decision: Decision) -> None:
        """Not looked at here."""

    def hold_source(self, flow: Flow) -> None:
        self.holds.append(True)

    def release_source(self, flow: Flow) -> None:
        self.holds.append(False)

    def note_passed_on(self, kind: EventKind, agent: str) -> None:
        self.notes.append(agent)


def ask(name: str = "a", mode: Any = "closed", *, observe: bool = False, limit: int = 1 << 30) -> Ask:
    return Ask(name, mode, observe, 200, False, limit)


def give(front: Front, *pieces: bytes, end: bool = True) -> None:
    for piece in pieces:
        front.flow.take(piece)
        front.flow.settle()
    if end:
        front.flow.end()
        front.flow.settle()


def test_nothing_is_shown_before_the_head_was_allowed() -> None:
    front = Front(ask())
    give(front, b"early", end=False)
    assert not front.asked
    front.flow.start()
    assert front.shown[0][1] == b"early"


def test_what_comes_meanwhile_is_shown_together() -> None:
    """Not a question for each read: what waited goes as one chunk."""
    front = Front(ask())
    front.flow.start()
    give(front, b"1", b"2", b"3")
    assert [body for _, body in front.shown] == [b"1"]
    front.answer()
    assert [body for _, body in front.shown] == [b"1", b"23"]
    assert front.shown[1][0]["is_last"]
    front.answer()
    assert (front.out, front.ends) == (b"123", 1)


def test_the_length_tells_the_last_chunk() -> None:
    """No empty one follows where Content-Length has been reached."""
    front = Front(ask(), total=4)
    front.flow.start()
    give(front, b"body")
    front.answer()
    assert [(told["is_last"], told["total_size"]) for told, _ in front.shown] == [(True, 4)]
    assert front.ends == 1


def test_a_body_over_a_limit_is_refused_or_passes_without_that_agent() -> None:
    front = Front(ask("a", limit=3))
    front.flow.start()
    give(front, b"body")
    assert (front.refusals[0].status, front.refusals[0].reason, front.shown) == (413, "body_too_large", [])
    front = Front(ask("a", "open", limit=3), ask("b"))
    front.flow.start()
    give(front, b"bo", end=False)
    front.answer()
    give(front, b"dy")
    assert front.masks == [0b11, 0b10]
    front.answer()
    assert (front.out, front.notes) == (b"body", ["a"])


def test_a_length_over_the_limit_needs_no_byte() -> None:
    front = Front(ask("a", limit=3), total=4)
    front.flow.start()
    assert front.refusals[0].status == 413


def test_what_was_held_for_an_agent_that_is_left_out_goes_on() -> None:
    """It said needs_more, then the body outgrew it, and its failure mode is open."""
    front = Front(ask("a", "open", limit=3))
    front.flow.start()
    give(front, b"bo", end=False)
    front.answer(HOLD)
    assert front.out == b""
    give(front, b"dy")
    assert (front.out, front.ends, front.refusals) == (b"body", 1, [])


@pytest.mark.parametrize(("mode", "refused", "out"), [("closed", True, b""), ("open", False, b"Xb")])
def test_a_second_mutation_of_held_bytes(mode: str, refused: bool, out: bytes) -> None:
    """b changed the chunk that a holds; what a says of it later is a's Malformed (semantics 13)."""
    front = Front(ask("a", mode), ask("b"))
    front.flow.start()
    give(front, b"a", end=False)
    front.answer(replaced(b"X", place=1, hold=0b01))
    give(front, b"b")
    front.answer(replaced(b"all", place=0))
    assert [decision.reason for decision in front.refusals] == (["malformed"] if refused else [])
    assert front.out == out


def test_each_holder_acts_on_what_is_held_for_it() -> None:
    """a holds from the first chunk, b from the second; b's edit covers its own, a then passes everything."""
    front = Front(ask("a"), ask("b"))
    front.flow.start()
    give(front, b"1", end=False)
    front.answer(Decision(chunk=ChunkVerdict(hold=0b01)))
    give(front, b"2", end=False)
    front.answer(Decision(chunk=ChunkVerdict(hold=0b11)))
    give(front, b"3", end=False)
    front.answer(replaced(b"TWO", place=1, hold=0b01))
    assert front.out == b""
    give(front, b"4")
    front.answer()
    assert front.out == b"1TWO4"


def test_back_pressure() -> None:
    """What waits for an answer stops the source, and lets it go on when it has gone."""
    front = Front(ask(), chunk_bytes=10)
    front.flow.start()
    give(front, b"x" * 8, b"y" * 8, end=False)
    assert front.holds == []
    give(front, b"z" * 8, end=False)
    assert front.holds == [True]
    front.answer()
    assert front.shown[-1][1] == b"y" * 8, "at most a chunk at a time"
    front.answer()
    assert front.holds == [True, False]


def test_observers_alone_hold_nothing_up() -> None:
    """They are told; the bytes pass beside them, and the flow gives nothing on itself."""
    front = Front(ask(observe=True))
    assert not front.flow.is_enforcing
    front.flow.start()
    give(front, b"1", b"2")
    assert [body for _, body in front.shown] == [b"1", b"2", b""]
    assert not front.holds


def test_an_observer_that_cannot_keep_up_loses_the_rest() -> None:
    """Never a gap: what comes later would mean something else without what came before."""
    front = Front(ask(observe=True))
    front.flow.start()
    give(front, b"1", end=False)
    front.is_congested = True
    give(front, b"2", end=False)
    front.is_congested = False
    give(front, b"3")
    assert [body for _, body in front.shown] == [b"1"]


@pytest.mark.parametrize(("mode", "out"), [("closed", b""), ("open", b"12")])
def test_another_agentd_is_not_shown_the_rest(mode: str, out: bytes) -> None:
    """It knows nothing of the pin, and whoever it asked would see a body without its beginning."""
    front = Front(ask("a", mode))
    front.flow.start()
    give(front, b"1", end=False)
    front.dispatch.connects += 1
    front.answer(front.view.failed(1, Outcome.DISCONNECTED))
    give(front, b"2")
    assert (front.out, len(front.shown)) == (out, 1)
    assert [decision.reason for decision in front.refusals] == ["disconnected"] * (mode == "closed")


def test_nor_a_body_whose_head_an_earlier_agentd_was_shown() -> None:
    front = Front(ask("a"))
    front.connects = front.dispatch.connects
    front.dispatch.connects += 1
    front.flow.start()
    give(front, b"1")
    assert (front.shown, [decision.reason for decision in front.refusals]) == ([], ["disconnected"])


def test_agents_that_want_nothing_of_it_are_left_out() -> None:
    """skip_body beside the head; who is left decides alone, or nobody does."""
    front = Front(ask("a"), ask("b"))
    front.flow.leave_out({"a"})
    front.flow.start()
    give(front, b"1", end=False)
    assert front.masks == [0b10]
    front.flow.leave_out({"b"})
    front.answer()
    give(front, b"2")
    assert (front.out, len(front.shown), front.ends) == (b"12", 1, 1)


def test_a_long_piece_is_cut() -> None:
    """Of a decoder, or of an agent before this one: no agent is shown more than a chunk."""
    front = Front(ask())
    front.flow.start()
    give(front, bytes(2 * BODY_CHUNK_BYTES + 5))
    while front.asked:
        front.answer()
    assert max(len(body) for _, body in front.shown) == BODY_CHUNK_BYTES
    assert len(front.out) == 2 * BODY_CHUNK_BYTES + 5


PIECES = st.lists(st.binary(min_size=1, max_size=4), max_size=8)


@given(PIECES, st.booleans(), st.booleans(), st.data())
def test_without_edits_what_comes_out_is_what_came_in(
    pieces: list[bytes], is_whole: bool, knows_length: bool, data: st.DataObject
) -> None:
    """Held, skipped, shown at once or late: every byte, in order, after it was decided on; one end."""
    body = b"".join(pieces)
    front = Front(ask("a"), ask("b"), is_whole=is_whole, total=len(body) if knows_length and body else -1)
    front.flow.start()
    waiting = list(pieces)
    is_ended = False
    said = [Decision(chunk=ChunkVerdict(hold=hold, skip=skip)) for hold in range(4) for skip in range(4)]
    while waiting or not is_ended or front.asked:
        decided = sum(len(shown) for _, shown in front.shown) - sum(len(entry[3]) for entry in front.asked)
        everybody_left = not front.view.enforcing or (front.masks and front.masks[-1] == 0)
        assert everybody_left or len(front.out) <= max(decided, len(front.out) if _all_skip(front) else 0)
        if front.asked and (data.draw(st.booleans()) or (not waiting and is_ended)):
            is_last = front.asked[0][2]["is_last"]
            decision = data.draw(st.sampled_from(said))
            if is_last:
                decision = Decision(chunk=ChunkVerdict(skip=decision.chunk.skip)) if decision.chunk else ALLOW
            front.answer(decision)
        elif waiting:
            front.flow.take(waiting.pop(0))
            front.flow.settle()
        elif not is_ended:
            is_ended = True
            front.flow.end()
            front.flow.settle()
    assert (front.out, front.ends, front.refusals) == (body, 1, [])
    seen = 0
    for told, shown in front.shown:
        seen += len(shown)
        assert told["bytes_received"] >= seen
    assert [told["chunk_index"] for told, _ in front.shown] == list(range(len(front.shown)))
    if is_whole and front.shown:
        assert front.shown[0][1] == body


def _all_skip(front: Front) -> bool:
    stage = front.flow._stages[0]
    assert isinstance(stage, ChunkStage)
    return not front.view.enforcing & ~stage._left_out


@given(PIECES, st.data())
def test_one_agent_against_a_model(pieces: list[bytes], data: st.DataObject) -> None:
    """needs_more keeps; whatever comes next acts on all that is kept; a drop is an empty replacement."""
    front = Front(ask("a"))
    front.flow.start()
    model, kept, skipped = b"", b"", False
    waiting: list[bytes | None] = [*pieces, None]
    while waiting:
        piece = waiting.pop(0)
        if piece is None:
            front.flow.end()
        else:
            front.flow.take(piece)
        front.flow.settle()
        if skipped:
            model += piece or b""
            continue
        _, _, told, shown = front.asked[0]
        what = data.draw(st.sampled_from(["pass", "drop", "replace", "skip"] + ["hold"] * (not told["is_last"])))
        kept += shown
        if what == "hold":
            front.answer(HOLD)
            continue
        if what == "replace":
            kept = data.draw(st.binary(max_size=3))
            front.answer(replaced(kept))
        elif what == "drop":
            kept = b""
            front.answer(DROP)
        else:
            skipped = what == "skip"
            front.answer(SKIP if skipped else ALLOW)
        model, kept = model + kept, b""
        assert front.out == model
    assert (front.out, front.ends) == (model, 1)


def test_a_refusal_ends_it() -> None:
    """Nothing that comes after it is shown or passed on."""
    front = Front(ask())
    front.flow.start()
    give(front, b"1", b"2", end=False)
    front.answer(BLOCK)
    give(front, b"3")
    assert (front.out, front.ends, len(front.shown), front.refusals) == (b"", 0, 1, [BLOCK])


def test_a_whole_body_that_nobody_waits_for_is_not_collected() -> None:
    """It outgrew its only, fail-open agent while the head was still undecided: from then on it counts as waiting."""
    front = Front(ask("a", "open", limit=3), is_whole=True, chunk_bytes=10)
    give(front, b"x" * 3, end=False)
    assert front.holds == []
    give(front, b"y" * 8, end=False)
    assert front.holds == [True]
    front.flow.start()
    assert (front.out, front.holds) == (b"xxxyyyyyyyy", [True, False])


@pytest.mark.parametrize("wanted", [0, 0b10])
def test_a_hello_in_mid_body_frees_nobody(wanted: int) -> None:
    """Another instance of a wants no bodies: what this one holds, and what follows, is its to decide all the same."""
    front = Front(ask("a"), ask("b"))
    front.flow.start()
    give(front, b"1", end=False)
    front.answer(HOLD)
    front.view.mask = front.view.enforcing = wanted
    give(front, b"2")
    assert (front.out, front.masks) == (b"", [0b11, 0b11])
    front.answer(BLOCK)
    assert (front.out, front.refusals) == (b"", [BLOCK])


def coded(pieces: list[bytes], front: Front) -> Flow:
    """A flow whose bodies come in gzip; the pieces are given to it."""
    flow = front.flow = Flow(front, [front.view], is_request=True, is_whole=False, total=-1, codings=b"gzip")  # type: ignore[arg-type]
    flow.start()
    for piece in pieces:
        flow.take(piece)
        flow.settle()
    return flow


def test_nothing_coded_is_kept_of_what_goes_decoded() -> None:
    """The first chunk was changed, so the rest goes as agents saw it: its coded bytes are of no more use."""
    front = Front(ask())
    body = gzip.compress(random.Random(1).randbytes(100_000))
    flow = coded([body[:1_000]], front)
    front.answer(replaced(b"new"))
    flow.take(body[1_000:])
    flow.end()
    flow.settle()
    while front.asked:
        front.answer()
    assert front.out.startswith(b"new")
    assert front.ends == 1
    assert not flow._coded


def test_coded_bytes_that_decode_to_nothing_do_not_pile_up() -> None:
    """Empty blocks of deflate: limits and back-pressure count decoded bytes, of which there are none."""
    front = Front(ask())
    empty_blocks = b"\x00\x00\x00\xff\xff" * 13_000
    flow = coded([gzip.compress(b"")[:10]], front)
    for _ in range(17):
        flow.take(empty_blocks)
    assert [type(error) for error in front.coding_errors] == [CodingTooLarge]
    assert sum(len(data) for _, data in flow._coded) <= BODY_CHUNK_BYTES + 2 * len(empty_blocks)
