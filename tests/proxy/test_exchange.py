"""The exchange's table: event sentences, and what holds for every path through it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.driver import Driver
from proxy.exchange import TRANSITIONS
from proxy.exchange_commands import Exchange
from proxy.exchange_states import Input, State
from shared.decision import ALLOW, Decision, HeaderOp, OpAction, Verb
from shared.errors import IllegalTransition, RequestRefused, UpstreamFailed
from shared.events import EventKind

BLOCK = Decision(Verb.BLOCK, 403, (), b"no")
FAILED = UpstreamFailed(502, "closed_early", "closed early")
BROKEN = RequestRefused(400, "bad chunk")
RESPONSE = object()
ENDINGS = {"relay_end", "relay_whole", "refuse", "break_off", "fail", "reject", "abort_client", "vanish", "finish"}


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
    "relay_whole", "break_off", "fail", "reject", "abort_client", "vanish",
    "open_tunnel", "tunnel_data", "tunnel_eof", "tunnel_failed", "tunnel_gone", "finish",
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


def test_every_state_is_reachable() -> None:
    reached = {state for _, states in TRANSITIONS.values() for state in states} | {State.NEW}
    assert set(State) == reached


def test_a_head_that_waits_for_its_body_goes_with_what_is_released() -> None:
    """Semantics 13: nothing goes upstream before; what was let through follows the head."""
    x = Script({EventKind.REQUEST_HEADERS: ALLOW}, connects=True)
    x.holds_head = True
    play(x, Input.BEGIN)
    assert (x.state, x.done[-1]) == (State.BODY_ASKED, "say_continue")
    play(x, (Input.RELEASED, ([b"a", b"b"], True)))
    assert x.done[-6:] == [
        "connect", "send_head", ("send_body", b"a"), ("send_body", b"b"), "release_client", "end_body",
    ]  # fmt: skip


def test_a_refused_body_touches_no_upstream_before_and_aborts_it_after() -> None:
    x = Script({EventKind.REQUEST_HEADERS: ALLOW}, connects=True)
    x.holds_head = True
    assert play(x, Input.BEGIN, (Input.REFUSED, BLOCK))[-2:] == ["say_continue", ("refuse", 403)]
    x = Script({EventKind.REQUEST_HEADERS: ALLOW}, connects=True)
    play(x, Input.BEGIN, (Input.BODY, b"a"), (Input.REFUSED, BLOCK))
    assert x.done[-2:] == ["abort_upstream", ("refuse", 403)]


def test_a_response_waits_for_its_body() -> None:
    """Until something of it was let through a refusal is an answer; afterwards the stream is broken off."""
    for refusal in (True, False):
        x = Script(NOBODY, connects=True)
        x.holds_response_head = True
        play(x, Input.BEGIN, Input.BODY_END, (Input.HEAD, RESPONSE))
        assert x.state is State.RESPONSE_BODY_ASKED
        assert "relay_head" not in [c[0] for c in x.done if isinstance(c, tuple)]
        if refusal:
            assert play(x, (Input.REFUSED, BLOCK))[-2:] == ["abort_upstream", ("refuse", 403)]
            continue
        play(x, (Input.RELEASED, ([b"a"], False)))
        assert x.done[-2:] == [("relay_head", ()), ("relay_data", b"a")]
        assert play(x, (Input.REFUSED, BLOCK))[-2:] == ["abort_upstream", ("break_off", BLOCK)]


def upgraded(x: Script) -> Script:
    x.is_upgrading = True
    play(x, Input.BEGIN, Input.BODY_END, (Input.HEAD, RESPONSE))
    return x


def test_an_upgrade_is_one_state_until_it_is_over() -> None:
    x = upgraded(Script(NOBODY, connects=True))
    assert (x.state, x.done[-1]) == (State.UPGRADED, ("open_tunnel", (), []))
    play(x, (Input.DATA, b"x"), Input.EOF, (Input.FAILED, FAILED), Input.GONE)
    assert x.state is State.UPGRADED
    assert x.done[-4:] == [("tunnel_data", b"x"), "tunnel_eof", ("tunnel_failed", FAILED), "tunnel_gone"]
    assert play(x, Input.CLOSED)[-1] == "finish"
    assert x.state is State.ENDED


def test_a_101_is_decided_like_any_response() -> None:
    """What follows it is held; a refusal is an ordinary one; an upstream that leaves meanwhile has failed."""
    asks = {EventKind.REQUEST_HEADERS: ALLOW}
    x = upgraded(Script(asks, connects=True))
    assert play(x, (Input.DATA, b"x"), (Input.DECISION, ALLOW))[-1] == ("open_tunnel", (), [b"x"])
    x = upgraded(Script(asks, connects=True))
    assert play(x, (Input.DECISION, BLOCK))[-2:] == ["abort_upstream", ("refuse", 403)]
    x = upgraded(Script(asks, connects=True))
    names = [done if isinstance(done, str) else done[0] for done in play(x, Input.EOF)]
    assert names[-3:] == ["abort_upstream", "cancel_ask", "fail"]


VALUES = {
    Input.DECISION: st.sampled_from([ALLOW, BLOCK]),
    Input.BODY: st.binary(min_size=1, max_size=3),
    Input.DATA: st.binary(min_size=1, max_size=3),
    Input.HEAD: st.just(RESPONSE),
    Input.WHOLE: st.sampled_from([(RESPONSE, b""), (RESPONSE, b"x")]),
    Input.RELEASED: st.tuples(st.lists(st.binary(min_size=1, max_size=3), max_size=2), st.booleans()),
    Input.REFUSED: st.just(BLOCK),
    Input.FAILED: st.just(FAILED),
    Input.BROKEN: st.just(BROKEN),
}


@given(st.data())
def test_any_path_keeps_the_promises(data: st.DataObject) -> None:
    """Whatever comes in whatever legal order: allowed states only, one ending, nothing after it."""
    answers = {kind: data.draw(st.sampled_from([None, ALLOW, BLOCK])) for kind in NOBODY}
    x = Script(answers, connects=data.draw(st.booleans()))
    x.asks_response = data.draw(st.booleans())
    x.holds_head, x.holds_response_head = data.draw(st.booleans()), data.draw(st.booleans())
    x.is_upgrading = data.draw(st.booleans())
    x.feed(Input.BEGIN)
    for _ in range(data.draw(st.integers(0, 12))):
        before, count = x.state, len(x.done)
        legal = [what for what in Input if (before, what) in TRANSITIONS]
        if x.is_body_ended:
            legal = [what for what in legal if what not in (Input.BODY, Input.BODY_END)]
        if x.holds_response_head or x.is_upgrading:  # then the driver feeds HEAD
            legal = [what for what in legal if what is not Input.WHOLE]
        if before is State.RESPONSE_ASKED and not x.is_upgrading:
            legal = [what for what in legal if what is not Input.EOF]
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


def test_observers_see_a_response_that_was_complete_before_its_head_was_decided() -> None:
    """Nothing else waits for the body then: it is shown before the exchange ends."""

    class Observed(Script):
        def begin_response_body(self) -> None:
            self.done.append("begin_response_body")

    x = Observed({EventKind.REQUEST_HEADERS: ALLOW}, connects=True)
    play(x, Input.BEGIN, Input.BODY_END, (Input.HEAD, RESPONSE), (Input.DATA, b"x"), Input.END, (Input.DECISION, ALLOW))
    assert x.done[-4:] == [("relay_head", ()), ("relay_data", b"x"), "begin_response_body", "relay_end"]


def test_a_head_decided_after_a_chunk_has_ended_the_exchange() -> None:
    """agentd has died with both questions: all answers are given in one loop, which must not break over the second."""
    driver = Driver.__new__(Driver)
    driver._asked_phase = None
    driver.state = State.ENDED
    driver.decided(ALLOW)
    assert driver.state is State.ENDED
