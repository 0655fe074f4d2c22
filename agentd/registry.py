"""Who may register as which agent, and who has: seats, one per configured v2 agent, and their sessions.

    HELLO --judge--> Seat, or why not      (name, user, events: what the configuration says)
    proved --admit--> the session that it replaces, or why not      (one per instance name, max_instances)

A user is who the kernel says it is (agentd/peers.py), never who a message says. What is said to whom
in which order stands in shared/wire/session.py, the socket is agentd/transport/zmq_dealer.py's.

Kind: pure but for `Seat.configure`, which looks up users and reads the secret's file.
"""

import hashlib
import hmac
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from agentd.lane import Lane
from agentd.reported import Reported
from agentd.transport.verdicts import VerdictReader
from shared import log
from shared.config.host import uid_of
from shared.config.schema import Agent
from shared.config.secrets import read_secret
from shared.defaults import AGENT_HWM, BAD_PEER_RETRY_MS, HELLO_RETRY_MS
from shared.events import EventKind, mask_of
from shared.wire.agent_messages import PROTOCOL, Configuration, Hello, RefuseCode, proof
from shared.wire.agent_zmq import encode_json

if TYPE_CHECKING:
    from agentd.transport.zmq_session import V2Session

# Without a row the refusal is final: the agent leaves, and whoever supervises it starts it again.
RETRY_AFTER_MS: Mapping[RefuseCode, int] = {
    RefuseCode.MALFORMED: BAD_PEER_RETRY_MS,
    RefuseCode.DUPLICATE_INSTANCE: BAD_PEER_RETRY_MS,
    RefuseCode.TOO_MANY: BAD_PEER_RETRY_MS,
    RefuseCode.SHUTTING_DOWN: HELLO_RETRY_MS,
    RefuseCode.HELLO_FIRST: 0,
}
# In the mask of a HELLO that was seen, even one that lists no event: 0 means that none was seen.
SEEN = EventKind.CONFIGURE.bit


class No(NamedTuple):
    """Why not; `reason` is for people."""

    code: RefuseCode
    reason: str


def configuration(settings: Agent) -> Configuration:
    """What CONFIG and v1's `configure` carry; the version is a digest, so that it changes with the content alone."""
    made = Configuration(
        settings.config,
        "",
        settings.timeout_ms,
        settings.max_request_body_bytes,
        settings.max_response_body_bytes,
    )
    version = hashlib.sha256(encode_json(made)).hexdigest()[:16]
    return Configuration(made.config, version, made.timeout_ms, *_limits(settings))


def _limits(settings: Agent) -> tuple[int, int]:
    return settings.max_request_body_bytes, settings.max_response_body_bytes


class Seat:
    """One agent that may dial in. Raises ConfigError when its secret cannot be read."""

    __slots__ = (
        "configuration",
        "garbage",
        "hello_mask",
        "hwm",
        "lane",
        "name",
        "reader",
        "reported",
        "secret",
        "sends_refused",
        "sessions",
        "settings",
        "uids",
    )

    def __init__(self, settings: Agent, lane: Lane, own_uid: int, hwm: int = AGENT_HWM) -> None:
        self.name = settings.name
        self.lane = lane
        self.sessions: dict[str, V2Session] = {}  # welcomed ones, by instance name
        self.hello_mask = 0  # events of the last HELLO that was welcomed, with SEEN; 0 = there was none
        self.garbage = 0  # messages that could not be read, verdicts for calls never sent
        self.sends_refused: Counter[str] = Counter()  # by reason: bytes, messages, socket
        self.hwm = hwm  # messages that an instance may leave unread
        self.reader = VerdictReader(settings.name)
        self.reported = Reported()
        self.configure(settings, own_uid)

    def configure(self, settings: Agent, own_uid: int) -> None:
        """Take what the configuration says now."""
        secret = read_secret(settings.secret_file, f"agents.{self.name}.secret_file") if settings.secret_file else b""
        self.settings = settings
        self.secret = secret
        self.uids = frozenset(_uids(settings, own_uid))
        self.configuration = configuration(settings)

    def missing_events(self, offered: Iterable[str]) -> list[str]:
        """What the configuration lists and the agent does not offer."""
        return sorted(set(self.settings.events or ()).difference(offered))

    def is_proof(self, mac: bytes, nonce: bytes, hello: Hello) -> bool:
        """Whether whoever made it knows the secret."""
        return hmac.compare_digest(mac, proof(self.secret, nonce, hello.agent, hello.instance))


def _uids(settings: Agent, own_uid: int) -> Iterator[int]:
    if settings.allow_users is None:
        yield own_uid
        return
    for user in settings.allow_users:
        uid = uid_of(user)
        if uid is None:
            log.line("agentd.agents", log.WARNING, "no such user may register", agent=settings.name, user=user)
        else:
            yield uid


class Registry:
    """All seats. `uids`: everybody who may register as something, hence connect at all."""

    def __init__(
        self, agents: Iterable[Agent], lanes: Mapping[str, Lane], own_uid: int | None = None, hwm: int = AGENT_HWM
    ) -> None:
        self._hwm = hwm
        self.own_uid = os.geteuid() if own_uid is None else own_uid
        self.seats: dict[str, Seat] = {}
        self.uids: frozenset[int] = frozenset()
        self.refused: Counter[str] = Counter()  # by code
        self.is_closing = False
        self.configure(agents, lanes)

    def configure(self, agents: Iterable[Agent], lanes: Mapping[str, Lane]) -> list[Seat]:
        """Take the agents of a configuration; returns the seats that are gone, whose sessions have to leave."""
        wanted = {agent.name: agent for agent in agents if agent.protocol == "zmq-v2"}
        made: dict[str, Seat] = {}
        for name, settings in wanted.items():  # all of them, before anything changes: a secret may be unreadable
            if name not in self.seats:
                made[name] = Seat(settings, lanes[name], self.own_uid, self._hwm)
            elif settings.secret_file and lanes[name].is_configured:
                read_secret(settings.secret_file, f"agents.{name}.secret_file")
        gone = [seat for name, seat in self.seats.items() if name not in wanted]
        for name, settings in wanted.items():
            if name not in made and lanes[name].is_configured:  # else as it was: its secret's file may be gone as well
                self.seats[name].configure(settings, self.own_uid)
        self.seats = {name: made.get(name) or self.seats[name] for name in wanted}
        self.uids = frozenset[int]().union(*(seat.uids for seat in self.seats.values()))
        return gone

    def drop(self, agents: Collection[str]) -> list[Seat]:
        """These agents' seats, which are gone from now on."""
        gone = [seat for name, seat in self.seats.items() if name in agents]
        self.seats = {name: seat for name, seat in self.seats.items() if name not in agents}
        self.uids = frozenset[int]().union(*(seat.uids for seat in self.seats.values()))
        return gone

    def judge(self, hello: Hello, uid: int) -> "Seat | No":
        """Whether this user may register so."""
        if hello.protocol != PROTOCOL:
            return No(RefuseCode.PROTOCOL, f"protocol {hello.protocol} is not spoken here, this is protocol {PROTOCOL}")
        if self.is_closing:
            return No(RefuseCode.SHUTTING_DOWN, "agentd is shutting down")
        seat = self.seats.get(hello.agent)
        if seat is None or not seat.lane.is_configured:
            return No(RefuseCode.UNKNOWN_AGENT, f'the configuration has no agent "{hello.agent}" with protocol zmq-v2')
        if uid not in seat.uids:
            return No(RefuseCode.NOT_ALLOWED, f'uid {uid} may not register as "{hello.agent}" (allow_users)')
        missing = seat.missing_events(hello.events)
        if missing:
            return No(RefuseCode.MISSING_EVENTS, f"HELLO lacks {', '.join(missing)}, which the configuration lists")
        return seat

    def admit(self, seat: Seat, session: "V2Session") -> "V2Session | No | None":
        """Take the session in. It replaces one of the same name if the same user stands behind both."""
        old = seat.sessions.get(session.name)
        if old is not None and old.peer.uid != session.peer.uid:
            return No(RefuseCode.DUPLICATE_INSTANCE, f'instance "{session.name}" is registered by another user')
        if old is None and len(seat.sessions) >= seat.settings.max_instances:
            return No(RefuseCode.TOO_MANY, f"{len(seat.sessions)} instances of this agent are registered")
        seat.sessions[session.name] = session
        seat.hello_mask = mask_of(session.hello.events) | SEEN
        return old

    def leave(self, session: "V2Session") -> None:
        """The session is over, however it ended."""
        seat = session.seat
        if seat is not None and seat.sessions.get(session.name) is session:
            del seat.sessions[session.name]
            seat.reported.gone(session.name)

    def hello_mask(self, agent: str) -> int:
        """For the segment: events of its last HELLO, 0 = none was seen."""
        seat = self.seats.get(agent)
        return 0 if seat is None else seat.hello_mask

    def snapshot(self) -> dict[str, Any]:
        """Counters for the admin API."""
        return {
            "refused": dict(self.refused),
            "agents": {
                name: {"sessions": len(seat.sessions), "garbage": seat.garbage, "hello_mask": seat.hello_mask}
                for name, seat in self.seats.items()
            },
        }
