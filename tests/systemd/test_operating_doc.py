"""docs/operating.md and the alert rules name only what exists: commands, options, files, units, keys, metrics."""

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from proxy.cli import COMMANDS
from shared.decision import Outcome
from shared.metrics import Kind
from shared.metrics_agentd import families
from shared.segment import BreakerState
from tests.support import ROOT

PAGE = ROOT / "docs/operating.md"
TEXT = PAGE.read_text()
CODE = [*re.findall(r"`([^`\n]+)`", TEXT), *re.findall(r"(?m)^ {4,}(\S.*)$", TEXT)]
ALERTS = (ROOT / "deploy/prometheus/alerts.yml").read_text()
SUFFIXES = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}


def command_lines() -> list[str]:
    """Every `wardgate ...` in code, up to what a shell or a comment would end it with."""
    found = {
        match[1].strip()
        for code in CODE
        for match in re.finditer(r"(?:^|\s|/bin/)wardgate ((?:[a-z-]+|-)[^&|;#]*)", code)
        if not code.startswith(("adduser", "su "))
    }
    return sorted(found)


@pytest.mark.parametrize("line", command_lines())
def test_every_command_exists_with_its_options(line: str) -> None:
    """The words up to the first argument are commands; each --option is one of the last of them."""
    words = line.split()
    assert words[0] in COMMANDS, line
    command: click.Command = import_module(COMMANDS[words[0]][0]).command
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        context = click.Context(command)
        is_named = rest[0] in command.list_commands(context)
        found = command.get_command(context, rest[0])  # `agents waf`: what is no subcommand is an agent
        assert found is not None, line
        command, rest = found, rest[is_named:]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        assert not word.startswith("-") or word.partition("=")[0] in known, line


def test_the_page_uses_the_commands_of_daily_life() -> None:
    """So that the test above has something to look at."""
    named = {line.split()[0] for line in command_lines()}
    assert {"check", "reload", "health", "agents", "breaker", "limits", "overrides", "config"} <= named


def installed(path: str) -> Path | None:
    """Where the repository has what an installed path names; None = made at run time, or by the operator."""
    for at, source in (
        ("/opt/wardgate/current/share/prometheus/", "deploy/prometheus/"),
        ("/opt/wardgate/current/share/examples/", "deploy/examples/"),
        ("/opt/wardgate/current/share/systemd/", "systemd/"),
        ("/usr/lib/systemd/system/", "systemd/"),
        ("/usr/lib/sysusers.d/", "systemd/sysusers.d/"),
        ("/usr/lib/tmpfiles.d/", "systemd/tmpfiles.d/"),
    ):
        if path.startswith(at):
            return ROOT / source / path.removeprefix(at)
    if path in ("/etc/wardgate/wardgate.toml", "/etc/wardgate/wardgate.env"):
        return ROOT / "config" / Path(path).name
    if path.startswith(("deploy/", "systemd/", "config/", "docs/")):
        return ROOT / path
    return None


def test_every_file_exists() -> None:
    """Those that the installation brings."""
    found = 0
    for code in CODE:
        for path in re.findall(r"(?<![\w.])(?:/|deploy/)[\w./@-]+\*?", code):
            there = installed(path)
            if there is not None:
                found += 1
                assert list(there.parent.glob(there.name)) if there.name else there.is_dir(), path
    assert found >= 8


def test_every_link_leads_somewhere() -> None:
    """To a file, and where an anchor is named to a heading of it."""
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        path = PAGE.parent / file if file else PAGE
        assert path.is_file(), target
        headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
        anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target


def test_every_unit_exists() -> None:
    """With or without its kind; an instance of the template counts as the template."""
    names = {path.name for path in (ROOT / "systemd").glob("wardgate*")}
    stems = {name.rpartition(".")[0] for name in names}
    for code in CODE:
        for unit in re.findall(r"(?<![\w/-])wardgate(?:-[a-z]+)?(?:@[\w-]*)?\.(?:service|socket|target)", code):
            assert re.sub(r"@[\w-]*", "@", unit) in names, unit
        if code.startswith("systemctl"):
            for unit in re.findall(r"(?<![\w/-])wardgate-(?!agent-)[a-z]+(?:@[\w-]*)?(?![\w.@-])", code):
                assert re.sub(r"@[\w-]*", "@", unit) in stems, unit


def test_every_key_and_make_variable_exists() -> None:
    """Keys as `section.key`, and what is given to make."""
    reference = (ROOT / "docs/configuration.md").read_text()
    keys = set(re.findall(r"(?<![\w./-])((?:server|admin|audit|runtime|logging)\.[a-z_]+)(?![\w.])", " ".join(CODE)))
    assert {"server.graceful_timeout_s", "admin.listen"} <= keys
    for key in keys - {"admin.token", "admin.sock"}:
        section, _, name = key.partition(".")
        assert re.search(rf"`{name}`|`{section}\.{name}`", reference), key
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"(?m)^install:", makefile)
    for name in ("DESTDIR", "PYTHON"):
        assert f"$({name})" in makefile


# --- alarms -----------------------------------------------------------------------------------------


def rules() -> list[tuple[str, str]]:
    """(alert, expression) of every rule."""
    found = re.findall(r"(?m)^      - alert: (\w+)\n        expr: (.+)\n        for: \d+[smh]\n", ALERTS)
    assert len(found) == ALERTS.count("- alert:")
    return found


@pytest.mark.parametrize(("alert", "expression"), rules())
def test_every_rule_is_about_metrics_that_exist(alert: str, expression: str) -> None:
    """Name, labels, and the values that a label is compared with."""
    series = {metric.name + end: metric for metric in families() for end in SUFFIXES[metric.kind]}
    # Label values are texts in quotes, and no metric: looked at first, and then taken out.
    for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', selector):
            if name == "up":
                continue
            assert label in series[name].labels, f"{name} has no label {label}"
            if label == "outcome":
                assert set(value.split("|")) <= {outcome.word for outcome in Outcome}
            if name == "wardgate_agent_breaker_state":
                assert value in {state.word for state in BreakerState}
            if name == "wardgate_workers":
                assert value in {"starting", "ready", "draining", "stale"}
            if label == "code":
                assert re.fullmatch(r"[1-5]xx", value)
    bare = re.sub(r'"[^"]*"', "", expression)
    assert all(bare.count(left) == bare.count(right) for left, right in ("()", "[]", "{}")), alert
    named = re.findall(r"\bwardgate_\w+", bare)
    assert set(named) <= set(series), alert
    assert named or expression.startswith("up{")
    for group in re.findall(r"sum by \(([^)]*)\)", expression):
        allowed = {"instance", "le", *(label for name in named for label in series[name].labels)}
        assert set(re.split(r", *", group)) <= allowed, alert


def test_every_rule_has_its_section_and_every_section_its_rule() -> None:
    """Alarms of the page = alerts of the file, each with the anchor that the annotation names."""
    _, _, alarms = TEXT.partition("\n## Alarms\n")
    sections = re.findall(r"(?m)^### (\w+)$", alarms.partition("\n## ")[0])
    assert sorted(sections) == sorted(name for name, _ in rules())
    for name in sections:
        assert f'runbook: "docs/operating.md#{name.lower()}"' in ALERTS
