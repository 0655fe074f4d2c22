"""`wardgate health`: what it says and how it exits when agentd is well, stopped, killed or never started."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main, table
from proxy.cli.admin_client import AdminClient
from shared.clock import now_ns
from shared.metrics import U_LAST_OK_NS
from shared.segment import READY, ProxyWriter
from tests.support import Agentd, process_state, wait_until

UPSTREAM = """
[server]
workers = 1
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9" }]
"""
AGENT = """
[[agents]]
name = "waf"
protocol = "zmq-v2"
"""
OPEN = UPSTREAM + '[[routes]]\nname = "all"\nupstream = "app"\n'
GUARDED = UPSTREAM + AGENT + '[[routes]]\nname = "all"\nupstream = "app"\nfilters = [{ agent = "waf" }]\n'
IMPATIENT = partial(AdminClient, timeout_s=0.2)  # where the time itself is not what is tested


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, OPEN) as made:
        yield made


@pytest.fixture
def proxy(agentd: Agentd) -> Iterator[Callable[[], None]]:
    """A proxy with one worker that turns and has reached its upstream; call it to let time pass."""
    agentd.runtime.mkdir(mode=0o711)
    writer = ProxyWriter.create(str(agentd.runtime / "proxy.seg"), "", ["all"], ["app"])
    slot = writer.slot(0)
    slot.claim(os.getpid(), now_ns())
    slot.set_state(READY)

    def beat() -> None:
        writer.beat(now_ns())
        slot.beat(now_ns())
        slot.upstream_cells(0)[U_LAST_OK_NS] = now_ns()

    beat()
    yield beat
    writer.close()


def health(agentd: Agentd, *args: str) -> Result:
    return CliRunner().invoke(main, ["health", "--config", str(agentd.config), *args])


def asked(agentd: Agentd, code: int, *args: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    result = health(agentd, "--json", *args)
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    return document, {component["name"]: component for component in document["components"]}


def test_a_well_system_is_ready_with_exit_code_0(agentd: Agentd, proxy: Callable[[], None]) -> None:
    """Degraded counts as ready: here the configurations differ."""
    agentd.start()
    proxy()
    document, components = asked(agentd, 0)
    assert (document["ready"], document["not_asked"]) == (True, [])
    assert {name: c["status"] for name, c in components.items() if name not in ("config", "memory")} == {
        "agentd": "healthy",
        "workers": "healthy",
        "upstream:app": "healthy",
        "audit": "healthy",
    }
    proxy()
    text = health(agentd).stdout.splitlines()
    assert text[0] in ("degraded, ready", "healthy, ready")
    assert text[1].split() == ["STATUS", "COMPONENT", "MESSAGE", "LATENCY", "LAST", "CHECK"]
    assert text[2].split()[:2] == ["healthy", "agentd"]


def test_not_ready_is_exit_code_1(agentd: Agentd) -> None:
    """The proxy is missing, and so is a required agent."""
    agentd.write(GUARDED)
    agentd.start()
    document, components = asked(agentd, 1)
    assert document["ready"] is False
    assert components["workers"]["message"] == "the proxy is not running"
    assert components["agent:waf"] | {"last_check": ""} == {
        "name": "agent:waf",
        "status": "unhealthy",
        "message": "required, no live instance",
        "required": True,
        "latency_ms": None,
        "last_check": "",
    }


def test_an_agentd_that_never_started_is_exit_code_3(agentd: Agentd) -> None:
    """And nothing at all is known."""
    document, components = asked(agentd, 3)
    assert components["agentd"]["message"] == "is not running"
    assert components["workers"]["message"] == "the proxy is not running"
    assert [text.partition(":")[0] for text in document["not_asked"]] == ["agents", "audit", "memory"]
    assert "nobody listens on" in document["not_asked"][0]


def test_a_hung_agentd_is_told_from_a_dead_one(
    agentd: Agentd, proxy: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: it does not answer within two seconds; what the segments say is shown, what it alone knows is not."""
    agentd.write(GUARDED)
    agentd.start()
    agentd.child.signal(signal.SIGSTOP)
    wait_until(lambda: process_state(agentd.child.pid) == "T")
    began = time.monotonic()
    proxy()
    document, components = asked(agentd, 3)
    assert time.monotonic() - began < 4
    assert "the process is stopped (SIGSTOP or a debugger)" in components["agentd"]["message"]
    assert components["agent:waf"]["message"] == "required, no live instance (last known)"
    assert "last word" in components["memory"]["message"]
    (text,) = document["not_asked"]
    assert text.startswith("audit: agentd did not answer within 2 s")
    monkeypatch.setattr("proxy.cli.health.AdminClient", IMPATIENT)
    lines = health(agentd).stdout.splitlines()
    assert lines[-1].startswith("not asked: audit")
    monkeypatch.undo()
    agentd.child.signal(signal.SIGCONT)
    assert wait_until(lambda: health(agentd).exit_code == 1)


def test_a_killed_agentd_leaves_what_workers_and_upstreams_say(agentd: Agentd, proxy: Callable[[], None]) -> None:
    """The segment of the dead one is there, its process is not."""
    agentd.start()
    agentd.child.kill()
    wait_until(lambda: "ago" in asked(agentd, 3)[1]["agentd"]["message"], 5)
    proxy()
    _, components = asked(agentd, 3)
    assert components["agentd"]["message"].endswith("the process is gone")
    assert components["workers"]["status"] == "healthy"
    assert components["upstream:app"]["status"] == "healthy"


def test_without_a_configuration_the_directory_is_enough(agentd: Agentd, proxy: Callable[[], None]) -> None:
    """--runtime-dir spares a file that may be what is broken."""
    agentd.start()
    agentd.config.write_text("not = toml = at all")
    result = health(agentd)
    assert result.exit_code == 2
    assert "--runtime-dir" in result.stderr
    proxy()
    named = ("health", "--json", "--runtime-dir", str(agentd.runtime))
    assert CliRunner().invoke(main, named).exit_code == 0
    agentd.child.kill()
    result = CliRunner().invoke(main, named)
    assert result.exit_code == 3
    names = [component["name"] for component in json.loads(result.stdout)["components"]]
    assert "workers" in names
    assert "upstream:app" in names


def test_something_else_behind_the_socket_is_unreachable(agentd: Agentd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing."""
    monkeypatch.setattr("proxy.cli.health.AdminClient", IMPATIENT)
    agentd.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(agentd.runtime / "admin.sock"))
        assert health(agentd).exit_code == 3, "bound, nobody listens"
        other.listen()
        result = health(agentd)
        assert result.exit_code == 3
        assert "did not answer within 0.2 s" in result.stdout


def test_wrong_options_are_exit_code_2(agentd: Agentd) -> None:
    """click's own."""
    assert health(agentd, "--yaml").exit_code == 2


@pytest.mark.parametrize("text", ["plain", "two\nlines", "\x1b[31mred", "[bold]markup[/bold]"])
def test_a_table_on_a_terminal_is_drawn_and_shows_texts_as_they_are(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No text of an agent's making reaches the terminal as a command or as markup."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    table.show_table(("A", "B"), [("healthy", text)])
    out = capsys.readouterr().out
    assert "\x1b[31mred" not in out
    assert text.replace("\n", "\\n").replace("\x1b", "\\x1b") in out
