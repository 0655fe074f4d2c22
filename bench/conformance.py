"""Runs the Autobahn WebSocket test suite through the proxy, and says how its cases ended.

    python bench/conformance.py --wstest DIR/bin/wstest [--cases 1.* 2.*] [--no-compression]

wstest comes from the package `autobahntestsuite` (0.8.2), which needs Python 2.7:

    python2.7 -m virtualenv DIR && DIR/bin/pip install autobahntestsuite==0.8.2

Each run is compared with the same ends without the proxy between them: what those get wrong is not the proxy's.

    server side   wstest (a client that breaks every rule) -> proxy -> echo server of `websockets`
    client side   client of `websockets` -> proxy -> wstest (a server that breaks every rule)

Both as a byte tunnel and with an agent that sees every message. What the numbers mean stands in docs/websocket.md.

Kind: IO.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

HERE = Path(__file__).resolve().parent
START_S = 20.0
COMPRESSION = ["12.*", "13.*"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            raise SystemExit(f"nothing listens on port {port}")
        time.sleep(0.05)


@contextlib.contextmanager
def process(argv: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        made = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield made
    finally:
        made.terminate()
        made.wait(30)


@contextlib.contextmanager
def proxy(directory: Path, upstream: int) -> Iterator[int]:
    """Everything between the ends, on a port; by path or host a tunnel, else an agent sees all messages."""
    port = free_port()
    secret = directory / "secret"
    secret.write_text("conformance")
    secret.chmod(0o600)
    config = directory / "wardgate.toml"
    runtime = Path(tempfile.mkdtemp(prefix="wgc-", dir="/tmp"))
    config.write_text(
        f"""
server = {{ listen = ["127.0.0.1:{port}"], workers = 1 }}
runtime = {{ dir = "{runtime}" }}
admin = {{ listen = [] }}
audit = {{ sinks = [] }}
logging = {{ level = "error" }}
[[upstreams]]
name = "up"
targets = [{{ address = "127.0.0.1:{upstream}" }}]
[[agents]]
name = "frames"
protocol = "zmq-v2"
events = ["websocket_frame"]
timeout_ms = 5000
secret_file = "{secret}"
[[routes]]
name = "agent"
upstream = "up"
filters = [{{ agent = "frames" }}]
websocket = {{ max_message_bytes = 15728640 }}
[[routes]]
name = "tunnel"
upstream = "up"
match = {{ hosts = ["tunnel.localhost"] }}
[[routes]]
name = "tunnel-by-path"
upstream = "up"
match = {{ path_prefix = "/tunnel" }}
"""
    )
    python = [sys.executable, "-P"]
    agent = [sys.executable, str(HERE / "agents" / "frames_v2.py"), "--connect", f"ipc://{runtime}/agents/v2"]
    agent += ["--name", "frames", "--secret-file", str(secret), "--max-body-bytes", "15728640"]
    try:
        with (
            process([*python, "-m", "agentd", "--config", str(config)], directory / "agentd.log"),
            process([*python, "-m", "proxy", "--config", str(config)], directory / "proxy.log"),
            process(agent, directory / "agent.log"),
        ):
            wait_for(port)
            time.sleep(2)  # the agent registers
            yield port
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    def echo(ws: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for message in ws:
                ws.send(message)

    with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield int(server.socket.getsockname()[1])
        server.shutdown()
        thread.join()


def echo_client(port: int, host: str, agent: str) -> None:
    """Every case of a fuzzing server, echoed."""
    sock = ("127.0.0.1", port)

    def at(path: str) -> object:
        uri = f"ws://{host}{path}"
        return connect(uri, sock=socket.create_connection(sock), proxy=None, max_size=None, close_timeout=5)

    with at("/getCaseCount") as ws:  # type: ignore[attr-defined]
        count = int(ws.recv())
    for case in range(1, count + 1):
        with contextlib.suppress(WebSocketException, OSError), at(f"/runCase?case={case}&agent={agent}") as ws:  # type: ignore[attr-defined]
            for message in ws:
                ws.send(message)
    with at(f"/updateReports?agent={agent}"):  # type: ignore[attr-defined]
        pass


def client_side(wstest: str, directory: Path, cases: list[str], exclude: list[str]) -> dict[str, dict[str, str]]:
    port = free_port()
    spec = {"url": f"ws://127.0.0.1:{port}", "outdir": str(directory / "reports"), "cases": cases,
            "exclude-cases": exclude, "exclude-agent-cases": {}}  # fmt: skip
    (directory / "spec.json").write_text(json.dumps(spec))
    argv = [wstest, "-m", "fuzzingserver", "-s", str(directory / "spec.json"), "-u", "0"]
    with process(argv, directory / "wstest.log"):
        wait_for(port)
        echo_client(port, f"127.0.0.1:{port}", "direct")
        with proxy(directory, port) as front:
            # wstest wants its own port in Host.
            echo_client(front, f"tunnel.localhost:{port}", "tunnel")
            echo_client(front, f"any.localhost:{port}", "agent")
    return read(directory / "reports")


def server_side(wstest: str, directory: Path, cases: list[str], exclude: list[str]) -> dict[str, dict[str, str]]:
    with echo_server() as upstream, proxy(directory, upstream) as front:
        servers = [
            {"agent": "direct", "url": f"ws://127.0.0.1:{upstream}"},
            {"agent": "tunnel", "url": f"ws://127.0.0.1:{front}/tunnel"},
            {"agent": "agent", "url": f"ws://127.0.0.1:{front}"},
        ]
        spec = {"outdir": str(directory / "reports"), "servers": servers, "cases": cases,
                "exclude-cases": exclude, "exclude-agent-cases": {}}  # fmt: skip
        (directory / "spec.json").write_text(json.dumps(spec))
        with (directory / "wstest.log").open("wb") as log:
            subprocess.run([wstest, "-m", "fuzzingclient", "-s", str(directory / "spec.json")], stdout=log, stderr=log)
    return read(directory / "reports")


def read(reports: Path) -> dict[str, dict[str, str]]:
    index = json.loads((reports / "index.json").read_text())
    ends: dict[str, dict[str, str]] = {}
    for agent, cases in index.items():
        ends[agent] = {case: _end(told["behavior"], told["behaviorClose"]) for case, told in cases.items()}
    return ends


def _end(behavior: str, close: str) -> str:
    """As Autobahn judges: the closing counts, too."""
    return close if behavior in ("OK", "NON-STRICT") and close not in ("OK", "INFORMATIONAL") else behavior


def show(title: str, ends: dict[str, dict[str, str]]) -> bool:
    """Prints a table; whether every case ended with the proxy as well as without it."""
    print(title)
    for agent in ("direct", "tunnel", "agent"):
        counts = Counter(ends.get(agent, {}).values())
        print(f"  {agent:8}", ", ".join(f"{end} {count}" for end, count in sorted(counts.items())))
    worse = {
        f"{agent} {case}: {end}, without the proxy {ends['direct'].get(case)}"
        for agent in ("tunnel", "agent")
        for case, end in ends.get(agent, {}).items()
        if _rank(end) > _rank(ends["direct"].get(case, "OK"))
    }
    for line in sorted(worse):
        print("   ", line)
    return not worse


def _rank(end: str) -> int:
    return {"OK": 0, "INFORMATIONAL": 0, "NON-STRICT": 1}.get(end, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wstest", required=True)
    parser.add_argument("--cases", nargs="*", default=["*"])
    parser.add_argument(
        "--no-compression", action="store_true", help="without 12.* and 13.*, which take most of the time"
    )
    parser.add_argument("--side", choices=("server", "client"), help="only one of them")
    args = parser.parse_args()
    exclude = COMPRESSION if args.no_compression else []
    is_good = True
    os.environ.pop("PYTHONPATH", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    for name, run in {"server": server_side, "client": client_side}.items():
        if args.side in (None, name):
            directory = Path(tempfile.mkdtemp(prefix="wgc-"))
            is_good &= show(f"{name} side", run(args.wstest, directory, args.cases, exclude))
            print(f"  reports: {directory}/reports")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
