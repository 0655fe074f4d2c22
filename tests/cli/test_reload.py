"""`wardgate reload`: what it checks, whom it tells, how it exits. The rest, under load: tests/e2e/test_reload.py."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from tests.support import Agentd

CONFIG = '[[upstreams]]\nname = "app"\ntargets = [{ address = "127.0.0.1:9" }]\n'
CONFIG += '[[routes]]\nname = "all"\nupstream = "app"\n'


@pytest.fixture
def agentd(short_tmp_dir: Path) -> Iterator[Agentd]:
    with Agentd(short_tmp_dir, CONFIG) as made:
        yield made


def reload(agentd: Agentd, *args: str) -> Result:
    return CliRunner().invoke(main, ["reload", "--config", str(agentd.config), *args])


def test_a_file_with_problems_is_told_to_nobody(agentd: Agentd) -> None:
    """Exit code 2, every problem; the daemon has not even read it."""
    agentd.start()
    agentd.write("server.wokers = 3\n" + CONFIG + "[[upstreams]]\n")
    result = reload(agentd)
    assert result.exit_code == 2
    assert "wokers" in result.stderr
    assert result.stderr.splitlines()[-1] == "wardgate: nothing was reloaded"
    result = reload(agentd, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ok"], document["agentd"]) == (2, False, None)
    assert any("wokers" in problem for problem in document["problems"])
    assert "SIGHUP" not in agentd.child.output()
    assert "refused" not in agentd.child.output()


def test_without_agentd_nothing_can_be_reloaded(agentd: Agentd) -> None:
    """Exit code 3; a hint for whom runtime.dir has changed."""
    result = reload(agentd)
    assert result.exit_code == 3
    assert "agentd is not running" in result.stderr
    assert "--runtime-dir" in result.stderr


def test_without_a_proxy_agentd_is_reloaded_and_it_says_so(agentd: Agentd) -> None:
    agentd.start()
    agentd.write(CONFIG + '[[agents]]\nname = "new"\nprotocol = "zmq-v2"\n')
    result = reload(agentd)
    assert result.exit_code == 3
    assert "agentd: reloaded, runs " in result.stdout
    assert "the proxy does not run" in result.stderr
    assert "warning: " in result.stderr, "an agent that no route names"


def test_another_file_than_the_daemons_is_noticed(agentd: Agentd, short_tmp_dir: Path) -> None:
    """Each daemon reads what it was started with."""
    agentd.start()
    other = short_tmp_dir / "other.toml"
    other.write_text(agentd.config.read_text() + "[server]\nworkers = 1\n")
    result = CliRunner().invoke(main, ["reload", "--config", str(other), "--json"])
    document = json.loads(result.stdout)
    assert document["agentd"]["digest"] != document["digest"]


def test_secrets_of_others_are_left_to_the_daemons(agentd: Agentd, short_tmp_dir: Path) -> None:
    """A file that this user may read and that is missing is a problem; a directory of somebody else's is not ours."""
    text = CONFIG + '[admin]\ntoken_file = "/nowhere/token"\n'
    agentd.config.write_text(f'[runtime]\ndir = "{short_tmp_dir}"\n{text}')
    assert reload(agentd).exit_code == 2
    if os.geteuid() != 0:
        agentd.config.write_text(f'[runtime]\ndir = "/"\n{text}')
        assert reload(agentd).exit_code == 3
