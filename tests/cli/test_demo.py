"""proxy/cli/demo.py: the demo's configuration, its processes, what the banner says."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from proxy.cli.demo import Demo, banner, directory, render, url_of
from proxy.cli.supervise import Role
from shared.config.load import load
from shared.runtime import Runtime


def test_where_it_runs() -> None:
    """A user's own directory, or one with the uid in its name."""
    assert directory({"XDG_RUNTIME_DIR": "/run/user/7/"}, 7) == "/run/user/7/wardgate-demo"
    assert directory({"XDG_RUNTIME_DIR": "relative"}, 7) == "/tmp/wardgate-demo-7"
    assert directory({}, 7) == "/tmp/wardgate-demo-7"


def test_values_cannot_leave_their_place() -> None:
    """A directory with quotes and backslashes is still one TOML string."""
    text = render("dir = $dir\nlisten = $listen\n", {"dir": 'a"b\\c\n', "listen": ["x", "y"]})
    assert tomllib.loads(text) == {"dir": 'a"b\\c\n', "listen": ["x", "y"]}


def test_the_configuration_passes_the_check(short_tmp_dir: Path) -> None:
    """No error and no warning, whatever the environment of the test."""
    runtime = Runtime(str(short_tmp_dir / "demo"))
    runtime.prepare()
    demo = Demo(runtime, 0, 0)
    demo.open()
    try:
        loaded = load(demo.config_path, {})
        assert loaded.warnings == []
        config = loaded.config
        assert config.server.workers == 2
        assert [(a.name, a.protocol, a.failure_mode) for a in config.agents] == [
            ("policy", "zmq-v2", "closed"),
            ("tag", "zmq-v1", "open"),
        ]
        specs = [demo.upstream(), *demo.agents()]
        assert [spec.role for spec in specs] == [Role.UPSTREAM, Role.AGENT, Role.AGENT]
        assert [spec.agent for spec in specs] == ["", "policy", "tag"]
        fd = specs[0].pass_fds[0]
        assert specs[0].args[-1] == str(fd)
    finally:
        demo.close()
    assert [path.name for path in (short_tmp_dir / "demo").iterdir() if path.is_file()] == []


def test_the_agents_are_shipped_with_the_package() -> None:
    """An installed wardgate can run the demo, too."""
    folder = files("proxy.demo").joinpath("agents")
    for name in ("policy_agent.py", "tag_agent.py"):
        assert folder.joinpath(name).is_file(), name


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("[::]:80", "http://[::1]:80"),
        ("[::1]:80", "http://[::1]:80"),
        ("unix:/run/x", ""),
    ],
)
def test_urls_for_people(address: str, url: str) -> None:
    """An address that means every one is reached by loopback."""
    assert url_of(address) == url


def test_the_banner_has_everything_to_try() -> None:
    """Each of the demo's answers has its curl line; the health URL and the metrics are there."""
    text = banner(
        addresses=["127.0.0.1:8080"],
        admin=["127.0.0.1:9900"],
        config_path="/run/demo.toml",
        audit_dir="/run/audit",
        absent=[],
        is_demo=True,
    )
    for path in ("/echo", "/admin", "/old/page", "/members", "/stream", "/upload"):
        assert f"http://127.0.0.1:8080{path} " in text
    assert "curl -i -H 'X-Block: 1' http://127.0.0.1:8080/ " in text
    assert "http://127.0.0.1:9900/metrics" in text
    assert "http://127.0.0.1:9900/health" in text
    assert "Not connected" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_banner_of_a_users_own_configuration() -> None:
    """No curl lines for pages that are not there; what is not connected is named."""
    text = banner(
        addresses=["unix:/run/x"],
        admin=[],
        config_path="my file.toml",
        audit_dir="/var/log/wardgate",
        absent=["waf"],
        is_demo=False,
    )
    assert "curl" not in text
    assert "unix:/run/x" in text
    assert "Not connected yet: waf." in text
    assert "wardgate health -c 'my file.toml'" in text
