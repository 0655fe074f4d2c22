"""`wardgate breaker`: each change acts on a real agentd and shows in the mirror that workers read."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.cli.admin_client import AdminClient
from shared.clock import now_ns
from shared.segment import AgentdView, BreakerState
from shared.wire.admin import DEADLINE
from tests.support import Agentd, process_state, wait_until

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
    """Out of the schema's range and nothing given are usage errors."""
    agentd.start()
    result = breaker(agentd, "set", "waf", "--failure-threshold", "20", "--timeout-seconds", "0.5", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["failure_threshold"], found["timeout_seconds"], found["window_seconds"]) == (20, 0.5, 60.0)
    assert breaker(agentd, "set", "waf").exit_code == 2
    for option, value in (
        ("--failure-threshold", "0"),
        ("--failure-threshold", "1000001"),
        ("--success-threshold", "1001"),
        ("--half-open-max-requests", "1001"),
        ("--timeout-seconds", "nan"),
        ("--timeout-seconds", "inf"),
        ("--timeout-seconds", "0"),
        ("--window-seconds", "86401"),
    ):
        result = breaker(agentd, "set", "waf", option, value)
        assert result.exit_code == 2, (option, value)
        assert option in result.stderr


def test_exit_codes(agentd: Agentd) -> None:
    """1 unknown agent, 2 usage, 3 agentd not there."""
    assert breaker(agentd, "open", "waf").exit_code == 3
    agentd.start()
    result = breaker(agentd, "open", "vaf")
    assert result.exit_code == 1
    assert "there is no agent 'vaf'; there are: waf" in result.stderr
    assert breaker(agentd, "open").exit_code == 2
    assert breaker(agentd, "explode", "waf").exit_code == 2


def test_json_is_printed_whatever_comes_of_it(agentd: Agentd) -> None:
    """One document on standard output with exit codes 1 and 3, too; the text for people is beside it."""
    for args in (("list",), ("open", "waf")):
        result = breaker(agentd, *args, "--json")
        assert result.exit_code == 3
        error = json.loads(result.stdout)["error"]
        assert error["code"] == "unreachable"
        assert result.stderr == f"wardgate: {error['message']}\n"
    agentd.start()
    result = breaker(agentd, "open", "vaf", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "refused"


def test_a_change_that_was_given_up_is_not_made_later(agentd: Agentd, monkeypatch: pytest.MonkeyPatch) -> None:
    """agentd is stopped, the command ends with 3, agentd goes on: the breaker is as it was, whoever still waits."""
    agentd.start()
    monkeypatch.setattr("proxy.cli.breaker.AdminClient", partial(AdminClient, timeout_s=0.2))
    agentd.child.signal(signal.SIGSTOP)
    wait_until(lambda: process_state(agentd.child.pid) == "T")
    past = f"POST /api/breakers/waf/open HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{DEADLINE}: {now_ns()}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as patient:
        patient.settimeout(10)
        patient.connect(str(agentd.runtime / "admin.sock"))
        patient.sendall(past.encode())
        assert breaker(agentd, "open", "waf").exit_code == 3
        monkeypatch.undo()
        agentd.child.signal(signal.SIGCONT)
        assert patient.recv(4096).startswith(b"HTTP/1.1 408 ")
    agentd.child.wait_for("admin change refused", 5)
    (found,) = json.loads(breaker(agentd, "list", "--json").stdout)["breakers"]
    assert found["state"] == "closed"


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
