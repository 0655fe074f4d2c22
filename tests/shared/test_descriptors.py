"""shared/descriptors.py: the limit of open files, and what is said about a low one."""

import subprocess

import msgspec

from shared.config.schema import Config, Server, Target, Upstream
from shared.defaults import DESCRIPTORS_CLIENTS, DESCRIPTORS_OWN
from shared.descriptors import wanted_upstream, warnings
from tests.support import ROOT, python


def config(max_connections: int = 0) -> Config:
    upstreams = tuple(
        Upstream(name=name, targets=(Target(address="127.0.0.1:1"),), max_connections=100) for name in "ab"
    )
    return Config(server=Server(max_connections=max_connections), upstreams=upstreams)


def test_the_soft_limit_becomes_the_hard_one() -> None:
    """In a process of its own; once more changes nothing."""
    code = (
        "import resource as r; from shared.descriptors import raise_limit; r.setrlimit(r.RLIMIT_NOFILE, (100, 300));"
        "print(raise_limit(), raise_limit(), *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run(python("-c", code), cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["300"] * 4


def test_what_a_worker_wants_besides_its_clients() -> None:
    """Connections to every upstream, and its own files."""
    assert wanted_upstream(config()) == 200 + DESCRIPTORS_OWN


def test_a_low_limit_is_told() -> None:
    """Against server.max_connections where there is one, else against a number that is little."""
    enough = 200 + DESCRIPTORS_OWN + DESCRIPTORS_CLIENTS
    assert warnings(config(), enough) == []
    (text,) = warnings(config(), enough - 1)
    assert f"may open {enough - 1} files and would need {enough}" in text
    assert warnings(config(10), 300) == []
    assert "10000 for server.max_connections" in warnings(config(10_000), 10_263)[0]
    assert warnings(msgspec.structs.replace(config(), server=Server(max_connections=10_000)), 10_264) == []
