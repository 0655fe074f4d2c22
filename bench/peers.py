"""Runs the peers' harness of a directory beside us: `--cmd NAME+role=COMMAND` for each of our roles.

The harness starts its peers and our commands alternately, in one run on one machine, and prints its own
table; which peers exist and how they are set up is its business. Its interface is all that is used here.

Kind: IO.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SERVE = Path(__file__).resolve().parent / "serve.py"
# With the programs that each peer needs; those with Python or Envoy take them from BENCH_PY's environment.
PEERS = {
    "nginx-plain": ("nginx",),
    "haproxy-plain": ("haproxy",),
    "haproxy-spoe-py": ("haproxy",),
    "nginx-auth-asgi": ("nginx",),
}
ENVOY_PEERS = ("envoy-plain", "envoy-authz-http", "envoy-extproc")
NO_PYTHON = """\
BENCH_PY is not set: it names the Python of a virtual environment with what the peers need (Envoy, gRPC; see the
harness' own set-up). Its Python agents run on {python} now, and Envoy is left out."""
BASE = "haproxy-spoe-py"


def run(arguments: argparse.Namespace) -> int:
    """The comparison; the exit code."""
    harness = Path(arguments.peers) / "peers.py"
    if not harness.is_file():
        print(f"bench: there is no peers.py in {arguments.peers}", file=sys.stderr)
        return 2
    if shutil.which("nginx") is None:
        print("nginx is not installed (apt-get install nginx-light): the harness uses it as upstream", file=sys.stderr)
        return 3
    python = os.environ.get("BENCH_PY", "")
    if not python:
        print(NO_PYTHON.format(python=sys.executable), file=sys.stderr)
    names = arguments.peer_names.split(",") if arguments.peer_names else _default_names(bool(python))
    with tempfile.TemporaryDirectory(prefix="wg-peers-", dir="/tmp") as directory:
        environment = {**os.environ, "BENCH_PY": python or sys.executable, "BENCH_RUN": directory}
        return _compare(arguments, harness, names, environment)


def _compare(arguments: argparse.Namespace, harness: Path, names: list[str], environment: dict[str, str]) -> int:
    command = [
        environment["BENCH_PY"],
        str(harness),
        "--rounds",
        str(arguments.rounds),
        "--dur",
        str(int(arguments.dur)),
    ]
    base = BASE if BASE in names else names[0] if names else "wardgate"
    command += ["--base", base, "--peers", ",".join([*names, "wardgate", "wardgate-plain"])]
    for name, role in (
        ("wardgate+agentd", "agentd"),
        ("wardgate+agent", "agent"),
        ("wardgate+agent-hung", "agent-hung"),
        ("wardgate", "proxy"),
        ("wardgate-plain!", "proxy-plain"),
    ):
        command += ["--cmd", f"{name}={shlex.join([sys.executable, str(SERVE), role])}"]
    print("\nbeside the peers, by their harness:\n", flush=True)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code == 0 and arguments.isolation:
        print("\nthe fast route beside a hung agent:\n", flush=True)
        code = subprocess.run([*command, "--isolation"], env=environment, check=False).returncode
    return 1 if code else 0


def _default_names(has_environment: bool) -> list[str]:
    names = [name for name, programs in PEERS.items() if all(map(shutil.which, programs))]
    return names + list(ENVOY_PEERS) if has_environment else names
