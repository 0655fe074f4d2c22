"""`wardgate agents`: table, one agent at length, JSON, exit codes; against a real agentd."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from shared.events import SUPPORTED
from shared.wire.admin import Agent, Instance, LastCall
from tests.support import Agentd

CONFIG = """
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9" }]
[[agents]]
name = "waf"
protocol = "zmq-v2"
events = ["request_headers"]
[[agents]]
name = "tracer"
protocol = "zmq-v1"
endpoint = "ipc:///nowhere/tracer.sock"
failure_mode = "open"
[[routes]]
name = "all"
upstream = "app"
filters = [{ agent = "waf" }, { agent = "tracer", mode = "observe" }]
"""


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, CONFIG) as made:
        yield made


def agents(agentd: Agentd, *args: str) -> Result:
    return CliRunner().invoke(main, ["agents", "--config", str(agentd.config), *args])


def test_every_agent_has_a_line(agentd: Agentd) -> None:
    """In the order of the configuration, whether it is there or not."""
    agentd.start()
    result = agents(agentd)
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split()[:4] == ["AGENT", "PROTOCOL", "BREAKER", "INSTANCES"]
    assert [row.split()[:4] for row in rows] == [
        ["waf", "zmq-v2", "closed", "0/64"],
        ["tracer", "zmq-v1", "closed", "0/1"],
    ]


def test_json_is_what_the_api_says(agentd: Agentd) -> None:
    """One document."""
    agentd.start()
    document = json.loads(agents(agentd, "--json").stdout)
    waf, tracer = document["agents"]
    assert (waf["required"], waf["events"], waf["max_queue"]) == (True, ["request_headers"], 200)
    assert (tracer["required"], tracer["events"]) == (False, [kind.wire_name for kind in SUPPORTED])
    (only,) = json.loads(agents(agentd, "tracer", "--json").stdout)["agents"]
    assert only["name"] == "tracer"


def test_one_agent_is_shown_with_its_instances_and_last_calls(agentd: Agentd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flight recorder."""
    from proxy.cli import agents as module

    instance = Instance("i-1", "degraded", 0.5, 3, 100, 2, True, False, "s-1", 3_000_000, 12, 7, "old \x1b rules")
    call = LastCall(1500.0, "c1", "request_headers", "timeout", "i-1", 0.01, 200.4, "no answer in time")
    agent = Agent(
        "waf", "zmq-v2", True, "half_open", ("request_headers",), 200, 3, 100, 1, 200, 9, 2,
        {"decision": 7, "timeout": 2, "cancelled": 5}, {}, 4, 2.5, 100.0, (instance,), (call,),
        64, 32 * 1024 * 1024, 1_000, {"bytes": 5, "socket": 2}, 8, 9,
    )  # fmt: skip
    monkeypatch.setattr(module.AdminClient, "agents", lambda self: module.wire.Agents((agent,)))
    lines = agents(agentd, "waf").stdout.splitlines()
    assert lines[1].split() == [
        "waf", "zmq-v2", "half_open", "1/64", "3/100", "1/200", "2.86M/32M", "7", "7", "2", "4",
        "2.5", "ms", "100", "ms",
    ]  # fmt: skip
    assert "other ends: timeout 2, cancelled 5" in lines
    text = "\n".join(lines)
    assert "instances passed over, too much unread: bytes 5, socket 2" in lines
    assert "garbage: 8; header operations refused: 9" in lines
    assert "i-1       degraded  3/100  2.86M/32M  12/1000   7        2       0.50  paused" in text
    assert "i-1: old \\x1b rules" in lines
    assert "1.5 s  request_headers  timeout  i-1       0.01 ms  200 ms  no answer in time" in text


def test_an_unknown_agent_is_refused_and_a_missing_agentd_unreachable(agentd: Agentd) -> None:
    """Exit codes 1 and 3."""
    result = agents(agentd)
    assert result.exit_code == 3
    assert "agentd is not running" in result.stderr
    assert json.loads(agents(agentd, "--json").stdout)["error"]["code"] == "unreachable"
    agentd.start()
    result = agents(agentd, "vaf", "--json")
    assert result.exit_code == 1
    assert result.stderr == "wardgate: there is no agent 'vaf'; there are: waf, tracer\n"
    assert json.loads(result.stdout) == {
        "error": {"code": "refused", "message": "there is no agent 'vaf'; there are: waf, tracer"}
    }


def test_no_agents_is_said(short_tmp_dir: Path) -> None:
    """Not an empty table."""
    with Agentd(short_tmp_dir) as agentd:
        agentd.start()
        assert agents(agentd).stdout == "no agents are configured\n"


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_a_terminal_gets_the_columns_that_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    """A pipe gets all; names, breaker, calls and outcomes are never left out."""
    from proxy.cli import agents as module

    row = ("policy-agent", "zmq-v2", "half_open", "20/64", "1000/1000", "200/200", "31.9M/32M", "12345", "1234567",
           "1234", "12", "2.5 ms", "100 ms")  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    module.show_table(module.HEADERS, [row], module.SPARED)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    (headers,) = (line.split() for line in lines if "AGENT" in line)
    assert set(headers) >= {"AGENT", "BREAKER", "CALLS", "QUEUED", "DECIDED", "FAILED"}
    assert (len(headers) == len(module.HEADERS)) is (columns == 200)


def test_subcommands_and_names_do_not_get_into_each_others_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """`agents WORD` is the subcommand of that name if there is one, else an agent; options may stand anywhere."""
    from proxy.cli import agents as module

    monkeypatch.setitem(module.COMMANDS, "config", ("proxy.cli.config", "Something else."))
    asked = []
    monkeypatch.setattr(module.AdminClient, "agents", lambda self: asked.append(1) or module.wire.Agents(()))
    runner = CliRunner()
    assert "Usage: main agents config" in runner.invoke(main, ["agents", "config", "--help"]).stdout
    assert not asked
    for words in (["--json", "--runtime-dir", "/x"], ["--runtime-dir", "/x", "waf"], ["waf", "--runtime-dir", "/x"]):
        runner.invoke(main, ["agents", *words])
        assert asked.pop()
    text = runner.invoke(main, ["agents", "--help"]).stdout
    assert all(part in text for part in ("[NAME]", "--runtime-dir", "Something else."))


@pytest.mark.parametrize("name", ["waf/", "/", "/i1"])
def test_a_drain_of_half_a_name_is_a_mistake(name: str, short_tmp_dir: Path) -> None:
    """`waf/$INSTANCE --force` with an empty variable must not drain every instance; nobody is asked."""
    result = CliRunner().invoke(main, ["agents", "drain", name, "--force", "--runtime-dir", str(short_tmp_dir)])
    assert result.exit_code == 2
    assert "expected NAME or NAME/INSTANCE" in result.stderr
