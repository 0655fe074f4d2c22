"""`make install`: a release that names neither its staging directory nor the source tree, and works from there."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from packaging.markers import Marker

from tests.proxy.front import Client, upstream
from tests.support import ROOT, Child

PREFIX = "/opt/wardgate"
SHIPPED_AGENTS = ("auth", "denylist", "guardrail", "headers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("make") is None
        or not (ROOT / ".uv/.complete").exists()
        or not (ROOT / ".venv/.complete").exists(),
        reason="needs make, and the environment that `make dev` makes",
    ),
]


def install(destdir: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make install`; the environment of the checkout is not made anew on the way."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "UV_"))}
    return subprocess.run(
        [
            *("make", "--no-print-directory", "--old-file=.venv/.complete", "--old-file=.uv/.complete"),
            *("install", f"DESTDIR={destdir}", *(f"{name}={value}" for name, value in variables.items())),
        ],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two whole installations, made at the same time: as it comes, and with another PREFIX."""
    plain, moved = tmp_path_factory.mktemp("staged"), tmp_path_factory.mktemp("moved")
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(install, plain), pool.submit(install, moved, PREFIX="/srv/wg", RELEASE="r1")
    for result in (one.result() for one in made):
        assert result.returncode == 0, result.stderr
    yield plain, moved
    shutil.rmtree(plain)
    shutil.rmtree(moved)


@pytest.fixture(scope="module")
def staged(both: tuple[Path, Path]) -> Path:
    """A whole installation below a staging directory."""
    return both[0]


def current(staged: Path) -> Path:
    """The release in use, where it is now."""
    return staged / PREFIX.lstrip("/") / "releases" / os.path.basename(os.readlink(staged / "opt/wardgate/current"))


def test_the_layout(staged: Path) -> None:
    """One release and the link to it, units, users, directories, a configuration, the command."""
    version = re.search(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert os.readlink(staged / "opt/wardgate/current") == f"releases/{version[1]}"
    assert os.readlink(staged / "usr/local/bin/wardgate") == f"{PREFIX}/current/bin/wardgate"
    assert os.access(current(staged) / "bin/wardgate", os.X_OK)
    for path in (ROOT / "systemd").glob("wardgate*"):
        assert (staged / "usr/lib/systemd/system" / path.name).read_text() == path.read_text()
    assert (staged / "usr/lib/sysusers.d/wardgate.conf").is_file()
    assert (staged / "usr/lib/tmpfiles.d/wardgate.conf").is_file()
    for agent in SHIPPED_AGENTS:
        link = staged / "opt/wardgate/agents" / agent
        assert os.readlink(link) == f"../current/bin/wardgate-agent-{agent}", "what wardgate-agent@NAME runs"
        assert os.access(link, os.X_OK)
    for name in ("wardgate.toml", "wardgate.env"):
        there = staged / "etc/wardgate" / name
        assert there.read_bytes() == (ROOT / "config" / name).read_bytes()
        assert stat.S_IMODE(there.stat().st_mode) == 0o640, "closed to others before tmpfiles.d has run"
    share = current(staged) / "share"
    for name in ("operating.md", "prometheus/alerts.yml", "examples/waf", "config/wardgate.toml", "LICENSE"):
        assert (share / name).is_file(), name
    for target in re.findall(r"\]\((\w[\w/.-]*)[^)]*\)", (share / "operating.md").read_text()):
        assert (share / target).is_file(), "a page that operating.md sends the operator to"
    assert not list(current(staged).rglob("CACHEDIR.TAG")), "it would keep the release out of backups"


def test_nothing_names_the_staging_directory_or_the_source(staged: Path) -> None:
    """Neither scripts nor bytecode nor metadata: the tree can be packed, and a traceback names the real place."""
    needles = (os.fsencode(staged), os.fsencode(ROOT) + b"/")
    for path in staged.rglob("*"):
        if path.is_symlink():
            assert not os.readlink(path).startswith((str(staged), str(ROOT))), path
        elif path.is_file():
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), path
    compiled = next((current(staged) / "lib").glob("python3*/site-packages/proxy/__pycache__/serve.*.pyc"))
    assert f"{PREFIX}/releases/{current(staged).name}/lib/".encode() in compiled.read_bytes()


def test_only_what_is_needed_is_installed(staged: Path) -> None:
    """The locked dependencies, wardgate, the SDK, the agents; no tools of the developers, no link to the checkout."""
    (packages,) = (current(staged) / "lib").glob("python3*/site-packages")
    installed = {path.name.partition("-")[0].replace("_", "-") for path in packages.glob("*.dist-info")}
    lines = re.findall(r"(?m)^([a-z0-9-]+)==[^;\n]+?(?: ; (.+))? \\$", (ROOT / "deploy/requirements.lock").read_text())
    locked = {name for name, marker in lines if not marker or Marker(marker).evaluate()}
    assert installed == locked | {"wardgate", "wardgate-agent", "wardgate-agents"}
    assert not list(packages.glob("__editable__*")) + list(packages.glob("*.pth"))
    assert not installed & {"pytest", "mypy", "ruff", "setuptools"}


def test_the_installed_command_checks_the_default_configuration(staged: Path) -> None:
    """Run where it stands now: the launcher finds its interpreter beside it, whatever directory it is run from."""
    result = subprocess.run(
        [current(staged) / "bin/wardgate", "check", "-c", staged / "etc/wardgate/wardgate.toml"],
        cwd=staged,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ok: 1 route, 0 agents, 1 upstream")


def test_the_installed_daemons_and_the_example_agent_serve(staged: Path, short_tmp_dir: Path) -> None:
    """agentd, proxy and deploy/examples/waf from the release, on the default configuration with the agent in it."""
    release = current(staged)
    with upstream(short_tmp_dir) as address:
        text = (staged / "etc/wardgate/wardgate.toml").read_text()
        for old, new in (
            ("127.0.0.1:9000", address),
            ("127.0.0.1:8080", "127.0.0.1:0"),
            ("127.0.0.1:9900", "127.0.0.1:0"),
            ("/run/wardgate", f"{short_tmp_dir}/run"),
            ("/var/log/wardgate", f"{short_tmp_dir}/log"),
            ("workers = 0", "workers = 1"),
            (
                '# filters = [{ agent = "waf" }]',
                'filters = [{ agent = "waf" }]\n[[agents]]\nname = "waf"\nprotocol = "zmq-v2"',
            ),
        ):
            assert old in text, old
            text = text.replace(old, new, 1)
        config = short_tmp_dir / "wardgate.toml"
        config.write_text(text)
        # As the units do: the script itself, no interpreter named, the configuration by the environment.
        env = {"WARDGATE_CONFIG": str(config), "PYTHONPATH": ""}
        python = str(release / "bin/python")
        agent = [python, "-P", str(release / "share/examples/waf"), "--connect", f"ipc://{short_tmp_dir}/run/agents/v2"]
        with (
            Child([release / "bin/wardgate", "agentd"], short_tmp_dir / "agentd.log", env) as agentd,
            Child([release / "bin/wardgate", "proxy"], short_tmp_dir / "proxy.log", env) as proxy,
            Child(agent, short_tmp_dir / "waf.log", env) as waf,
        ):
            agentd.wait_for("instance ready", 20)
            agentd.wait_for("worker registered", 20)
            proxy.wait_for('"serving"', 20)
            host, _, port = (short_tmp_dir / "run/proxy.addr").read_text().split()[0].rpartition(":")
            with Client((host, int(port))) as client:
                assert client.get("/json")[0] == 200
                assert client.get("/admin")[0] == 403
            assert proxy.stop(20) == 0
            assert waf.stop(20) == 0
            assert agentd.stop(20) == 0


def test_the_shipped_agents_start_by_their_links(staged: Path, short_tmp_dir: Path) -> None:
    """As `wardgate-agent@NAME` starts them; agentd is not there yet, which is no reason to end."""
    with ExitStack() as stack:
        agents = []
        for name in SHIPPED_AGENTS:
            command = [staged / "opt/wardgate/agents" / name, "--connect", f"ipc://{short_tmp_dir}/v2"]
            agents.append(stack.enter_context(Child(command, short_tmp_dir / f"{name}.log", {"PYTHONPATH": ""})))
        for agent in agents:
            agent.wait_for("no connection to", 20)
            assert agent.stop(20) == 0, agent.output()


def test_a_second_release_stands_beside_the_first(staged: Path) -> None:
    """An upgrade up to its last step: nothing in use has changed; the operator's configuration and agents are his."""
    config = staged / "etc/wardgate/wardgate.toml"
    config.write_text("# mine\n")
    own = staged / "opt/wardgate/agents/denylist"
    own.unlink()
    own.write_text("#!/bin/sh\n")
    first = current(staged)
    before = first.stat().st_ino
    try:
        again = install(staged)
        assert again.returncode != 0
        assert "is there already and is never changed" in again.stderr
        result = install(staged, RELEASE="next")
        assert result.returncode == 0, result.stderr
        assert "stays current" in result.stderr
        assert current(staged) == first
        assert first.stat().st_ino == before
        assert config.read_text() == "# mine\n"
        assert own.read_text() == "#!/bin/sh\n"
        assert "/opt/wardgate/agents/denylist is not ours and was left alone" in result.stderr
        assert result.stderr.count("is not ours") == 1
        assert (config.parent / "wardgate.toml.new").read_bytes() == (ROOT / "config/wardgate.toml").read_bytes()
        assert not (config.parent / "wardgate.env.new").exists(), "what was not changed needs no copy"
        assert os.access(staged / "opt/wardgate/releases/next/bin/wardgate", os.X_OK)
    finally:
        own.unlink()
        own.symlink_to("../current/bin/wardgate-agent-denylist")
        config.write_bytes((ROOT / "config/wardgate.toml").read_bytes())


def test_another_prefix_is_in_the_units(both: tuple[Path, Path]) -> None:
    """PREFIX= moves the release, and what the units start with it."""
    _, moved = both
    assert os.readlink(moved / "srv/wg/agents/auth") == "../current/bin/wardgate-agent-auth"
    unit = (moved / "usr/lib/systemd/system/wardgate-proxy.service").read_text()
    assert "ExecStart=/srv/wg/current/bin/wardgate proxy" in unit
    assert "/opt/wardgate" not in unit
    assert os.readlink(moved / "srv/wg/current") == "releases/r1"
    assert (moved / "srv/wg/releases/r1/share/examples/waf").read_text().startswith("#!/srv/wg/current/bin/python -P\n")


def test_the_installed_versions_are_those_that_were_tested() -> None:
    """deploy/requirements.lock is requirements.lock without the tools: the same versions, the same hashes."""

    def entries(path: str) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for block in re.split(r"(?m)^(?=[a-z0-9-]+==)", (ROOT / path).read_text())[1:]:
            found[block.split()[0]] = frozenset(re.findall(r"--hash=(\S+)", block))
        return found

    runtime, everything = entries("deploy/requirements.lock"), entries("requirements.lock")
    assert len(runtime) >= 12
    assert all(everything.get(pin) == hashes and hashes for pin, hashes in runtime.items())
    assert "://" not in (ROOT / "deploy/requirements.lock").read_text()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"RELEASE": "../x"}, "RELEASE must be a plain name"),
        ({"PREFIX": "opt"}, "PREFIX must be an absolute path"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, variables: dict[str, str], why: str) -> None:
    """Before anything is written."""
    result = install(tmp_path, **variables)
    assert result.returncode != 0
    assert why in result.stderr
    assert not list(tmp_path.iterdir())
