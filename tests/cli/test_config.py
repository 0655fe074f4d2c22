"""proxy/cli/config.py: `wardgate config show` and `schema`."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli.config import command
from shared.config.reference import render_schema
from shared.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "data" / "wardgate.example.toml"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.delenv("WARDGATE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **environ: CliRunner().invoke(command, arguments, env=environ)


def test_show_prints_toml_with_everything_in_force(run):
    result = run("show", "-c", str(EXAMPLE), WARDGATE__SERVER__WORKERS="4")
    assert result.exit_code == 0
    document = tomllib.loads(result.stdout)
    assert document["server"]["workers"] == 4
    assert document["agents"][1]["max_queue"] == 200
    assert "#" not in result.stdout


def test_show_origin_says_where_each_value_was_set(run):
    result = run("show", "-c", str(EXAMPLE), "--origin", WARDGATE__SERVER__WORKERS="4")
    lines = result.stdout.splitlines()
    assert any(
        line.startswith("workers = 4 ") and line.endswith("# environment WARDGATE__SERVER__WORKERS") for line in lines
    )
    assert any(line.startswith("max_headers = 100 ") and line.endswith(f"# {EXAMPLE}:14") for line in lines)
    assert any(line.startswith("connections = 1 ") and line.endswith("# default") for line in lines)


def test_show_json(run):
    document = json.loads(run("show", "-c", str(EXAMPLE), "--json").stdout)
    assert document["routes"][0]["match"]["methods"] == ["GET", "POST"]
    document = json.loads(run("show", "-c", str(EXAMPLE), "--json", "--origin").stdout)
    assert document["agents[waf].timeout_ms"] == {"value": 200, "origin": f"{EXAMPLE}:50"}
    assert document["agents[tracer].max_queue"] == {"value": 200, "origin": "default"}


def test_show_of_a_refused_configuration_is_its_problems(run):
    Path("w.toml").write_text("x = 1\n")
    result = run("show", "-c", "w.toml")
    assert isinstance(result.exception, ConfigError)  # the command's group prints it and exits with 2
    assert result.stdout == ""


def test_schema_is_the_one_in_the_reference(run):
    result = run("schema")
    assert result.exit_code == 0
    assert result.stdout == render_schema()


def test_help(run):
    for arguments in (["--help"], ["show", "--help"], ["schema", "--help"]):
        result = run(*arguments)
        assert result.exit_code == 0
    assert "--origin" in run("show", "--help").stdout
