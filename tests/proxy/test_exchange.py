"""The exchange's table: event sentences, and what holds for every path through it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange import TRANSITIONS, Exchange, Input, State
from shared.decision import ALLOW, Decision, HeaderOp, OpAction, Verb
from shared.errors import IllegalTransition, RequestRefused, UpstreamFailed
from shared.events import EventKind

BLOCK = Decision(Verb.BLOCK, 403, (), b"no")
FAILED = UpstreamFailed(502, "closed_early", "closed early")
BROKEN = RequestRefused(400, "bad chunk")
RESPONSE = object()
ENDINGS = {"relay_end", "relay_whole", "refuse", "fail", "reject", "abort_client", "vanish"}


class Script(Exchange):
    """An exchange whose commands go into a list; `answers` decides what `ask` says at once."""

    def __init__(self, answers: dict[EventKind, Decision | None] | None = None, *, connects: bool = False) -> None:
        super().__init__()
        self.done: list[Any] = []
        self.answers = answers or {}
        self.connects = connects
        self.awaits_continue = True

    def ask(self, kind: EventKind) -> Decision | None:
        self.done.append(("ask", kind.wire_name))
        return self.answers.get(kind)

    def connect(self) -> None:
        self.done.append("connect")
        if self.connects:
            self.feed(Input.CONNECTED)

    def relay_head(self, ops: tuple[HeaderOp, ...]) -> None:
        self.done.append(("relay_head", tuple(op.name for op in ops)))

    def send_head(self, ops: tuple[HeaderOp, ...]) -> None:
        self.done.append("send_head")

    def refuse(self, decision: Decision, ops: tuple[HeaderOp, ...]) -> None:
        self.done.append(("refuse", decision.status))


def _command(name: str) -> Any:
    def record(self: Script, *args: Any) -> None:
        self.done.append((name, *args) if args else name)

    return record


for _name in (
    "cancel_ask", "say_continue", "hold_client", "release_client", "send_body", "end_body", "hold_upstream",
    "release_upstream", "abort_upstream", "relay_data", "relay_end",
    "relay_whole", "fail", "reject", "abort_client", "vanish",
):  # fmt: skip
    setattr(Script, _name, _command(_name))

NOBODY = {EventKind.REQUEST_HEADERS: ALLOW, EventKind.RESPONSE_HEADERS: ALLOW}


def play(x: Script, *inputs: Any) -> list[Any]:
    for what in inputs:
        if isinstance(what, tuple):
            x.feed(*what)
        else:
            x.feed(what)
    return x.done


def test_nobody_to_ask_goes_straight_through() -> None:
    """Without agents: connect, head, body, response, no question in between."""
    x = Script(NOBODY, connects=True)
    done = play(x, Input.BEGIN, Input.BODY_END, (Input.HEAD, RESPONSE), (Input.DATA, b"x"), Input.END)
    assert done == [
        ("ask", "request_headers"), "say_continue", "connect", "send_head", "end_body",
        ("ask", "response_headers"), ("relay_head", ()), ("relay_data", b"x"), "relay_end",
    ]  # fmt: skip
    assert x.state is State.ENDED


def test_no_body_byte_before_the_decision() -> None:
    """Body that comes early is held, the client is paused, and all of it follows the head."""
    x = Script()
    play(x, Input.BEGIN, (Input.BODY, b"a"), (Input.BODY, b"b"))
    assert not [c for c in x.done if c[0] == "send_body"]
    assert x.done.count("hold_client") == 2
    play(x, (Input.DECISION, ALLOW), (Input.BODY, b"c"), Input.CONNECTED, Input.BODY_END)
    assert x.done[-6:] == [
        "send_head", ("send_body", b"a"), ("send_body", b"b"), ("send_body", b"c"), "release_client", "end_body",
    ]  # fmt: skip


def test_block_answers_without_upstream() -> None:
    """A block in the request phase: the upstream is never touched."""
    assert play(Script(), Input.BEGIN, (Input.DECISION, BLOCK)) == [("ask", "request_headers"), ("refuse", 403)]


def test_response_ops_of_the_request_phase_come_first() -> None:
    """Operations for the response given early run before those of the response phase (semantics 4)."""
    early = Decision(response_ops=(HeaderOp(OpAction.SET, "early", "1"),))
    late = Decision(response_ops=(HeaderOp(OpAction.SET, "late", "1"),))
    x = Script(connects=True)
    play(x, Input.BEGIN, (Input.DECISION, early), Input.BODY_END, (Input.HEAD, RESPONSE), (Input.DECISION, late))
    assert ("relay_head", ("early", "late")) in x.done


def test_response_is_held_until_decided() -> None:
    """Head, body and even the end of the response wait for the agents; then all of it goes at once."""
    x = Script(connects=True)
    play(x, Input.BEGIN, (Input.DECISION, ALLOW), Input.BODY_END, (Input.HEAD, RESPONSE), (Input.DATA, b"x"), Input.END)
    assert x.state is State.RESPONSE_ASKED
    assert "hold_upstream" in x.done
    assert play(x, (Input.DECISION, ALLOW))[-3:] == [("relay_head", ()), ("relay_data", b"x"), "relay_end"]


def test_response_block_drops_the_upstream() -> None:
    """A refused response: the upstream connection is aborted, its body never reaches the client."""
    x = Script(connects=True)
    play(x, Input.BEGIN, (Input.DECISION, ALLOW), Input.BODY_END, (Input.HEAD, RESPONSE), (Input.DECISION, BLOCK))
    assert x.done[-2:] == ["abort_upstream", ("refuse", 403)]


def test_upstream_dies_while_response_is_asked() -> None:
    """Nothing has gone to the client yet, so it gets a 502, and the question is taken back."""
    x = Script(connects=True)
    play(x, Input.BEGIN, (Input.DECISION, ALLOW), Input.BODY_END, (Input.HEAD, RESPONSE), (Input.FAILED, FAILED))
    assert x.done[-2:] == ["cancel_ask", ("fail", FAILED)]


def test_upstream_dies_while_relaying() -> None:
    """A partial response is never ended cleanly."""
    x = Script(NOBODY, connects=True)
    play(x, Input.BEGIN, Input.BODY_END, (Input.HEAD, RESPONSE), (Input.DATA, b"x"), (Input.FAILED, FAILED))
    assert x.done[-1] == ("abort_client", "closed_early")


def test_abandoned_upload_is_aborted() -> None:
    """A client that leaves in mid-body: the upstream connection is aborted, never ended."""
    x = Script(NOBODY, connects=True)
    play(x, Input.BEGIN, (Input.BODY, b"half"), Input.GONE)
    assert x.done[-2:] == ["abort_upstream", "vanish"]
    assert "end_body" not in x.done


def test_retry_sends_the_head_again() -> None:
    """A reused connection that died: the connector gives another, the head and the end follow again."""
    x = Script(NOBODY)
    play(x, Input.BEGIN, Input.BODY_END, Input.CONNECTED, Input.LOST, Input.CONNECTED)
    assert x.done[-4:] == ["send_head", "end_body", "send_head", "end_body"]


def test_body_that_comes_during_a_retry_is_held() -> None:
    """Between two connections there is nobody to give it to: it follows the second head, whole."""
    x = Script(NOBODY)
    play(x, Input.BEGIN, Input.CONNECTED, Input.LOST, (Input.BODY, b"body"), Input.BODY_END)
    assert ("send_body", b"body") not in x.done
    play(x, Input.CONNECTED)
    assert x.done[-4:] == ["send_head", ("send_body", b"body"), "release_client", "end_body"]


def test_client_gone_during_a_retry() -> None:
    """The wait is given up, and a connection that comes all the same is not left half used."""
    x = Script(NOBODY)
    play(x, Input.BEGIN, Input.CONNECTED, Input.LOST, Input.GONE)
    assert x.done[-2:] == ["abort_upstream", "vanish"]
    play(x, Input.CONNECTED)
    assert x.done[-1] == "abort_upstream"


def test_a_response_in_one_piece() -> None:
    """Nobody to ask: one command. Somebody: held whole, then the same as in pieces."""
    x = Script(NOBODY, connects=True)
    x.asks_response = False
    play(x, Input.BEGIN, Input.BODY_END, (Input.WHOLE, (RESPONSE, b"x")))
    assert (x.done[-1], x.state, x.response) == (("relay_whole", b"x"), State.ENDED, RESPONSE)
    x = Script({EventKind.REQUEST_HEADERS: ALLOW}, connects=True)
    play(x, Input.BEGIN, Input.BODY_END, (Input.WHOLE, (RESPONSE, b"x")))
    assert (x.done[-1], x.state) == (("ask", "response_headers"), State.RESPONSE_ASKED)
    assert play(x, (Input.DECISION, ALLOW))[-3:] == [("relay_head", ()), ("relay_data", b"x"), "relay_end"]
    x = Script({EventKind.REQUEST_HEADERS: ALLOW}, connects=True)
    play(x, Input.BEGIN, Input.BODY_END, (Input.WHOLE, (RESPONSE, b"x")))
    assert play(x, (Input.DECISION, BLOCK))[-1] == ("refuse", 403)
    assert "abort_upstream" not in x.done, "its connection is another's already"


def test_a_request_without_a_body_is_whole_with_its_head() -> None:
    x = Script(NOBODY, connects=True)
    x.has_body, x.is_request_ended = False, True
    assert play(x, Input.BEGIN)[-1] == "send_head"


def test_illegal_pair_names_both() -> None:
    with pytest.raises(IllegalTransition, match=r"NEW.*DECISION"):
        Script().feed(Input.DECISION, ALLOW)


def test_every_state_is_reachable_or_reserved() -> None:
    """The table leads everywhere but to the two places kept for the body phases."""
    reached = {state for _, states in TRANSITIONS.values() for state in states} | {State.NEW}
    assert set(State) - reached == {State.BODY_ASKED, State.RESPONSE_BODY_ASKED}


VALUES = {
    Input.DECISION: st.sampled_from([ALLOW, BLOCK]),
    Input.BODY: st.binary(min_size=1, max_size=3),
    Input.DATA: st.binary(min_size=1, max_size=3),
    Input.HEAD: st.just(RESPONSE),
    Input.WHOLE: st.sampled_from([(RESPONSE, b""), (RESPONSE, b"x")]),
    Input.FAILED: st.just(FAILED),
    Input.BROKEN: st.just(BROKEN),
}


@given(st.data())
def test_any_path_keeps_the_promises(data: st.DataObject) -> None:
    """Whatever comes in whatever legal order: allowed states only, one ending, nothing after it."""
    answers = {kind: data.draw(st.sampled_from([None, ALLOW, BLOCK])) for kind in NOBODY}
    x = Script(answers, connects=data.draw(st.booleans()))
    x.asks_response = data.draw(st.booleans())
    x.feed(Input.BEGIN)
    for _ in range(data.draw(st.integers(0, 12))):
        before, count = x.state, len(x.done)
        legal = [what for what in Input if (before, what) in TRANSITIONS]
        if x.is_request_ended:
            legal = [what for what in legal if what not in (Input.BODY, Input.BODY_END)]
        what = data.draw(st.sampled_from(legal))
        x.feed(what, data.draw(VALUES.get(what, st.none())))
        assert x.state in TRANSITIONS[before, what][1]
        if before is State.ENDED and what is not Input.CONNECTED:
            assert len(x.done) == count, "an ended exchange does nothing"
    names = [c if isinstance(c, str) else c[0] for c in x.done]
    endings = [name for name in names if name in ENDINGS]
    assert len(endings) == (x.state is State.ENDED)
    if "refuse" in names or "send_head" not in names:
        assert "relay_head" not in names
    if "send_body" in names:
        assert names.index("send_head") < names.index("send_body")
    if "relay_data" in names:
        assert names.index("relay_head") < names.index("relay_data")
