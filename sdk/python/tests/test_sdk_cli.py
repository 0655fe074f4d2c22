"""The command line: what it says about wrong usage, and its defaults."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wardgate_agent import Agent, cli
from wardgate_agent.cli import UsageError, load, main

MODULE = """
import wardgate_agent

class MyAgent(wardgate_agent.Agent):
    def on_request_headers(self, event):
        return wardgate_agent.Allow()

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "cli_agent.py").write_text(MODULE)
    (tmp_path / "cli_empty.py").write_text("")
    (tmp_path / "cli_broken.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    root.handlers[:] = before


def test_loads_a_class() -> None:
    assert issubclass(load("cli_agent:MyAgent"), Agent)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("cli_agent", "is not MODULE:CLASS"),
        (":MyAgent", "is not MODULE:CLASS"),
        ("no_such_module:X", "there is no module 'no_such_module'"),
        ("cli_agent.sub:X", "there is no module"),
        ("cli_broken:X", "imports 'no_such_module_anywhere', which is not installed"),
        ("cli_agent:MyAgnet", "did you mean MyAgent"),
        ("cli_empty:X", "no class derived from Agent"),
        ("cli_agent:Other", "not a class derived from"),
    ],
)
def test_wrong_targets_are_explained(target: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as raised:
        load(target)
    assert text in str(raised.value)
    assert main(argv=[target]) == 2
    assert text in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv=["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    for option in ("--connect", "--name", "--instance", "--secret-file"):
        assert option in text
    for option in ("--max-batch", "--max-concurrency", "--max-body-bytes"):
        assert option in text
    assert "ipc:///run/wardgate/agents/v2" in text
    assert "exit codes" in text


def test_options_reach_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake_run(agent: Any, connect: str, **options: Any) -> int:
        seen.update(agent=agent, connect=connect, **options)
        return 7

    monkeypatch.setattr(cli, "run", fake_run)
    argv = ["cli_agent:MyAgent", "--connect", "ipc:///x", "--name", "waf", "--max-batch", "3", "--drain-deadline", "1"]
    assert main(argv=argv) == 7
    assert seen.pop("agent").__name__ == "MyAgent"
    assert seen == {
        "connect": "ipc:///x",
        "name": "waf",
        "instance": "",
        "secret_file": "",
        "max_batch": 3,
        "max_concurrency": 100,
        "max_body_bytes": 1_048_576,
        "drain_deadline_s": 1.0,
    }


def test_a_script_passes_its_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run", lambda agent, connect, **options: (agent, connect))
    assert main(Agent, ["--connect", "ipc:///y"]) == (Agent, "ipc:///y")  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("argv", [[], ["a:b", "--max-batch", "x"], ["a:b", "--log-level", "loud"]])
def test_wrong_options_exit_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv=argv)
    assert raised.value.code == 2
