"""What an agent asks for follows from the hooks it overrides; a misspelt hook does not go unnoticed."""

from typing import Any

import pytest

from wardgate_agent import Agent, Allow
from wardgate_agent.agent import HOOKS, kebab, wanted_events
from wardgate_agent.testing import TestClient


class Some(Agent):
    def on_response_headers(self, event: Any) -> Any:
        return Allow()

    async def on_request_headers(self, event: Any) -> Any:
        return Allow()


def test_events_are_the_overridden_hooks() -> None:
    assert wanted_events(Some()) == ["request_headers", "response_headers"]
    assert wanted_events(Agent()) == []


def test_a_hook_may_be_set_on_the_object() -> None:
    agent = Agent()
    agent.on_request_complete = lambda event: None  # type: ignore[method-assign]
    assert wanted_events(agent) == ["request_complete"]


def test_explicit_events_win() -> None:
    class Listed(Some):
        events = ("request_headers",)

    assert wanted_events(Listed()) == ["request_headers"]


@pytest.mark.parametrize("events", [("request_header",), "request_headers", ("configure",)])
def test_explicit_events_must_exist(events: Any) -> None:
    agent = Some()
    agent.events = events  # type: ignore[misc]
    with pytest.raises(ValueError, match="not among"):
        wanted_events(agent)


def test_a_misspelt_hook_is_an_error() -> None:
    """It would never be called, and its requests allowed."""
    with pytest.raises(TypeError, match="did you mean on_request_headers"):
        type("Typo", (Agent,), {"on_request_header": lambda self, event: None})


def test_other_methods_may_begin_with_on() -> None:
    type("Fine", (Agent,), {"on_startup": lambda self: None})


def test_every_default_hook_allows() -> None:
    with TestClient(Agent) as client:
        client.configure({"a": 1})
        assert client.request_headers().is_allow
        assert client.response_headers().is_allow
        assert client.request_body_chunk(b"x").is_allow
        assert client.response_body_chunk(b"x").is_allow
        assert client.request_complete().decision == "none"
        assert client.websocket_frame("x").websocket == "allow"
        # Asked all the same, because a route names it: a text that nobody looked at must not pass for clean.
        assert client.guardrail_inspect("x").decision == "error"


def test_session_is_there_without_super_init() -> None:
    class Forgetful(Agent):
        def __init__(self, word: str) -> None:
            self.hits = self.session.metrics.counter(word)

    assert Forgetful("hits").session is not Forgetful("hits").session


@pytest.mark.parametrize(
    ("name", "expected"),
    [("MyAgent", "my-agent"), ("WAF", "waf"), ("HTTPPolicy", "http-policy"), ("a_B", "a-b"), ("Tag2", "tag2")],
)
def test_kebab(name: str, expected: str) -> None:
    assert kebab(name).replace("--", "-") == expected


def test_the_table_names_every_hook_once() -> None:
    assert len({hook.event_type for hook in HOOKS}) == len(HOOKS) == 7
    assert all(callable(getattr(Agent, hook.method)) for hook in HOOKS)
