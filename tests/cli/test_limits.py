"""`wardgate limits` and `wardgate overrides` against an agentd without a proxy; with one: tests/e2e/test_limits.py."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from tests.support import Agentd

CONFIG = """
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9" }]
[[agents]]
name = "waf"
protocol = "zmq-v2"
rate_limit = { capacity = 10, refill_rate = 2.5 }
[[routes]]
name = "all"
upstream = "app"
filters = [{ agent = "waf" }]
max_concurrent = 5
"""


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, CONFIG) as made:
        yield made


def wardgate(agentd: Agentd, *args: str) -> Result:
    return CliRunner().invoke(main, [*args, "--config", str(agentd.config)])


def test_an_agents_rate_is_listed_set_kept_and_reset(agentd: Agentd) -> None:
    """Beside breakers that were changed by hand; limits of a proxy that does not run are not there."""
    agentd.start()
    (row,) = wardgate(agentd, "limits", "list").stdout.splitlines()[1:]
    assert row.split() == ["agent:waf", "agent", "10", "2.5/s", "0", "0", "0", "0", "-"]
    assert wardgate(agentd, "overrides").stdout == "nothing differs from the configuration\n"
    assert wardgate(agentd, "limits", "set", "agent:waf", "--capacity", "20").exit_code == 0
    result = wardgate(agentd, "limits", "set", "agent:waf", "--refill-rate", "5", "--keep", "--json")
    changed = json.loads(result.stdout)
    assert (changed["capacity"], changed["refill_rate"], changed["kept"]) == (20, 5.0, True)
    wardgate(agentd, "breaker", "open", "waf")
    wardgate(agentd, "breaker", "set", "waf", "--failure-threshold", "7")
    rows = [line.split() for line in wardgate(agentd, "overrides").stdout.splitlines()[1:]]
    assert rows == [
        ["limit", "agent:waf", "capacity", "10", "20", "yes"],
        ["limit", "agent:waf", "refill_rate", "2.5", "5", "yes"],
        ["breaker", "waf", "state", "closed", "forced_open", "yes"],
        ["breaker", "waf", "failure_threshold", "5", "7", "no"],
    ]
    result = wardgate(agentd, "limits", "reset", "agent:waf", "--json")
    assert not json.loads(result.stdout)["overridden"]
    found = json.loads(wardgate(agentd, "overrides", "--json").stdout)["overrides"]
    assert {one["kind"] for one in found} == {"breaker"}


def test_exit_codes(agentd: Agentd) -> None:
    """3 agentd not there, 1 refused: no such limit, no proxy; 2 usage."""
    assert wardgate(agentd, "limits", "list").exit_code == 3
    assert wardgate(agentd, "overrides").exit_code == 3
    agentd.start()
    result = wardgate(agentd, "limits", "set", "agent:vaf", "--capacity", "1")
    assert result.exit_code == 1
    assert "there is no limit 'agent:vaf'; there are: agent:waf" in result.stderr
    result = wardgate(agentd, "limits", "reset", "all/max_concurrent")
    assert result.exit_code == 1
    assert "limits cannot be changed" in result.stderr
    assert wardgate(agentd, "limits", "set", "agent:waf").exit_code == 2
    assert wardgate(agentd, "limits", "set", "agent:waf", "--refill-rate", "nan").exit_code == 2
