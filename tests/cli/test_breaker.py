"""`wardgate breaker`: each change acts on a real agentd and shows in the mirror that workers read."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from shared.segment import AgentdView, BreakerState
from tests.support import Agentd

CONFIG = """
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9" }]
[[agents]]
name = "waf"
protocol = "zmq-v2"
[[routes]]
name = "all"
upstream = "app"
filters = [{ agent = "waf" }]
"""


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, CONFIG) as made:
        yield made


def breaker(agentd: Agentd, action: str, *args: str) -> Result:
    return CliRunner().invoke(main, ["breaker", action, *args, "--config", str(agentd.config)])


def test_a_change_is_in_the_mirror_before_the_command_ends(agentd: Agentd) -> None:
    """Open, close, open, reset: a reader that was mapped before sees each state at once."""
    agentd.start()
    view = AgentdView(str(agentd.runtime / "agentd.seg"))
    assert view.attach()
    steps = [
        ("open", BreakerState.FORCED_OPEN),
        ("close", BreakerState.CLOSED),
        ("open", BreakerState.FORCED_OPEN),
        ("reset", BreakerState.CLOSED),
    ]
    for action, state in steps:
        generation = view.generation
        result = breaker(agentd, action, "waf")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"waf: breaker is {state.word}\n"
        assert view.agents()["waf"].breaker is state
        assert view.generation > generation
    view.close()


def test_the_list_shows_states_and_numbers(agentd: Agentd) -> None:
    """As a table and as JSON."""
    agentd.start()
    header, row = breaker(agentd, "list").stdout.splitlines()
    assert header.split()[:2] == ["AGENT", "STATE"]
    assert row.split() == ["waf", "closed", "0", "0", "5", "60", "s", "30", "s", "2", "1"]
    (found,) = json.loads(breaker(agentd, "list", "--json").stdout)["breakers"]
    assert (found["agent"], found["state"], found["failure_threshold"]) == ("waf", "closed", 5)


def test_numbers_are_set_by_name_and_the_rest_stays(agentd: Agentd) -> None:
    """Out of range is refused by agentd, nothing given is a usage error."""
    agentd.start()
    result = breaker(agentd, "set", "waf", "--failure-threshold", "20", "--timeout-seconds", "0.5", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["failure_threshold"], found["timeout_seconds"], found["window_seconds"]) == (20, 0.5, 60.0)
    assert breaker(agentd, "set", "waf").exit_code == 2
    assert breaker(agentd, "set", "waf", "--failure-threshold", "0").exit_code == 2
    result = breaker(agentd, "set", "waf", "--timeout-seconds", "1e9")
    assert result.exit_code == 1
    assert "timeout_seconds" in result.stderr


def test_exit_codes(agentd: Agentd) -> None:
    """1 unknown agent, 2 usage, 3 agentd not there."""
    assert breaker(agentd, "open", "waf").exit_code == 3
    agentd.start()
    result = breaker(agentd, "open", "vaf")
    assert result.exit_code == 1
    assert "there is no agent 'vaf'; there are: waf" in result.stderr
    assert breaker(agentd, "open").exit_code == 2
    assert breaker(agentd, "explode", "waf").exit_code == 2


def test_a_change_takes_well_under_100_ms(agentd: Agentd) -> None:
    """From the request to the published mirror; the median of 20, measured again once."""
    from proxy.cli.admin_client import AdminClient
    from shared.runtime import Runtime

    agentd.start()
    client = AdminClient(Runtime(str(agentd.runtime)))

    def median_s() -> float:
        took = []
        for number in range(20):
            began = time.monotonic()
            client.change_breaker("waf", "open" if number % 2 else "close")
            took.append(time.monotonic() - began)
        return sorted(took)[10]

    assert min(median_s(), median_s()) < 0.1
