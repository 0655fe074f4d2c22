"""systemd/: the units are clean and hardened by systemd's own judgement, and agree with the product's numbers."""

import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import defaults as d
from tests.support import ROOT

UNITS = ROOT / "systemd"
SERVICES = ("wardgate-agentd.service", "wardgate-proxy.service", "wardgate-agent@.service")
DAEMONS = SERVICES[:2]
ALL = (*SERVICES, "wardgate-proxy.socket", "wardgate.target")
MOST_EXPOSED = 20  # tenths: 2.0 of systemd-analyze security
HOST_UNITS = Path("/usr/lib/systemd/system")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not HOST_UNITS.is_dir(), reason="no systemd-analyze here"
)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(args, capture_output=True, text=True, timeout=30, check=False)


def settings(unit: str) -> list[tuple[str, str, str]]:
    """(section, key, value) of every line of a unit."""
    found, section = [], ""
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.append((section, key, value))
    return found


def values(unit: str, key: str) -> list[str]:
    return [value for _, name, value in settings(unit) if name == key]


def words(unit: str, key: str) -> set[str]:
    return {word for value in values(unit, key) for word in value.split()}


# --- by systemd's own judgement ---------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A root directory with our units, systemd's own targets and the programs that our units start."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for name in ALL:
        shutil.copy(UNITS / name, units)
    for target in HOST_UNITS.glob("*.target"):
        if not (units / target.name).exists():
            shutil.copy(target, units, follow_symlinks=True)
    for program in ("opt/wardgate/current/bin/wardgate", "opt/wardgate/agents/waf", "bin/kill"):
        path = tmp_path / program
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def verify(host: Path) -> subprocess.CompletedProcess[str]:
    names = [name.replace("@.", "@waf.") for name in ALL]
    return run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={host}", *names)


@needs_analyze
def test_verify_finds_nothing(host: Path) -> None:
    """Its exit code is 0 for an unknown key, so what counts is that it says nothing at all."""
    result = verify(host)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_analyze
def test_verify_would_find_something(host: Path) -> None:
    """A misspelt key, a value that is none, a program that is not there: the test above is not blind."""
    path = host / "usr/lib/systemd/system/wardgate-proxy.service"
    path.write_text(path.read_text().replace("PrivateTmp=", "PrivateTemp=").replace("=mixed", "=mixd"))
    (host / "opt/wardgate/current/bin/wardgate").unlink()
    said = verify(host).stderr
    assert "Unknown key 'PrivateTemp'" in said
    assert "kill mode" in said
    assert "/opt/wardgate/current/bin/wardgate is not executable" in said


@needs_analyze
def test_the_examples_drop_in_is_clean(host: Path) -> None:
    """Every agent as the user of its name."""
    place = host / "etc/systemd/system/wardgate-agent@.service.d"
    place.mkdir(parents=True)
    shutil.copy(ROOT / "deploy/examples/agents/own-user.conf", place)
    result = verify(host)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers here")
def test_the_examples_users_are_those_of_the_drop_in(tmp_path: Path) -> None:
    """One for each program that the installation links to."""
    (tmp_path / "etc").mkdir()
    result = run("systemd-sysusers", f"--root={tmp_path}", str(ROOT / "deploy/examples/agents/users.conf"))
    assert result.returncode == 0, result.stderr
    users = {line.split(":")[0] for line in (tmp_path / "etc/passwd").read_text().splitlines()}
    scripts = re.findall(r"(?m)^(wardgate-agent-\w+) =", (ROOT / "agents/pyproject.toml").read_text())
    assert users == set(scripts)
    assert len(users) == 4


@needs_analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_at_most_2(unit: str) -> None:
    """systemd-analyze security, offline."""
    command = ("systemd-analyze", "security", "--offline=true", "--no-pager")
    result = run(*command, f"--threshold={MOST_EXPOSED}", str(UNITS / unit))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    level = re.search(r"Overall exposure level for \S+: (\d+\.\d)", result.stdout)
    assert level is not None
    assert float(level[1]) <= MOST_EXPOSED / 10


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers here")
def test_sysusers_makes_the_users_and_groups(tmp_path: Path) -> None:
    """Two users with groups of their names, one more group; no password, no shell, no home."""
    (tmp_path / "etc").mkdir()
    result = run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.d/wardgate.conf"))
    assert result.returncode == 0, result.stderr
    groups = {line.split(":")[0] for line in (tmp_path / "etc/group").read_text().splitlines()}
    assert groups == {"wardgate", d.AGENT_GROUP, d.ADMIN_GROUP}
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    assert {user[0] for user in users} == {"wardgate", "wardgate-agent"}
    assert all(user[6].endswith("nologin") and user[5] == "/" for user in users)


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("systemd-tmpfiles") and shutil.which("systemd-sysusers")),
    reason="needs systemd-tmpfiles, and root to give directories away",
)
def test_tmpfiles_makes_the_directories(tmp_path: Path) -> None:
    """With the modes and owners that shared/runtime.py expects; files of the configuration are closed to others."""
    (tmp_path / "etc/wardgate").mkdir(parents=True)
    (tmp_path / "etc/wardgate/wardgate.toml").touch(0o644)
    (tmp_path / "run").mkdir()
    assert run("systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.d/wardgate.conf")).returncode == 0
    ids = {f[0]: int(f[2]) for f in (x.split(":") for x in (tmp_path / "etc/passwd").read_text().splitlines())}
    groups = {f[0]: int(f[2]) for f in (x.split(":") for x in (tmp_path / "etc/group").read_text().splitlines())}
    result = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", str(UNITS / "tmpfiles.d/wardgate.conf"))
    assert (result.returncode, result.stderr) == (0, "")

    def owned(path: str) -> tuple[int, int, int]:
        status = (tmp_path / path).stat()
        return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid

    assert owned("run/wardgate") == (0o711, ids["wardgate"], groups["wardgate"])
    assert owned("run/wardgate/agents") == (0o750, ids["wardgate"], groups[d.AGENT_GROUP])
    assert owned("etc/wardgate") == (0o750, 0, groups["wardgate"])
    assert owned("etc/wardgate/wardgate.toml") == (0o640, 0, groups["wardgate"])
    assert owned("etc/wardgate/agents") == (0o700, 0, 0)
    assert owned("etc/wardgate-agents") == (0o750, 0, groups[d.AGENT_GROUP])
    assert pwd.getpwuid(0).pw_name == "root"


# --- by the product's numbers -----------------------------------------------------------------------


def test_run_wardgate_comes_from_tmpfiles_alone() -> None:
    """RuntimeDirectory= in a unit would remove it when that unit stops, under the other daemon."""
    for unit in DAEMONS:
        assert not values(unit, "RuntimeDirectory")
        assert d.RUNTIME_DIR in words(unit, "ReadWritePaths")
    lines = (UNITS / "tmpfiles.d/wardgate.conf").read_text().splitlines()
    assert any(line.split()[:3] == ["d", d.RUNTIME_DIR, "0711"] for line in lines)
    # An agent's own directory is another one, one for each instance.
    assert values("wardgate-agent@.service", "RuntimeDirectory") == ["wardgate-agents/%i"]


@pytest.mark.parametrize("unit", DAEMONS)
def test_a_daemon_is_watched_and_started_for_ever(unit: str) -> None:
    """Type=notify with a watchdog; no last attempt; a reload that systemd 252 knows."""
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "NotifyAccess") == ["main"]
    assert values(unit, "Restart") == ["always"]
    assert values(unit, "StartLimitIntervalSec") == ["0"]
    assert values(unit, "ExecReload")[-1] == "/bin/kill -HUP $MAINPID"
    assert values(unit, "KillMode") == ["mixed"]
    # A stop is not a restart's length of a crash: the watchdog has to wait longer than any turn may take.
    assert int(values(unit, "WatchdogSec")[0]) > d.WORKER_STALE_MS / 1000
    assert values(unit, "User") == ["wardgate"]


def test_the_time_to_stop_covers_the_products_own() -> None:
    """SIGKILL comes after the graceful timeout of the proxy, and after the agents' drain and the audit of agentd."""
    proxy = int(values("wardgate-proxy.service", "TimeoutStopSec")[0])
    assert proxy >= d.GRACEFUL_TIMEOUT_S + d.WORKER_STOP_S + 5
    agentd = int(values("wardgate-agentd.service", "TimeoutStopSec")[0])
    assert agentd >= d.DRAIN_DEADLINE_MS / 1000 + 1 + d.AUDIT_STOP_S + 5
    assert int(values("wardgate-agent@.service", "TimeoutStopSec")[0]) > d.DRAIN_DEADLINE_MS / 1000


def test_units_stop_in_reverse_order() -> None:
    """agentd, agents, proxy; and back. The proxy wants agentd and does not require it: it can decide alone."""
    assert {"wardgate-agentd.service", "wardgate-proxy.socket"} <= words("wardgate-proxy.service", "After")
    assert values("wardgate-proxy.service", "Wants") == ["wardgate-agentd.service"]
    assert values("wardgate-proxy.service", "Requires") == ["wardgate-proxy.socket"]
    assert values("wardgate-agent@.service", "After") == ["wardgate-agentd.service"]
    assert values("wardgate-agent@.service", "Before") == ["wardgate-proxy.service"]
    for unit in ALL[:4]:
        assert values(unit, "PartOf") == ["wardgate.target"]


def test_the_socket_is_the_default_configurations() -> None:
    """Who changes nothing gets the same address with and without systemd; connections wait, and never run out."""
    unit = "wardgate-proxy.socket"
    assert values(unit, "ListenStream") == list(d.LISTEN)
    assert values(unit, "Backlog") == [str(d.BACKLOG)]
    assert values(unit, "TriggerLimitIntervalSec") == ["0"]
    assert values(unit, "NoDelay") == ["yes"]


def test_groups_are_those_the_product_gives_its_files_to() -> None:
    """agentd gives its sockets to both groups, the proxy its segment to one; fchown must be allowed for that."""
    assert words("wardgate-agentd.service", "SupplementaryGroups") == {d.AGENT_GROUP, d.ADMIN_GROUP}
    assert words("wardgate-proxy.service", "SupplementaryGroups") == {d.ADMIN_GROUP}
    for unit in DAEMONS:
        assert "@chown" in words(unit, "SystemCallFilter")


@pytest.mark.parametrize("unit", SERVICES)
def test_libzmq_may_set_its_threads_scheduling(unit: str) -> None:
    """Without sched_setscheduler libzmq aborts the process when the first context is made."""
    filters = values(unit, "SystemCallFilter")
    assert filters[0] == "@system-service"
    assert "@resources" in filters[1]
    assert "sched_setscheduler" in filters[2].split()
    assert values(unit, "RestrictRealtime") == ["yes"]


def test_daemons_see_real_uids() -> None:
    """An agent's identity is its uid: PrivateUsers= would show agentd everybody as nobody."""
    for unit in DAEMONS:
        assert values(unit, "PrivateUsers") == []
    assert values("wardgate-agentd.service", "ProcSubset") == [], "health reads /proc/meminfo"
    assert values("wardgate-agentd.service", "LogsDirectory") == [Path(d.AUDIT_PATH).name]
