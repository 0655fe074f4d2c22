"""agentd runs in uvloop: what depends on how a loop tells of sockets is tested in both kinds."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

_IN_BOTH = ("test_peers", "test_hostile_peers")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The kinds for this test."""
    if item.path.stem in _IN_BOTH:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}
