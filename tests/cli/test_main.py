"""proxy/cli/__init__.py: the table of commands, loaded when used, and our errors as exit codes."""

import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from proxy import cli
from shared.errors import AdminRefused, AlreadyRunning, ConfigError, Unreachable, WardgateError
from tests.support import Agentd, Child, python


def test_help_lists_every_command_and_imports_none() -> None:
    """`wardgate --help` is fast: it loads no subcommand, no event loop, no ZeroMQ."""
    code = (
        "import sys; from click.testing import CliRunner; from proxy.cli import main, COMMANDS;"
        "out = CliRunner().invoke(main, ['--help']).output;"
        "assert all(f'\\n  {name} ' in out for name in COMMANDS), out;"
        "dear = ('proxy.cli.', 'zmq', 'asyncio', 'uvicorn', 'gunicorn', 'rich.');"
        "bad = [m for m in sys.modules if m.startswith(dear)];"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_row_has_its_command_with_examples_and_exit_codes(name: str) -> None:
    """Each module of the table exposes a click command `command`; its help is good enough to work from."""
    command = cli.main.get_command(click.Context(cli.main), name)
    assert isinstance(command, click.Command)
    members = list(command.commands) if isinstance(command, click.Group) else []
    pages = [CliRunner().invoke(cli.main, [name, *member, "--help"]) for member in ([m] for m in members)] or [
        CliRunner().invoke(cli.main, [name, "--help"])
    ]
    assert all(page.exit_code == 0 and "Example" in page.output for page in pages)
    assert any("Exit codes" in page.output for page in pages)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["a: first", "b: second"]), 2),
        (Unreachable("agentd did not answer"), 3),
        (AlreadyRunning("already running, pid 1"), 1),
        (AdminRefused(403, "no"), 1),
        (WardgateError("anything else"), 1),
    ],
)
def test_our_errors_become_messages_and_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: WardgateError, code: int
) -> None:
    """No traceback for what an operator can act on; every problem of a configuration on its line."""

    @click.command()
    def command() -> None:
        raise error

    module = types.ModuleType("wardgate_test_command")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "broken", (module.__name__, "raises"))
    result = CliRunner().invoke(cli.main, ["broken"])
    assert result.exit_code == code
    expected = error.problems if isinstance(error, ConfigError) else [str(error)]
    assert result.stderr.splitlines() == [f"wardgate: {text}" for text in expected]
    assert result.stdout == ""


def test_an_unknown_command_is_a_usage_error_with_a_suggestion() -> None:
    """Exit code 2 and the nearest name."""
    result = CliRunner().invoke(cli.main, ["helth"])
    assert result.exit_code == 2
    assert "did you mean health?" in result.stderr


def test_agentd_is_started_not_imported(short_tmp_dir: Path) -> None:
    """`wardgate agentd` becomes `python -P -m agentd`: the same pid, no proxy code in it, its exit codes."""
    with Agentd(short_tmp_dir) as agentd:
        command = python("-c", "from proxy.cli import main; main()", "agentd", "--config", str(agentd.config))
        agentd.child = Child(command, short_tmp_dir / "out")
        agentd.child.wait_for("agentd is ready")
        cmdline = Path(f"/proc/{agentd.child.pid}/cmdline").read_text().split("\0")
        assert cmdline[1:] == ["-P", "-m", "agentd", "--config", str(agentd.config), ""]
        assert agentd.child.stop() == 0
        agentd.config.write_text("nonsense")
        with Child(command, short_tmp_dir / "again") as again:
            assert again.ended() == 2
