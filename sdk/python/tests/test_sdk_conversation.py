"""Whole conversations with agentd as scripts, the clock turned by hand."""

from typing import Any

import orjson
import pytest

from wardgate_agent import wire as w
from wardgate_agent.conversation import TRANSITIONS, Conversation, Input, State
from wardgate_agent.session import Session

NONCE = bytes(range(32))


class Script:
    """A conversation whose port is a list. `now` is a number."""

    def __init__(self, secret: bytes | None = None) -> None:
        self.now = 1000.0
        self.said: list[list[bytes]] = []
        self.log: list[Any] = []
        self.running = 0
        self.sends = True
        self.session = Session()
        self.talk = Conversation(
            self,
            self.session,
            hello={"protocol": 2, "agent": "waf", "instance": "i1"},
            secret=secret,
            drain_deadline_s=30,
        )

    # Port
    def send(self, frames: list[bytes]) -> bool:
        self.said.append(frames)
        return self.sends

    def reconnect(self) -> None:
        self.log.append("reconnect")

    def opened(self) -> None:
        self.session.opened(self.send, None)

    def configure(self, raw: dict[str, Any], epoch: int) -> None:
        self.log.append(("configure", raw))
        self.talk.configured(epoch, raw.get("config_version"), raw.get("problem"))

    def events(self, frames: list[bytes]) -> None:
        self.log.append("events")

    def unconfigured(self, frames: list[bytes]) -> None:
        self.log.append("unconfigured")

    def cancel(self, frames: list[bytes]) -> None:
        self.log.append("cancel")

    def lost(self) -> None:
        self.session.closed()

    def in_flight(self) -> int:
        return self.running

    def stop(self, exit_code: int, reason: str) -> None:
        self.log.append(("stop", exit_code))

    # the script
    def hear(self, verb: bytes, *frames: Any) -> "Script":
        body = [frame if isinstance(frame, bytes) else orjson.dumps(frame) for frame in frames]
        self.talk.received([verb, *body], self.now)
        return self

    def up(self) -> "Script":
        self.talk.up(self.now)
        return self

    def ready(self) -> "Script":
        self.up().hear(w.WELCOME, {"protocol": 2, "session": "s", "heartbeat_ms": 1000})
        self.hear(w.CONFIG, {"config": None, "config_version": "1"})
        assert self.talk.state is State.READY
        self.said.clear()
        self.log.clear()
        return self

    def pass_time(self, seconds: float) -> "Script":
        end = self.now + seconds
        due = self.talk.tick(self.now)
        while due <= end:
            self.now = due
            due = self.talk.tick(self.now)
        self.now = end
        return self

    def verbs(self) -> list[bytes]:
        out = [frames[0] for frames in self.said]
        self.said.clear()
        return out


def test_from_hello_to_ready() -> None:
    script = Script().up()
    assert script.verbs() == [w.HELLO]
    script.hear(w.WELCOME, {"protocol": 2, "session": "s", "heartbeat_ms": 500})
    assert script.talk.state is State.CONFIGURING
    script.hear(w.CONFIG, {"config": {"a": 1}, "config_version": "7"})
    assert script.talk.state is State.READY
    assert script.session.is_ready
    assert orjson.loads(script.said[-1][1]) == {"config_version": "7", "accepted": True}
    script.hear(w.EVENTS, [])
    assert script.log[-1] == "events"


def test_hello_is_repeated_every_second_until_answered() -> None:
    script = Script().up()
    script.pass_time(2.5)
    assert script.verbs() == [w.HELLO] * 3
    script.hear(w.WELCOME, {"protocol": 2})
    script.pass_time(0.9)
    assert script.verbs() == []


def test_hello_that_could_not_be_sent_is_tried_again_soon() -> None:
    script = Script()
    script.sends = False
    script.up().pass_time(0.25)
    assert len(script.verbs()) == 3


def test_proof() -> None:
    script = Script(secret=b"s3cret").up()
    script.said.clear()
    script.hear(w.CHALLENGE, NONCE)
    assert script.said == [[w.PROOF, w.proof(b"s3cret", NONCE, "waf", "i1")]]
    script.hear(w.WELCOME, {"protocol": 2})
    assert script.talk.state is State.CONFIGURING


def test_proof_is_the_documented_hmac() -> None:
    import hashlib
    import hmac

    text = b"wardgate-v2\x00" + NONCE + b"waf\x00i1"
    assert w.proof(b"k", NONCE, "waf", "i1") == hmac.new(b"k", text, hashlib.sha256).digest()
    assert w.read_secret(b"abc\n") == w.read_secret(b"abc\r\n") == w.read_secret(b"abc") == b"abc"
    assert w.read_secret(b"abc\n\n") == b"abc\n"


def test_a_secret_without_a_challenge_is_a_configuration_error() -> None:
    script = Script(secret=b"x").up().hear(w.WELCOME, {"protocol": 2})
    assert script.log == [("stop", 2)]


def test_a_challenge_without_a_secret_is_a_configuration_error() -> None:
    assert Script().up().hear(w.CHALLENGE, NONCE).log == [("stop", 2)]


@pytest.mark.parametrize("frames", [(), (b"short",), (NONCE, b"")])
def test_a_malformed_challenge_is_ignored(frames: tuple[bytes, ...]) -> None:
    """No oracle for nonces of any other length."""
    script = Script(secret=b"x").up()
    script.said.clear()
    script.hear(w.CHALLENGE, *frames)
    assert script.said == []


def test_another_protocol_is_refused() -> None:
    assert Script().up().hear(w.WELCOME, {"protocol": 3}).log == [("stop", 1)]


@pytest.mark.parametrize("code", ["unknown_agent", "not_allowed", "bad_proof", "missing_events", "config_rejected"])
def test_a_final_refusal_ends_the_agent(code: str) -> None:
    assert Script().up().hear(w.REFUSE, {"code": code, "reason": "r"}).log == [("stop", 1)]


def test_a_refusal_with_a_time_is_waited_out() -> None:
    script = Script().up()
    script.hear(w.REFUSE, {"code": "too_many", "reason": "r", "retry_after_ms": 5000})
    assert script.talk.state is State.WAITING
    script.said.clear()
    script.pass_time(4.9)
    assert script.verbs() == []
    script.pass_time(0.2)
    assert script.verbs() == [w.HELLO]


def test_a_refusal_outlives_its_connection() -> None:
    """agentd cuts whom it refuses; the new connection must not be used before the time has come."""
    script = Script().up().hear(w.REFUSE, {"code": "malformed", "retry_after_ms": 2000})
    script.talk.down(script.now)
    script.said.clear()
    script.up()
    assert script.verbs() == []
    script.pass_time(2.1)
    assert script.verbs() == [w.HELLO]


def test_a_refusal_that_ends_while_the_connection_is_away() -> None:
    script = Script().up().hear(w.REFUSE, {"code": "malformed", "retry_after_ms": 500})
    script.talk.down(script.now)
    script.pass_time(1)
    assert script.talk.state is State.AWAY
    script.said.clear()
    assert script.up().verbs() == [w.HELLO]


def test_shutting_down_is_never_final() -> None:
    script = Script().ready().hear(w.REFUSE, {"code": "shutting_down", "reason": "bye"})
    assert script.talk.state is State.WAITING
    script.pass_time(1.1)
    assert script.verbs()[-1] == w.HELLO


def test_an_unreadable_refusal_is_not_final() -> None:
    script = Script().ready().hear(w.REFUSE, b"{")
    assert script.talk.state is State.WAITING


def test_hello_first_says_hello_again_once() -> None:
    script = Script().ready()
    script.hear(w.REFUSE, {"code": "hello_first"}).hear(w.REFUSE, {"code": "hello_first"})
    assert script.verbs() == [w.HELLO]
    assert script.talk.state is State.GREETING
    assert not script.session.is_ready


def test_a_lost_connection_begins_anew() -> None:
    script = Script().ready()
    script.talk.down(script.now)
    assert script.talk.state is State.AWAY
    assert script.up().verbs() == [w.HELLO]


def test_up_without_down_begins_anew() -> None:
    script = Script().ready()
    script.up()
    assert script.talk.state is State.GREETING


def test_silence_is_pinged_and_then_left() -> None:
    script = Script().ready()
    script.pass_time(2.95)
    assert script.verbs() == [w.PING, w.PING]
    script.pass_time(0.1)
    assert script.log == ["reconnect"]
    assert script.talk.state is State.AWAY


def test_any_message_is_a_sign_of_life() -> None:
    script = Script().ready()
    for _ in range(10):
        script.pass_time(0.9).hear(b"WHATEVER")
    assert script.verbs() == []
    script.pass_time(1.0)
    assert script.verbs() == [w.PING]


def test_ping_is_echoed_in_every_state() -> None:
    script = Script().up()
    script.said.clear()
    script.hear(w.PING, b"\x00\x01", b"more")
    assert script.said == [[w.PONG, b"\x00\x01", b"more"]]


def test_a_second_welcome_changes_nothing() -> None:
    """HELLO may have been said twice before agentd read the first."""
    script = Script().ready().hear(w.WELCOME, {"protocol": 2, "heartbeat_ms": 200})
    assert script.talk.state is State.READY
    script.pass_time(0.25)
    assert script.verbs() == [w.PING]


def test_a_rejected_configuration_keeps_events_out() -> None:
    script = Script().up().hear(w.WELCOME, {"protocol": 2})
    script.hear(w.CONFIG, {"config_version": "1", "problem": "bad"})
    assert orjson.loads(script.said[-1][1]) == {"config_version": "1", "accepted": False, "error": "bad"}
    assert script.talk.state is State.CONFIGURING
    script.hear(w.EVENTS, [])
    assert script.log[-1] == "unconfigured"


def test_a_rejected_reload_keeps_the_old_one() -> None:
    script = Script().ready().hear(w.CONFIG, {"config_version": "2", "problem": "bad"})
    assert script.talk.state is State.READY


def test_the_answer_to_an_old_sessions_config_is_not_said() -> None:
    script = Script().ready()
    epoch = script.talk._epoch
    script.talk.down(script.now)
    script.up().hear(w.WELCOME, {"protocol": 2})
    script.said.clear()
    assert script.talk.configured(epoch, "1", None) is False
    assert script.said == []
    assert script.talk.state is State.CONFIGURING


def test_events_and_cancels_without_a_session_are_ignored() -> None:
    script = Script().up().hear(w.EVENTS, []).hear(w.CANCEL, []).hear(w.CONFIG, {})
    assert script.log == []
    assert script.talk.ignored == 2


def test_cancel_reaches_the_port() -> None:
    assert Script().ready().hear(w.CANCEL, []).log == ["cancel"]


def test_bye_from_agentd_is_not_the_end() -> None:
    """agentd may be restarted: agents come back by themselves (they only leave when they asked to)."""
    script = Script().ready().hear(w.BYE)
    assert script.talk.state is State.WAITING
    script.pass_time(1.1)
    assert script.verbs()[-1] == w.HELLO


def test_leaving_drains_waits_for_bye_and_says_bye() -> None:
    script = Script().ready()
    script.talk.leave(script.now)
    assert script.said.pop() == [w.DRAIN, b'{"deadline_ms":30000}']
    script.hear(w.EVENTS, [])  # of a pinned request
    assert script.log == ["events"]
    script.running = 1
    script.hear(w.BYE)
    assert script.verbs() == []
    script.running = 0
    script.talk.idle(script.now)
    assert script.verbs() == [w.BYE]
    assert script.log[-1] == ("stop", 0)


def test_leaving_does_not_wait_longer_than_its_deadline() -> None:
    script = Script().ready()
    script.talk.leave(script.now)
    for _ in range(31):
        script.pass_time(1.0).hear(w.PONG)
    assert ("stop", 0) in script.log
    assert script.verbs()[-1] == w.BYE


def test_leaving_twice_does_not_wait() -> None:
    script = Script().ready()
    script.talk.leave(script.now)
    script.talk.leave(script.now)
    assert script.log == [("stop", 0)]


@pytest.mark.parametrize("end", ["down", "refuse", "silence"])
def test_leaving_ends_with_its_session(end: str) -> None:
    script = Script().ready()
    script.talk.leave(script.now)
    if end == "down":
        script.talk.down(script.now)
    elif end == "refuse":
        script.hear(w.REFUSE, {"code": "shutting_down"})
    else:
        script.pass_time(3.1)
    assert script.log[-1] == ("stop", 0)


def test_leaving_without_a_session_is_at_once() -> None:
    script = Script()
    script.talk.leave(script.now)
    assert script.log == [("stop", 0)]
    script.talk.leave(script.now)
    script.up().hear(w.PING).talk.tick(script.now)
    assert script.log == [("stop", 0)]


def test_a_new_agentd_is_told_again() -> None:
    script = Script()
    script.session.health("degraded", "slow disk", 0.5)
    script.session.pause()
    assert script.said == []
    script.up().said.clear()
    script.hear(w.WELCOME, {"protocol": 2})
    assert script.said == [
        [w.HEALTH, b'{"state":"degraded","message":"slow disk","load":0.5}'],
        [w.PAUSE],
    ]
    script.session.resume()
    assert script.said[-1] == [w.RESUME]


def test_metrics_are_sent_when_they_changed() -> None:
    script = Script()
    counter = script.session.metrics.counter("hits")
    script.ready().pass_time(1)
    assert w.METRICS not in script.verbs()
    counter.inc()
    for _ in range(6):
        script.pass_time(0.9).hear(w.PONG)
    reports = [frames for frames in script.said if frames[0] == w.METRICS]
    assert len(reports) == 1
    assert orjson.loads(reports[0][1])["counters"] == [{"name": "hits", "labels": {}, "value": 1}]


def test_the_table_is_closed() -> None:
    """Every state has a row; whatever is alive can lose its connection and end."""
    assert TRANSITIONS.keys() == set(State)
    for state, row in TRANSITIONS.items():
        assert set(row) <= set(Input)
        if state is not State.LEFT:
            assert row[Input.END] is State.LEFT
