"""deploy/examples/agents: what an operator copies is taken as it stands."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shared.config.load import load
from tests.support import ROOT
from wardgate_agents.auth.settings import AuthSettings
from wardgate_agents.auth.ways import Ways
from wardgate_agents.denylist.agent import DenylistSettings
from wardgate_agents.denylist.lists import Lists, Sources
from wardgate_agents.guardrail.settings import GuardrailSettings, Rules
from wardgate_agents.headers.rules import Plans
from wardgate_agents.headers.settings import HeadersSettings
from wardgate_agents.settings import Settings, settings_of

EXAMPLES = ROOT / "deploy/examples/agents"


def config(name: str) -> Any:
    (agent,) = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())["agents"]
    assert agent["name"] == name
    return agent["config"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("denylist", DenylistSettings),
        ("auth", AuthSettings),
        ("headers", HeadersSettings),
        ("guardrail", GuardrailSettings),
    ],
)
def test_the_tables(name: str, kind: type[Settings]) -> None:
    """No unknown key, no wrong value."""
    settings = settings_of(kind, config(name))
    if isinstance(settings, HeadersSettings):
        Plans(settings)
    if isinstance(settings, GuardrailSettings):
        Rules(settings)
    if isinstance(settings, AuthSettings):
        ways = Ways(settings, lambda: 0.0)
        assert len(ways.watched()) == 3


def test_the_lists() -> None:
    """Every file that the table names is there, and every line of it can be read."""
    settings = settings_of(DenylistSettings, config("denylist"))
    paths = {field: getattr(settings, field) for field in Sources._fields[:-1]}
    assert all(path.startswith("/etc/wardgate-agents/denylist/") for path in settings.sources().files())
    here = {field: [str(EXAMPLES / "denylist" / Path(path).name) for path in given] for field, given in paths.items()}
    lists = Lists(Sources(**here))
    assert lists.counts() == {"network": 3, "path": 7, "user_agent": 5}
    assert lists.allow_networks.count == 1
    assert sorted(map(str, (EXAMPLES / "denylist").iterdir())) == sorted(
        path for given in here.values() for path in given
    )


def test_wardgate_takes_them(tmp_path: Path) -> None:
    """All of them in one configuration: no agent can pass for another."""
    (tmp_path / "conf.d").mkdir()
    for path in EXAMPLES.glob("*.toml"):
        shutil.copy(path, tmp_path / "conf.d")
    in_filters = sorted({path.stem for path in EXAMPLES.glob("*.toml")} - {"guardrail"})
    filters = ", ".join(f'{{ agent = "{name}" }}' for name in in_filters)
    (tmp_path / "wardgate.toml").write_text(
        '[[upstreams]]\nname = "app"\ntargets = [{ address = "127.0.0.1:9000" }]\n'
        f'[[routes]]\nname = "public"\nupstream = "app"\nfilters = [{filters}]\n'
        '[routes.guardrails]\nprompt = { agents = ["guardrail"], action = "block" }\n'
    )
    loaded = load(str(tmp_path / "wardgate.toml"), {})
    assert {agent.name for agent in loaded.config.agents} >= {"auth", "denylist", "guardrail", "headers"}
