"""agentd/registry.py: who may register as which agent, by the configuration and the kernel's word."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.alarm import Alarm
from agentd.lane import Lane
from agentd.registry import RETRY_AFTER_MS, SEEN, No, Registry, Seat, configuration
from agentd.transport.zmq_session import V2Session
from shared.config.schema import Agent
from shared.defaults import MAX_SESSIONS_PER_AGENT
from shared.errors import ConfigError
from shared.events import EventKind
from shared.wire.agent_messages import Hello, Metrics, RefuseCode, Series, proof
from shared.wire.session import Session
from tests.agentd.fakes import peer
from tests.agentd.zmq_world import agent
from tests.support import Clock

OWN, OTHER = 1000, 1001


def lanes_of(*agents: Agent) -> dict[str, Lane]:
    return {a.name: Lane(a, Clock(), Alarm(lambda ns: None)) for a in agents}


def registry(*agents: Agent) -> Registry:
    agents = agents or (agent(),)
    return Registry(agents, lanes_of(*agents), own_uid=OWN)


def hello(name: str = "waf", instance: str = "i1", **fields: Any) -> Hello:
    fields.setdefault("protocol", 2)
    fields.setdefault("events", ["request_headers", "response_headers"])
    return Hello(agent=name, instance=instance, **fields)


def session(seat: Seat, instance: str = "i1", uid: int = OWN, **fields: Any) -> V2Session:
    class Nowhere:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"nothing is sent here: {name}")

    made = V2Session(Nowhere(), peer(uid), Session(0), "s1")
    made.introduce(hello(seat.name, instance, **fields), seat)
    return made


class TestJudge:
    def test_welcome(self) -> None:
        found = registry().judge(hello(), OWN)
        assert isinstance(found, Seat)
        assert found.name == "waf"

    @pytest.mark.parametrize(
        ("said", "uid", "code"),
        [
            (hello(protocol=3), OWN, RefuseCode.PROTOCOL),
            (hello("nobody"), OWN, RefuseCode.UNKNOWN_AGENT),
            (hello("old"), OWN, RefuseCode.UNKNOWN_AGENT),
            (hello(), OTHER, RefuseCode.NOT_ALLOWED),
            (hello(), 0, RefuseCode.NOT_ALLOWED),
            (hello(events=["response_headers"]), OWN, RefuseCode.MISSING_EVENTS),
        ],
        ids=str,
    )
    def test_refused(self, said: Hello, uid: int, code: RefuseCode) -> None:
        """Root is nobody special unless agentd is root; a v1 agent is no agent here."""
        found = registry(agent(), agent("old", protocol="zmq-v1", endpoint="ipc:///x")).judge(said, uid)
        assert isinstance(found, No)
        assert found.code is code
        assert found.reason

    def test_more_events_than_configured_are_fine(self) -> None:
        assert isinstance(registry().judge(hello(events=["request_headers", "something_new"]), OWN), Seat)

    def test_without_events_in_the_configuration_any_will_do(self) -> None:
        assert isinstance(registry(agent(events=None)).judge(hello(events=[]), OWN), Seat)

    def test_shutting_down(self) -> None:
        made = registry()
        made.is_closing = True
        found = made.judge(hello(), OWN)
        assert isinstance(found, No)
        assert found.code is RefuseCode.SHUTTING_DOWN

    def test_a_lane_kept_for_old_workers_is_no_seat(self) -> None:
        made = registry()
        made.seats["waf"].lane.is_configured = False
        found = made.judge(hello(), OWN)
        assert isinstance(found, No)
        assert found.code is RefuseCode.UNKNOWN_AGENT

    def test_what_may_be_tried_again(self) -> None:
        """Faults of the configuration are final, so that a supervisor and its log see them."""
        assert {code.value for code in RefuseCode if code not in RETRY_AFTER_MS} == {
            "protocol", "unknown_agent", "not_allowed", "bad_proof", "missing_events", "config_rejected",
            "drained",
        }  # fmt: skip


class TestUsers:
    def test_absent_means_our_own(self) -> None:
        assert registry().uids == {OWN}

    def test_by_name(self) -> None:
        """Own uid only where it is listed."""
        made = registry(agent(allow_users=("nobody", "root")), agent("b", allow_users=("nobody",)))
        assert made.seats["waf"].uids == {65534, 0}
        assert made.uids == {65534, 0}

    def test_a_user_who_does_not_exist_registers_nothing(self) -> None:
        assert registry(agent(allow_users=("no-such-user-here",))).uids == frozenset()


class TestSecrets:
    def test_proof(self, tmp_path: Path) -> None:
        file = tmp_path / "secret"
        file.write_bytes(b"open sesame\n")
        seat = registry(agent(secret_file=str(file))).seats["waf"]
        said = hello()
        assert seat.secret == b"open sesame"
        assert seat.is_proof(proof(b"open sesame", bytes(32), "waf", "i1"), bytes(32), said)
        assert not seat.is_proof(proof(b"open sesame", bytes(32), "waf", "i2"), bytes(32), said)
        assert not seat.is_proof(proof(b"open sesame", b"\1" * 32, "waf", "i1"), bytes(32), said)
        assert not seat.is_proof(proof(b"open sesame\n", bytes(32), "waf", "i1"), bytes(32), said)

    @pytest.mark.parametrize("content", [None, b"", b"\n"])
    def test_unusable(self, tmp_path: Path, content: bytes | None) -> None:
        """agentd does not start with a secret that it cannot know."""
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match="secret_file"):
            registry(agent(secret_file=str(file)))


class TestAdmit:
    def test_first(self) -> None:
        made = registry()
        seat = made.seats["waf"]
        assert made.hello_mask("waf") == 0
        one = session(seat)
        assert made.admit(seat, one) is None
        assert seat.sessions == {"i1": one}
        assert made.hello_mask("waf") == SEEN | EventKind.REQUEST_HEADERS.bit | EventKind.RESPONSE_HEADERS.bit

    def test_a_hello_without_events_was_seen_too(self) -> None:
        made = registry(agent(events=None))
        made.admit(made.seats["waf"], session(made.seats["waf"], events=[]))
        assert made.hello_mask("waf") == SEEN

    def test_the_last_hello_decides(self) -> None:
        made = registry(agent(events=None))
        seat = made.seats["waf"]
        made.admit(seat, session(seat, "a"))
        made.admit(seat, session(seat, "b", events=["response_headers"]))
        assert made.hello_mask("waf") == SEEN | EventKind.RESPONSE_HEADERS.bit

    def test_same_instance_same_user_replaces(self) -> None:
        made = registry()
        seat = made.seats["waf"]
        one, two = session(seat), session(seat)
        made.admit(seat, one)
        assert made.admit(seat, two) is one
        made.leave(one)
        assert seat.sessions == {"i1": two}

    def test_same_instance_another_user(self) -> None:
        made = registry()
        seat = made.seats["waf"]
        made.admit(seat, session(seat))
        found = made.admit(seat, session(seat, uid=OTHER))
        assert isinstance(found, No)
        assert found.code is RefuseCode.DUPLICATE_INSTANCE

    def test_too_many(self) -> None:
        made = registry()
        seat = made.seats["waf"]
        for number in range(MAX_SESSIONS_PER_AGENT):
            assert made.admit(seat, session(seat, f"i{number}")) is None
        found = made.admit(seat, session(seat, "one-more"))
        assert isinstance(found, No)
        assert found.code is RefuseCode.TOO_MANY
        assert isinstance(made.admit(seat, session(seat, "i0")), V2Session)

    def test_too_many_is_what_the_configuration_says(self) -> None:
        """At once after a reload; who is there stays."""
        made = registry()
        seat = made.seats["waf"]
        for number in range(3):
            made.admit(seat, session(seat, f"i{number}"))
        seat.configure(msgspec.structs.replace(seat.settings, max_instances=2), made.own_uid)
        assert isinstance(made.admit(seat, session(seat, "one-more")), No)
        assert len(seat.sessions) == 3

    def test_metrics_leave_with_the_instance(self) -> None:
        """Gauges go, counts stay."""
        made = registry()
        seat = made.seats["waf"]
        one = session(seat)
        made.admit(seat, one)
        seat.reported.report("i1", Metrics([Series("c", 3.0)], [Series("g", 5.0)]))
        made.leave(one)
        assert [key.name for key in seat.reported.totals().series] == ["c"]
        assert seat.sessions == {}

    def test_leaving_twice_or_never_admitted(self) -> None:
        made = registry()
        seat = made.seats["waf"]
        made.leave(session(seat))
        assert made.snapshot()["agents"]["waf"]["sessions"] == 0


class TestConfigure:
    def test_version_is_of_the_content(self) -> None:
        one = configuration(agent(config={"a": 1}))
        assert one == configuration(agent(config={"a": 1}, max_queue=7))
        assert one.config_version != configuration(agent(config={"a": 2})).config_version
        assert one.config_version != configuration(agent(config={"a": 1}, timeout_ms=7)).config_version

    def test_seats_come_go_and_change(self) -> None:
        made = registry(agent(), agent("b"))
        kept, lost = made.seats["waf"], made.seats["b"]
        wanted = (agent(config={"x": 1}, allow_users=("nobody",)), agent("c"))
        assert made.configure(wanted, lanes_of(*wanted)) == [lost]
        assert made.seats["waf"] is kept
        assert kept.configuration.config == {"x": 1}
        assert made.uids == {65534, OWN}
        assert list(made.seats) == ["waf", "c"]

    def test_the_secret_of_an_agent_that_goes_may_be_gone(self, tmp_path: Path) -> None:
        """Workers of the old configuration still name it: it stays as it is, and no reload fails for it."""
        file = tmp_path / "secret"
        file.write_bytes(b"open sesame")
        file.chmod(0o600)
        settings = agent(secret_file=str(file))
        lanes = lanes_of(settings)
        made = Registry([settings], lanes, own_uid=OWN)
        file.unlink()
        lanes["waf"].is_configured = False
        assert made.configure([settings], lanes) == []
        assert made.seats["waf"].secret == b"open sesame"

    def test_an_unreadable_secret_changes_nothing(self, tmp_path: Path) -> None:
        made = registry(agent(), agent("b"))
        wanted = (agent(config={"x": 1}), agent("b", secret_file=str(tmp_path / "none")))
        with pytest.raises(ConfigError):
            made.configure(wanted, lanes_of(*wanted))
        assert made.seats["waf"].configuration.config is None
        assert list(made.seats) == ["waf", "b"]
