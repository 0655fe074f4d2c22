"""agentd/takeover.py: when a configuration cannot be taken over. What taking it over does: test_daemon.py, e2e."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentd.takeover import Takeover
from shared.clock import now_ns
from shared.config.load import Loaded
from shared.config.schema import Admin, Config, Runtime, Server
from shared.segment import ProxyView, ProxyWriter

OTHER_LISTEN = Config(server=Server(listen=("127.0.0.1:1",)))


def loaded(config: Config, digest: str) -> Loaded:
    return Loaded(config, digest, [], [], {})


class World:
    def __init__(self, directory: Path) -> None:
        self.path = f"{directory}/proxy.seg"
        self.view = ProxyView(self.path)
        self.health = SimpleNamespace(is_stopping=False)
        nothing: Any = None
        self.takeover = Takeover(
            loaded(Config(), "old"), nothing, nothing, nothing, nothing, nothing, nothing, cast(Any, self.health),
            nothing, nothing, self.view,
        )  # fmt: skip

    def problems(self, config: Config, digest: str = "new") -> list[str]:
        return [problem.partition(":")[0] for problem in self.takeover.objections(loaded(config, digest))]


@pytest.fixture
def world(short_tmp_dir: Path) -> Iterator[World]:
    made = World(short_tmp_dir)
    yield made
    made.view.close()


def test_what_needs_a_restart_of_agentd_is_refused(world: World) -> None:
    assert world.problems(Config(admin=Admin(listen=()))) == ["admin.listen"]
    assert world.problems(Config(runtime=Runtime(dir="/x"))) == ["runtime.dir"]
    assert world.problems(Config()) == []


def test_what_needs_a_restart_of_the_proxy_is_refused_until_it_runs_it(world: World) -> None:
    """Else agentd would run one configuration and the proxy another; without a proxy nobody minds."""
    assert world.problems(OTHER_LISTEN) == []
    writer = ProxyWriter.create(world.path, "old", [], [])
    try:
        writer.beat(now_ns())
        assert world.problems(OTHER_LISTEN) == ["server.listen"]
        writer.set_config_digest("new")
        assert world.problems(OTHER_LISTEN) == []
    finally:
        writer.close()


def test_who_stops_takes_nothing_over(world: World) -> None:
    world.health.is_stopping = True
    assert world.problems(Config()) == ["agentd is stopping"]
