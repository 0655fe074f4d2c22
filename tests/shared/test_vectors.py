"""tests/vectors/: what other implementations are told is what this one does."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.transport.verdicts import VerdictReader
from shared.decision import ChunkVerdict, OpAction, Verb
from shared.errors import WireError
from shared.events import BY_WIRE_NAME, SUPPORTED, EventKind
from shared.wire import messages
from shared.wire.agent_messages import Configuration, Events, Side, Verdicts, proof
from shared.wire.agent_zmq import VERBS, decode_v1_verdict, pack, pack_v1, pack_v1_configure, unpack, unpack_v1
from shared.wire.verdict import Question, Screened

DIR = Path(__file__).resolve().parent.parent / "vectors"
ANSWERED = {kind.wire_name for kind in SUPPORTED} - {"request_complete"}
SEVERITIES = ("low", "medium", "high", "critical")


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in load(name)]


def load(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DIR / f"{name}.json").read_text())
    return found


def frame(written: "str | dict[str, str]") -> bytes:
    """The bytes of a frame as tests/vectors/README.md defines it."""
    return written.encode() if isinstance(written, str) else bytes.fromhex(written["hex"])


def event_of(name: str) -> bytes:
    """The bytes of an event by the name of its case."""
    (found,) = [case["event"].encode() for case in load("events") if case["name"] == name]
    return found


def question(event: dict[str, Any]) -> Question:
    """What the answer to this event is held against."""
    kind = BY_WIRE_NAME.get(event.get("event_type", "request_headers"), EventKind.REQUEST_HEADERS)
    return Question(kind, False, event.get("chunk_index", 0), event.get("is_last", False))


def outcome(screened: Screened) -> str:
    if screened.decision is not None:
        return screened.decision.verb.word
    return "malformed" if screened.malformed else "error"


class TestV2:
    @pytest.mark.parametrize("case", cases("v2_frames"))
    def test_frames_are_read_and_written_alike(self, case: dict[str, Any]) -> None:
        """What agentd sends it sends byte for byte; what agents send means the same when it is written again."""
        frames = [frame(f) for f in case["frames"]]
        message = unpack(frames, Side(case["sender"]))
        again = pack(message)
        if case["sender"] == "agentd":
            assert again == frames
        assert _comparable(unpack(again, Side(case["sender"]))) == _comparable(message)

    def test_every_verb_has_a_case(self) -> None:
        assert {frame(case["frames"][0]) for case in load("v2_frames")} == set(VERBS)

    def test_both_directions_have_cases(self) -> None:
        for verb, row in VERBS.items():
            for side in row.senders:
                assert any(
                    case["frames"][0] == verb.decode() and case["sender"] == side.value for case in load("v2_frames")
                ), (verb, side)

    @pytest.mark.parametrize("case", cases("v2_bad_frames"))
    def test_bad_frames_are_refused(self, case: dict[str, Any]) -> None:
        with pytest.raises(WireError):
            unpack([frame(f) for f in case["frames"]], Side(case["sender"]))

    @pytest.mark.parametrize("case", cases("proof"))
    def test_proof(self, case: dict[str, Any]) -> None:
        made = proof(frame(case["secret"]), frame(case["nonce"]), case["agent"], case["instance"])
        assert made == frame(case["mac"])

    def test_proof_case_is_the_frame(self) -> None:
        """The PROOF in v2_frames is the first case of proof.json."""
        (sent,) = [case["frames"][1] for case in load("v2_frames") if case["frames"][0] == "PROOF"]
        assert sent == load("proof")[0]["mac"]


def _comparable(message: Any) -> Any:
    if isinstance(message, Events):
        return [(e.call, e.budget_ms, json.loads(bytes(e.event)), e.n) for e in message.entries], list(message.bodies)
    if isinstance(message, Verdicts):
        return [(e.call, json.loads(bytes(e.verdict)), e.n) for e in message.entries], list(message.bodies)
    return message


class TestV1:
    @pytest.mark.parametrize("case", cases("v1_frames"))
    def test_requests_are_what_we_send(self, case: dict[str, Any]) -> None:
        sent = json.loads(case["request"])
        event = sent["payload"].get("event_type", sent["event_type"])
        data = sent["payload"].pop("data", None)
        payload = json.dumps(sent["payload"], separators=(",", ":")).encode()
        body = None if data is None else b64decode(data, validate=True)
        assert pack_v1(event, payload, body) == case["request"].encode()

    @pytest.mark.parametrize("case", cases("v1_frames"))
    def test_replies(self, case: dict[str, Any]) -> None:
        reader = VerdictReader("tracer", decode_v1_verdict)
        if case["outcome"] == "none":
            assert json.loads(case["request"])["event_type"] not in ANSWERED
        else:
            asked = question(json.loads(case["request"])["payload"])
            assert outcome(reader.read(case["reply"].encode(), asked)) == case["outcome"]
        try:
            unpack_v1([case["reply"].encode()])
        except WireError:
            assert case["outcome"] == "malformed"

    def test_configure_is_packed_so(self) -> None:
        case = load("v1_frames")[0]
        made = pack_v1_configure("tracer", Configuration({"paranoia": 1}, "7", 50, 1_048_576, 1_048_576))
        assert made == case["request"].encode()


class TestEvents:
    def test_every_event_has_a_case(self) -> None:
        names = {json.loads(case["event"])["event_type"] for case in load("events")}
        assert names == set(BY_WIRE_NAME) - {"configure"}

    @pytest.mark.parametrize("case", cases("events"))
    def test_is_sent_tells_the_truth(self, case: dict[str, Any]) -> None:
        kind = BY_WIRE_NAME[json.loads(case["event"])["event_type"]]
        if case["is_sent"]:
            assert kind in SUPPORTED
        assert next(iter(json.loads(case["event"]))) == "event_type"

    def test_our_events_are_these_bytes(self) -> None:
        request, response = [event_of(name) for name in ("request_headers", "response_headers")]
        meta = messages.metadata(
            b"5f3a9c21-7",
            b"",
            messages.lasting_metadata(
                "api.example.com",
                messages.connection_metadata("192.0.2.7", 50312),
                messages.route_metadata("api", "app"),
                http_1_0=False,
            ),
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            1_795_168_800.1235,
        )
        headers = messages.headers_json(
            {"host": ["api.example.com"], "accept": ["text/html", "*/*"], "content-length": ["9"]}
        )
        uri = messages.target_json(b"/v1/x?a=%20b")
        assert (
            messages.request_headers_event(meta, messages.request_headers_rest(b"POST", uri, headers, True)) == request
        )
        headers = messages.headers_json({"content-type": ["application/json"], "set-cookie": ["a=1", "b=2"]})
        assert messages.response_headers_event(meta, b"POST", uri, 200, headers, True) == response
        refused = messages.Completion(403, 12.5, 9, 0, 0, decided_by="waf")
        answered = messages.Completion(200, 31.25, 9, 1_048_576, 2)
        left = messages.Completion(0, 0.5, 4, 0, 0, error="client_gone")
        for name, done in (
            ("request_complete", refused),
            ("request_complete, answered by the upstream", answered),
            ("request_complete, the client had left", left),
        ):
            assert messages.request_complete_event(meta, b"POST", uri, done) == event_of(name), name

    @pytest.mark.parametrize("case", [case for case in cases("events") if case.values[0]["is_sent"]])
    def test_what_we_send_of_bodies_and_texts_is_these_bytes(self, case: dict[str, Any]) -> None:
        """Each field taken from the case, and put together by us."""
        event = json.loads(case["event"])
        about = event.get("correlation_id", "").encode()
        match event["event_type"]:
            case "request_body_chunk" | "response_body_chunk" as kind:
                is_request = kind == "request_body_chunk"
                build = messages.request_body_chunk_event if is_request else messages.response_body_chunk_event
                size = event["bytes_received" if is_request else "bytes_sent"]
                made = build(about, event["chunk_index"], event["is_last"], event.get("total_size", -1), size)
            case "websocket_frame":
                rest = [event[name] for name in ("frame_index", "fin", "route_id", "client_ip")]
                made = messages.websocket_frame_event(about, event["opcode"], event["client_to_server"], *rest)
            case "guardrail_inspect":
                first = [event.get(name, "") for name in ("inspection_type", "content", "direction", "model")]
                more = {name: value for name, value in event["metadata"].items() if name != "correlation_id"}
                made = messages.guardrail_inspect_event(about, *first, event["categories"], event["route_id"], more)
            case _:
                return  # heads and completions: above
        assert made == case["event"].encode()

    def test_every_event_that_we_send_has_a_case(self) -> None:
        sent = {json.loads(case["event"])["event_type"] for case in load("events") if case["is_sent"]}
        assert sent == {kind.wire_name for kind in SUPPORTED}


class TestVerdicts:
    @pytest.mark.parametrize("case", cases("verdicts"))
    def test_meaning(self, case: dict[str, Any]) -> None:
        screened = VerdictReader("waf").read(case["verdict"].encode())
        assert outcome(screened) == case["outcome"], screened
        assert list(screened.refused_ops) == case.get("refused_ops", [])
        decision = screened.decision
        if decision is None:
            return
        assert _ops(decision.request_ops) == case.get("request_ops", [])
        assert _ops(decision.response_ops) == case.get("response_ops", [])
        if decision.verb is not Verb.ALLOW:
            assert decision.status == case["status"]
            assert [list(pair) for pair in decision.headers] == case["headers"]
            assert decision.body == case["body"].encode()

    @pytest.mark.parametrize("case", cases("event_verdicts"))
    def test_meaning_on_other_events(self, case: dict[str, Any]) -> None:
        body = frame(case["frame"]) if "frame" in case else None
        asked = question(json.loads(event_of(case["event"])))
        screened = VerdictReader("waf").read(case["verdict"].encode(), asked, body)
        assert outcome(screened) == case["outcome"], screened
        decision = screened.decision
        if decision is None:
            return
        if decision.verb is not Verb.ALLOW:
            assert decision.status == case["status"]
            if "reason" in case:
                assert decision.body == case["reason"].encode()
            return
        chunk = decision.chunk or ChunkVerdict()
        assert ("hold" if chunk.hold else chunk.action.name.lower()) == case.get("action", "pass")
        assert bool(chunk.skip) == case.get("skip_body", False)
        assert decision.body == frame(case.get("data", ""))
        if not case.get("findings"):
            assert decision.inspections == ()
        else:
            (inspection,) = decision.inspections
            assert inspection.redacted == case["redacted_content"]
            assert [
                [one.category, SEVERITIES[one.severity], one.confidence, one.start, one.end]
                for one in inspection.findings
            ] == case["findings"]

    @given(st.binary(max_size=200), st.sampled_from(SUPPORTED))
    def test_any_bytes_come_to_something(self, data: bytes, kind: EventKind) -> None:
        """The reader never raises."""
        found = outcome(VerdictReader("waf").read(data, Question(kind)))
        assert found in {verb.word for verb in Verb} | {"malformed", "error"}


def _ops(ops: Any) -> list[list[str]]:
    return [[OpAction(op.action).name.lower(), op.name, op.value] for op in ops]
