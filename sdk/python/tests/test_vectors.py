"""The golden bytes of the agent protocol: what agentd sends is understood, what we send is what is written there.

The files are the project's, in tests/vectors of its repository; without it there is nothing to run.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from wardgate_agent import (
    Agent,
    AgentError,
    Allow,
    Block,
    Challenge,
    Detection,
    Guardrail,
    Redirect,
    WebSocketAllow,
    WebSocketClose,
    WebSocketDrop,
    WebSocketReplace,
    wire,
)
from wardgate_agent.conversation import Conversation, State
from wardgate_agent.dispatcher import Dispatcher
from wardgate_agent.session import Session
from wardgate_agent.testing import TestClient
from wardgate_agent.verdicts import HttpVerdict

FOLDER = Path(__file__).resolve().parents[3] / "tests" / "vectors"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the vectors are in Wardgate's repository")


def raw(frame: Any) -> bytes:
    return bytes.fromhex(frame["hex"]) if isinstance(frame, dict) else str(frame).encode()


def cases(file: str, sender: str | None = None) -> list[Any]:
    """The cases of one file as pytest parameters."""
    path = FOLDER / f"{file}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return [pytest.param(row, id=row["name"]) for row in rows if sender in (None, row.get("sender"))]


def one(file: str, name: str) -> list[bytes]:
    rows = json.loads((FOLDER / f"{file}.json").read_text())
    return next([raw(frame) for frame in row["frames"]] for row in rows if row["name"] == name)


class Port:
    """Everything behind a conversation; a dispatcher with an agent that allows."""

    def __init__(self, secret: bytes | None = None) -> None:
        self.sent: list[list[bytes]] = []
        self.did: list[Any] = []
        self.session = Session()
        self.dispatcher = Dispatcher(Agent(), max_concurrency=9, send=self.send, wake=lambda: None)
        self.talk = Conversation(
            self,
            self.session,
            hello={"protocol": 2, "agent": "waf", "instance": "h1-4242", "events": ["request_headers"]},
            secret=secret,
            drain_deadline_s=30,
        )
        self.talk.up(0.0)

    def ready(self) -> "Port":
        self.talk.received([b"WELCOME", b'{"protocol":2,"session":"s","heartbeat_ms":1000}'], 0.0)
        self.talk.received([b"CONFIG", b'{"config":null,"config_version":"1"}'], 0.0)
        self.sent.clear()
        self.did.clear()
        return self

    def send(self, frames: list[bytes]) -> bool:
        self.sent.append(frames)
        return True

    def events(self, frames: list[bytes]) -> None:
        self.dispatcher.events(frames)
        self.dispatcher.flush()

    def cancel(self, frames: list[bytes]) -> None:
        self.did.append("cancel")
        self.dispatcher.cancel(frames)

    def configure(self, given: dict[str, Any], epoch: int) -> None:
        self.did.append(given)
        self.talk.configured(epoch, given["config_version"], given.get("problem"))

    def unconfigured(self, frames: list[bytes]) -> None: ...
    def reconnect(self) -> None: ...

    def opened(self) -> None:
        self.session.opened(self.send, None)

    def lost(self) -> None: ...

    def in_flight(self) -> int:
        return 0

    def stop(self, exit_code: int, reason: str) -> None:
        self.did.append(exit_code)


# What an agent without hooks says to what is no HTTP; None: it is not answered.
PLAIN_ANSWER: dict[str, Any] = {
    "websocket_frame": WebSocketAllow()._fields,
    "guardrail_inspect": {"error": {"code": "unsupported", "message": "this agent inspects no texts"}},
    "request_complete": None,
}


@pytest.mark.parametrize("case", cases("proof"))
def test_proof(case: Any) -> None:
    mac = wire.proof(raw(case["secret"]), raw(case["nonce"]), case["agent"], case["instance"])
    assert mac == raw(case["mac"])


@pytest.mark.parametrize("case", cases("v2_frames", "agentd"))
def test_what_agentd_sends_is_understood(case: Any) -> None:
    frames = [raw(frame) for frame in case["frames"]]
    verb, *rest = frames
    is_greeting = verb in (wire.WELCOME, wire.CHALLENGE)
    port = Port(b"open sesame" if verb == wire.CHALLENGE else None)
    if not is_greeting:
        port.ready()
    port.sent.clear()
    port.talk.received(frames, 1.0)
    assert port.talk.ignored == 0
    body = orjson.loads(rest[0]) if rest and rest[0][:1] in (b"{", b"[") else None
    if verb == wire.CHALLENGE:
        assert port.sent == [one("v2_frames", "PROOF")]
    elif verb == wire.WELCOME:
        assert port.talk.state is State.CONFIGURING
    elif verb == wire.REFUSE:
        state = port.talk.state
        if body["code"] == "hello_first":
            assert state is State.GREETING
        else:
            assert state is (State.WAITING if "retry_after_ms" in body else State.LEFT)
    elif verb == wire.CONFIG:
        assert port.did == [body]
        assert orjson.loads(port.sent[0][1]) == {"config_version": body["config_version"], "accepted": True}
    elif verb == wire.EVENTS:
        allows = {row[0]: PLAIN_ANSWER.get(row[2]["event_type"], Allow()._fields) for row in body}
        told = {call: verdict for call, verdict in allows.items() if verdict is not None}
        sent = orjson.loads(port.sent[0][1]) if port.sent else []
        assert {row[0]: row[1] for row in sent} == told
    elif verb == wire.CANCEL:
        assert port.did == ["cancel"]
        assert port.dispatcher.unreadable == 0
    elif verb == wire.PING:
        assert port.sent == [[wire.PONG, *rest]]
    elif verb == wire.BYE:
        assert port.talk.state is State.WAITING
    else:
        assert verb in (wire.PONG, wire.DRAIN)


@pytest.mark.parametrize("case", cases("v2_bad_frames", "agentd"))
def test_what_nobody_may_send_is_ignored(case: Any) -> None:
    port = Port().ready()
    port.talk.received([raw(frame) for frame in case["frames"]], 1.0)
    assert port.talk.state is State.READY


def said(name: str) -> list[bytes]:
    """What we send, for every message of an agent that the vectors have and this SDK says."""
    port = Port().ready()
    session = port.session
    if name.startswith("HELLO"):
        port.talk.received([wire.REFUSE, b'{"code":"hello_first"}'], 1.0)
    elif name.startswith("CONFIG_RESULT"):
        problem = "paranoia must be 0 to 3" if name.endswith("no") else None
        port.configure({"config_version": "7", "problem": problem}, port.talk._epoch)
    elif name.startswith("HEALTH"):
        if name == "HEALTH, short":
            session.health("healthy")
        else:
            session.health("degraded", "rules are 2 h old", 0.75)
    elif name == "METRICS":
        session.metrics.counter("rules_matched_total").inc(17, rule="942100")
        session.metrics.gauge("rules_loaded").set(231)
        seconds = session.metrics.histogram("decide_seconds", (0.01, 0.1))
        for value in (0.005, 0.095, 0.4):
            seconds.observe(value)
        port.talk.tick(1.0)
    elif name in ("PAUSE", "RESUME"):
        getattr(session, name.lower())()
    elif name.startswith("DRAIN"):
        port.talk.leave(1.0)
    elif name.startswith("BYE"):
        port.talk.leave(1.0)
        port.talk.received([wire.BYE], 1.0)
    elif name == "PONG to it":
        port.talk.received([wire.PING, b"17"], 1.0)
    elif name.startswith("VERDICTS"):
        port.dispatcher._rows = Dispatcher(Masker(), max_concurrency=1, send=port.send, wake=lambda: None)._rows
        for asked in ASKED[name]:
            port.talk.received(one("v2_frames", asked), 1.0)
    return port.sent[-1]


_CHUNKS = "EVENTS, two chunks of different requests and one without a body"
ASKED = {
    "VERDICTS in another order, one with a body": ["EVENTS, two, the second with a body"],
    "VERDICTS on them: hold, pass, replace": [_CHUNKS],
    "VERDICTS on it: what was held is replaced, too": [_CHUNKS, "EVENTS, the chunk after one that is held"],
    "VERDICTS on it": ["EVENTS, guardrail_inspect"],
}


class Masker(Agent):
    def __init__(self) -> None:
        self.held = b""

    def on_request_headers(self, event: Any) -> Any:
        return Allow().set_request_header("x-agent", "ok")

    def on_request_body_chunk(self, event: Any) -> Any:
        self.held += event.body
        return Allow().replace_chunk(self.held.replace(b"secret", b"XXXXXX")) if event.is_last else Allow().needs_more()

    def on_response_body_chunk(self, event: Any) -> Any:
        return Allow().replace_chunk(event.body[::-1]) if event.body else Allow()

    def on_guardrail_inspect(self, event: Any) -> Any:
        span = event.span(9, 22)
        return Guardrail(True, 0.9, [Detection("email", span=span)], "Write to [email]")


@pytest.mark.parametrize(
    "name",
    [
        "HELLO, only what is required",
        "CONFIG_RESULT yes",
        "CONFIG_RESULT no",
        "HEALTH, short",
        "HEALTH with everything",
        "METRICS",
        "PAUSE",
        "RESUME",
        "BYE of an agent",
        "PONG to it",
        "VERDICTS in another order, one with a body",
        "VERDICTS on them: hold, pass, replace",
        "VERDICTS on it: what was held is replaced, too",
        "VERDICTS on it",
    ],
)
def test_what_we_send_is_what_is_written(name: str) -> None:
    """JSON is compared as JSON: its spaces and order are the agent's own."""
    expected, got = one("v2_frames", name), said(name)
    assert got[0] == expected[0]
    assert len(got) == len(expected)
    if name == "METRICS":
        ours, theirs = orjson.loads(got[1]), orjson.loads(expected[1])
        theirs["gauges"][0].setdefault("labels", {})
        assert ours == theirs
    elif name.startswith("VERDICTS"):
        assert sorted(orjson.loads(got[1])) == sorted(orjson.loads(expected[1]))
        assert got[2:] == expected[2:]
    else:
        readable = [orjson.loads(frame) if frame[:1] == b"{" else frame for frame in got[1:]]
        assert readable == [orjson.loads(frame) if frame[:1] == b"{" else frame for frame in expected[1:]]


@pytest.mark.parametrize("case", cases("events"))
def test_every_event_is_readable(case: Any) -> None:
    seen: list[Any] = []

    class Reader(Agent):
        pass

    def look(event: Any) -> Any:
        names = [name for name in dir(type(event)) if not name.startswith("_") and name not in ("span",)]
        seen.append({name: getattr(event, name) for name in names})
        return Allow() if event.event_type != "request_complete" else None

    event = orjson.loads(case["event"])
    reader = Reader()
    setattr(reader, "on_" + event["event_type"], look)
    with TestClient(reader) as client:
        answer = client.send_raw(event, raw(case.get("body", "")))
    assert answer.decision in ("allow", "none", "other")
    assert len(seen) == 1
    for name, value in seen[0].items():
        if name in event and name not in ("headers", "metadata", "raw"):
            assert value == event[name], name
    assert seen[0]["body"] == raw(case.get("body", ""))
    if "headers" in event:
        assert seen[0]["headers"].raw == event["headers"]


SAID: dict[str, HttpVerdict | AgentError] = {
    "allow": Allow(),
    "allow with header operations, in order": Allow()
    .set_request_header("X-A", "1")
    .add_request_header("x-a", "2")
    .remove_request_header("cookie")
    .set_response_header("x-frame-options", "DENY"),
    "block, as short as can be": Block(403),
    "block with text": Block(429, "slow down"),
    "block with headers, one of them twice": Block(
        403, "<p>no</p>", {"Content-Type": "text/html", "set-cookie": ["a=1", "b=2"]}
    ),
    "redirect 308": Redirect("/new", 308),
    "challenge basic": Challenge("basic", realm='the "members"'),
    "challenge captcha": Challenge("captcha", site="k1"),
    "error": AgentError("rules", "cannot read the rules"),
}


@pytest.mark.parametrize("name", SAID)
def test_our_verdicts_are_the_written_ones(name: str) -> None:
    rows = json.loads((FOLDER / "verdicts.json").read_text())
    expected = next(row["verdict"] for row in rows if row["name"] == name)
    agent = Agent()
    agent.on_request_headers = lambda event: SAID[name]  # type: ignore[method-assign,assignment,return-value]
    with TestClient(agent) as client:
        assert client.request_headers().verdict == json.loads(expected)


SAID_OF_EVENTS: dict[str, Any] = {
    "a chunk passes": Allow(),
    "a chunk is dropped": Allow().drop_chunk(),
    "a chunk is replaced by the body frame": Allow().replace_chunk(b"my XX"),
    "a response's chunk is replaced by bytes": Allow().replace_chunk(b"\xff\x00"),
    "replace without a frame leaves nothing": Allow().replace_chunk(b""),
    "needs_more": Allow().needs_more(),
    "skip_body": Allow().skip_body(),
    "skip_body beside a mutation": Allow().replace_chunk(b"x").skip_body(),
    "a chunk is blocked": Block(451, "no"),
    "a frame passes": WebSocketAllow(),
    "a frame is dropped": WebSocketDrop(),
    "a frame is replaced": WebSocketReplace("HELLO"),
    "a frame is replaced by an empty one": WebSocketReplace(b""),
    "a frame closes the connection": WebSocketClose(4003, "be polite"),
    "something was found": Guardrail(
        True,
        0.9,
        [Detection("email", "an address", "high", span=(9, 28)), Detection("name")],
        "Write to [email]",
    ),
}


def answered(name: str, verdict: Any) -> tuple[Any, dict[str, Any]]:
    """(what we answer, the case): the event of a case of event_verdicts.json, answered with this verdict."""
    row = next(row for row in json.loads((FOLDER / "event_verdicts.json").read_text()) if row["name"] == name)
    about = next(case for case in json.loads((FOLDER / "events.json").read_text()) if case["name"] == row["event"])
    event = json.loads(about["event"])
    agent = Agent()
    setattr(agent, "on_" + event["event_type"], lambda event: verdict)
    with TestClient(agent) as client:
        return client.send_raw(event, raw(about.get("body", ""))), row


@pytest.mark.parametrize("name", SAID_OF_EVENTS)
def test_our_verdicts_on_other_events_are_the_written_ones(name: str) -> None:
    answer, row = answered(name, SAID_OF_EVENTS[name])
    expected = json.loads(row["verdict"])
    for detection in expected.get("guardrail_response", {}).get("detections", ()):
        detection.setdefault("description", "")
        detection.setdefault("severity", "medium")
    assert answer.verdict == expected
    assert answer.frame == (raw(row["frame"]) if "frame" in row else None)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("needs_more on the last chunk", Allow().needs_more()),
        ("needs_more beside a mutation", Allow().drop_chunk().needs_more()),
        ("needs_more beside skip_body", Allow().needs_more().skip_body()),
    ],
)
def test_what_is_malformed_on_a_chunk_is_an_error_of_ours(name: str, verdict: Allow) -> None:
    answer, row = answered(name, verdict)
    assert row["outcome"] == "malformed"
    answer.assert_error("bad_verdict")


@pytest.mark.parametrize("case", cases("verdicts"))
def test_what_is_malformed_cannot_be_built(case: Any) -> None:
    """Where a malformed vector is a block or redirect that our classes take, they raise ValueError."""
    if case["outcome"] != "malformed":
        return
    try:
        verdict = json.loads(case["verdict"])
    except ValueError:
        return
    decision = verdict.get("decision") if isinstance(verdict, dict) else None
    if not isinstance(decision, dict) or len(decision) != 1:
        return
    for kind, build in {"block": Block, "redirect": Redirect}.items():
        wish = decision.get(kind)
        if isinstance(wish, dict) and "status" in wish:
            with pytest.raises(ValueError):
                asyncio.run(_encoded(build(**wish)))  # type: ignore[operator]


async def _encoded(verdict: HttpVerdict) -> None:
    """A lone surrogate is found when the JSON is made."""
    agent = Agent()
    agent.on_request_headers = lambda event: verdict  # type: ignore[method-assign]
    port = Port().ready()
    port.dispatcher._rows = Dispatcher(agent, max_concurrency=1, send=port.send, wake=lambda: None)._rows
    port.talk.received(one("v2_frames", "EVENTS, one"), 1.0)
    (row,) = orjson.loads(port.sent[-1][1])
    if row[1].get("error", {}).get("code") == "bad_verdict":
        raise ValueError(row[1]["error"]["message"])
