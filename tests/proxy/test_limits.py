"""proxy/limits.py: what a request is counted by, and which limits a configuration comes to."""

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.limits import _key_of, client_key, limit_specs, rate_lines
from shared.config.check import findings
from shared.config.schema import Agent, Config, Server
from shared.config.schema_routes import Filter, RateLimit, Route
from shared.decision import ALLOW, Answer, Decision, Outcome, Verb, merge
from shared.events import EventKind
from shared.ratelimit import NEVER_S, ONE
from shared.segment_limits import LimitSpec
from shared.wire.verdict import decode_verdict, screen


def key(kind: str, *fields: tuple[bytes, bytes], client_ip: str = "192.0.2.1") -> bytes:
    driver: Any = SimpleNamespace(head=SimpleNamespace(fields=list(fields)), client_ip=client_ip)
    return _key_of(RateLimit("x", kind, 1, 1.0))(driver)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:db8::1", "2001:0DB8:0:0::1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("3130:2e30:2e30:2e31::1", "10.0.0.1", False),  # whose first eight bytes are that text
        ("", "", True),
        ("", "192.0.2.1", False),
        ("not:an:address", "not:an:address2", False),
    ],
)
def test_clients(one: str, other: str, is_same: bool) -> None:
    """IPv4 by address, IPv6 by /64."""
    assert (client_key(one) == client_key(other)) == is_same
    assert (key("client_ip", client_ip=one) == key("client_ip", client_ip=other)) == is_same


def test_many_clients_are_not_remembered_for_ever() -> None:
    """The memory of addresses is bounded."""
    from proxy import limits

    for number in range(10_000):
        client_key(f"2001:db8:{number:x}::1")
    assert len(limits._clients) <= 4_096


def test_fields() -> None:
    """Names in any case; an empty value is not an absent one."""
    assert key("header:X-Key", (b"x-key", b"a")) == key("header:x-KEY", (b"X-Key", b"a")) != key("header:X-Key")
    assert key("header:X-Key", (b"X-Key", b"")) != key("header:X-Key", (b"X-Key2", b""))
    assert key("header:X-Key", (b"X-Key", b"-")) != key("header:X-Key")


def test_cookies() -> None:
    """Exactly that name, with spaces or without."""
    assert key("cookie:sid", (b"Cookie", b"a=b; sid=1; b=2")) == key("cookie:sid", (b"cookie", b"sid=1"))
    assert key("cookie:sid", (b"Cookie", b"sid = 1")) == key("cookie:sid", (b"cookie", b"sid=1"))
    assert key("cookie:sid", (b"Cookie", b"a=1"), (b"Cookie", b"sid=1")) == key("cookie:sid", (b"Cookie", b"sid=1"))
    absent = key("cookie:sid")
    for value in (b"xsid=1", b"SID=1", b"sid", b"", b";;", b"a=sid=1"):
        assert key("cookie:sid", (b"Cookie", value)) == absent
    assert key("cookie:sid", (b"Cookie", b"sid=")) != absent


def test_giving_a_field_twice_is_no_way_to_another_bucket() -> None:
    """Servers go by the first, the last or all of them: with junk beside the one that counts the limit was no limit."""
    absent = key("header:X-Key")
    assert key("header:X-Key", (b"X-Key", b"a"), (b"x-key", b"junk1")) == absent
    assert key("header:X-Key", (b"X-Key", b"junk2"), (b"x-key", b"a")) == absent
    for fields in (
        [(b"Cookie", b"sid=junk; sid=1")],
        [(b"Cookie", b"sid=1; a=b; sid=junk")],
        [(b"Cookie", b"sid=junk"), (b"Cookie", b"sid=1")],
    ):
        assert key("cookie:sid", *fields) == absent


def test_the_whole_route_is_one_key() -> None:
    assert key("global", (b"A", b"1")) == key("global", client_ip="::1") == b""


def test_what_a_configuration_comes_to() -> None:
    """One row a limit; a maximum of 0 is none."""
    config = Config(
        server=Server(max_connections=10),
        routes=(
            Route("a", "u", max_concurrent_per_client=2, rate_limits=(RateLimit("x", "global", 5, 0.5),)),
            Route("b", "u"),
        ),
    )
    assert limit_specs(config) == (
        LimitSpec("server:max_connections", "", 10, counts_uses=True),
        LimitSpec("a/max_concurrent_per_client", "", 2, counts_uses=True),
        LimitSpec("a/x", "global", 5 * ONE, ONE // 2),
    )
    assert limit_specs(Config()) == ()


def test_checks() -> None:
    """Names twice, names of keys, identity without anybody who could tell it, too many."""
    limits = (RateLimit("a", "identity", 1, 1.0), RateLimit("a", "global", 1, 1.0),
              RateLimit("max_concurrent", "global", 1, 1.0))  # fmt: skip
    watched = (Filter("o", mode="observe"),)
    many = tuple(RateLimit(f"l{n}", "global", 1, 1.0) for n in range(9))
    config = Config(routes=(Route("r", "u", rate_limits=limits, filters=watched), Route("s", "u", rate_limits=many)))
    told = [f.text for f in findings(config, lambda _: None) if f.paths[0][2:3] == ("rate_limits",)]
    assert told == [
        "there are 9, at most 8 are possible",
        "no agent decides on this route, so nobody can tell the identity",
        '"a" is already a limit of this route',
        '"max_concurrent" is the name of the route\'s key',
    ]


def test_an_identity_is_told_before_the_upstream_is_asked() -> None:
    """An agent that sees responses only tells it too late: the limit would never be asked."""
    route = Route("r", "u", rate_limits=(RateLimit("a", "identity", 1, 1.0),), filters=(Filter("waf"),))

    def told(*events: str) -> bool:
        config = Config(agents=(Agent("waf", "zmq-v2", events=events or None),), routes=(route,))  # type: ignore[arg-type]
        return any("nobody can tell the identity" in f.text for f in findings(config, lambda _: None))

    assert [told(), told("request_headers", "response_headers"), told("response_headers")] == [False, False, True]


def test_field_lines() -> None:
    """Whole tokens; a time that is beyond every clock is cut."""
    limit: Any = SimpleNamespace(capacity=10 * ONE, refill=ONE // 3)
    assert (
        rate_lines((limit, 4 * ONE + 5)) == b"ratelimit-limit: 10\r\nratelimit-remaining: 4\r\nratelimit-reset: 19\r\n"
    )
    limit.refill, limit.capacity = 1, 10**9 * ONE
    assert b"reset: %d\r\n" % NEVER_S in rate_lines((limit, 0))


# --- identity: verdict -> decision -> merge ----------------------------------------------------------


def screened(verdict: bytes) -> Decision:
    decision = screen(decode_verdict(verdict), "a").decision
    assert decision is not None
    return decision


def test_an_identity_is_carried_beside_allow() -> None:
    """Without anything else, too; other routing metadata is nothing to the decision."""
    assert screened(b'{"decision":"allow","routing_metadata":{"identity":"ann","x":"y"}}') == Decision(
        agent="a", identity="ann"
    )
    assert screened(b'{"decision":"allow","routing_metadata":{"x":"y"}}') is ALLOW
    assert screened(b'{"decision":"allow","routing_metadata":{"identity":""}}') is ALLOW
    blocked = screened(b'{"decision":{"block":{"status":403}},"routing_metadata":{"identity":"ann"}}')
    assert (blocked.verb, blocked.identity) == (Verb.BLOCK, "")


def test_a_long_identity_is_its_hash() -> None:
    """Still one for each."""
    one, other = (screened(b'{"decision":"allow","routing_metadata":{"identity":"%b"}}' % (b"x" * 300 + end))
                  for end in (b"1", b"2"))  # fmt: skip
    assert one.identity.startswith("sha256:")
    assert len(one.identity) == 71
    assert one.identity != other.identity


def test_the_first_in_the_chain_that_knows_the_client_says_who_it_is() -> None:
    """Among those that allow; a failure that is open has none."""

    def merged(*decisions: Decision | None) -> Decision:
        answers = [Answer(Outcome.TIMEOUT) if d is None else Answer(Outcome.DECISION, d) for d in decisions]
        names = [str(number) for number in range(len(answers))]
        return merge(answers, ["open"] * len(answers), names, EventKind.REQUEST_HEADERS)

    assert merged(ALLOW, Decision(identity="b"), Decision(identity="c")).identity == "b"
    assert merged(None, Decision(identity="c")).identity == "c"
    assert merged(ALLOW, None) is ALLOW
    assert merged(Decision(identity="a"), Decision(Verb.BLOCK, 403)).identity == ""
