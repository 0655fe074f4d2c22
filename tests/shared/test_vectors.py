"""tests/vectors/: what other implementations are told is what this one does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.transport.verdicts import VerdictReader
from shared.decision import OpAction, Verb
from shared.errors import WireError
from shared.events import BY_WIRE_NAME, SUPPORTED
from shared.wire import messages
from shared.wire.agent_messages import Configuration, Events, Side, Verdicts, proof
from shared.wire.agent_zmq import VERBS, decode_v1_verdict, pack, pack_v1, pack_v1_configure, unpack, unpack_v1
from shared.wire.messages import Screened

DIR = Path(__file__).resolve().parent.parent / "vectors"


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in load(name)]


def load(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DIR / f"{name}.json").read_text())
    return found


def frame(written: "str | dict[str, str]") -> bytes:
    """The bytes of a frame as tests/vectors/README.md defines it."""
    return written.encode() if isinstance(written, str) else bytes.fromhex(written["hex"])


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
        payload = json.dumps(sent["payload"], separators=(",", ":")).encode()
        assert pack_v1(event, payload) == case["request"].encode()

    @pytest.mark.parametrize("case", cases("v1_frames"))
    def test_replies(self, case: dict[str, Any]) -> None:
        reader = VerdictReader("tracer", decode_v1_verdict)
        assert outcome(reader.read(case["reply"].encode(), False)) == case["outcome"]
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
        request, response = [case["event"].encode() for case in load("events") if case["is_sent"]]
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


class TestVerdicts:
    @pytest.mark.parametrize("case", cases("verdicts"))
    def test_meaning(self, case: dict[str, Any]) -> None:
        screened = VerdictReader("waf").read(case["verdict"].encode(), False)
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

    @given(st.binary(max_size=200))
    def test_any_bytes_come_to_something(self, data: bytes) -> None:
        """The reader never raises."""
        assert outcome(VerdictReader("waf").read(data, False)) in {verb.word for verb in Verb} | {"malformed", "error"}


def _ops(ops: Any) -> list[list[str]]:
    return [[OpAction(op.action).name.lower(), op.name, op.value] for op in ops]
