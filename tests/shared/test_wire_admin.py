"""shared/wire/admin.py: names on the wire, what readers ignore and commands refuse."""

import json

import msgspec
import pytest

from shared.wire import admin as wire


def test_the_names_on_the_wire() -> None:
    """Booleans are `required` and `ready` there; `is_` is our own grammar."""
    component = wire.Component("agentd", wire.Status.DEGRADED, "slow", True, 1.5, "now")
    health = wire.Health(wire.Status.DEGRADED, True, "1", (component,), ("audit: no",))
    assert json.loads(wire.encode(health)) == {
        "status": "degraded",
        "ready": True,
        "version": "1",
        "components": [
            {
                "name": "agentd",
                "status": "degraded",
                "message": "slow",
                "required": True,
                "latency_ms": 1.5,
                "last_check": "now",
            }
        ],
        "not_asked": ["audit: no"],
    }
    assert wire.decode_health(wire.encode(health)) == health
    assert wire.decode_health(wire.pretty(health)) == health


def test_readers_ignore_what_they_do_not_know() -> None:
    """A newer agentd can say more."""
    text = b'{"error":{"code":"c","message":"m","hint":1},"also":[]}'
    assert wire.decode_problem(text) == wire.Problem(wire.ProblemBody("c", "m"))


def test_commands_do_not() -> None:
    """A mistyped threshold is an error; what is absent is not sent."""
    with pytest.raises(msgspec.ValidationError, match="failure_treshold"):
        wire.decode_breaker_change(b'{"failure_treshold":1}')
    assert wire.encode(wire.BreakerChange(failure_threshold=1)) == b'{"failure_threshold":1}'


@pytest.mark.parametrize(
    ("agent", "path"),
    [("waf", "/api/breakers/waf/open"), ("a/b c", "/api/breakers/a%2Fb%20c/open"), ("ä", "/api/breakers/%C3%A4/open")],
)
def test_an_agents_name_is_one_segment(agent: str, path: str) -> None:
    """Quoted whatever it holds."""
    assert wire.breaker_path(agent, "open") == path
