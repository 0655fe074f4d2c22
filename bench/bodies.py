"""`make bench ARGS=--bodies`: what a large body costs past one streaming agent, against none.

Starts agentd, the proxy with one worker and one agent on the Python SDK that looks at every chunk and lets it
pass, then sends bodies up and down through a route with it and one without. CPU time is of worker, agentd and
agent together; client and upstream are processes of their own and not counted. Memory is the most that each
role ever held (VmHWM), read after each size: it must not grow with the body.

Exit codes: 0 measured, 1 something answered wrongly.

Kind: IO.
"""

import json
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from stack import HERE, Role, Stack, agentd_argv, proxy_argv

MIB = 1 << 20
PIECE = 1 << 16
REPEATED = 4  # bodies for one reading: the kernel counts CPU in hundredths of a second
COUNTED = ("worker", "agentd", "agent")
ALLOWED = 3.0  # times the CPU of the same body without an agent


def configuration(directory: Path, listen: str, upstream: str) -> str:
    """The configuration's path; routes /none and /agent."""
    secret = directory / "agent.secret"
    secret.write_text(secrets.token_hex(16))
    secret.chmod(0o600)
    text = f"""
server = {{ listen = [{json.dumps(listen)}], workers = 1, max_body_bytes = 0 }}
runtime = {{ dir = {json.dumps(f"{directory}/run")} }}
admin = {{ listen = [] }}
audit = {{ sinks = [] }}
logging = {{ level = "error" }}
[[upstreams]]
name = "up"
targets = [{{ address = {json.dumps(upstream)} }}]
[[agents]]
name = "scan"
protocol = "zmq-v2"
events = ["request_body_chunk", "response_body_chunk"]
timeout_ms = 5000
secret_file = {json.dumps(str(secret))}
max_request_body_bytes = 1073741824
max_response_body_bytes = 1073741824
[[routes]]
name = "none"
upstream = "up"
match = {{ path_prefix = "/none" }}
[[routes]]
name = "agent"
upstream = "up"
request_body = "stream"
match = {{ path_prefix = "/agent" }}
filters = [{{ agent = "scan" }}]
"""
    path = directory / "wardgate.toml"
    path.write_text(text)
    return str(path)


def serve(address: str, mib: int) -> None:
    """The upstream: takes what comes, answers a GET with so much."""
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)))
    print("serving", flush=True)
    piece = bytes(PIECE)
    while True:
        sock, _ = listener.accept()
        with sock:
            while _one(sock, piece, mib * MIB):
                pass


def _one(sock: socket.socket, piece: bytes, size: int) -> bool:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(PIECE)
        if not more:
            return False
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if lower.startswith(b"get"):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // PIECE):
            sock.sendall(piece)
        return True
    if b"transfer-encoding" in lower:
        tail = rest[-5:]
        while not tail.endswith(b"0\r\n\r\n"):  # the body is of NULs: no chunk ends like that
            more = sock.recv(1 << 20)
            if not more:
                return False
            tail = (tail + more)[-5:]
    else:
        left = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(rest)
        while left:
            left -= len(sock.recv(1 << 20)) or left
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    return True


def send(url: tuple[str, int], path: str, size: int, direction: str) -> None:
    """One body."""
    with socket.create_connection(url, 60) as sock:
        if direction == "up":
            sock.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
            piece = bytes(PIECE)
            for _ in range(size // PIECE):
                sock.sendall(piece)
            head = sock.recv(PIECE)
        else:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            head = sock.recv(PIECE)
            got = len(head)
            while more := sock.recv(1 << 20):
                got += len(more)
            if got < size:
                raise RuntimeError(f"{path}: {got} bytes of {size} came")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{path} answered {head[:200]!r}")


def peak_mib(role: Role) -> float:
    """The most that any process of a role ever held."""
    peaks = [0]
    for pid, _ in list(role._members()):
        try:
            text = Path("/proc", str(pid), "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        peaks += [int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")]
    return max(peaks) / 1024


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run(mib: int, rounds: int) -> dict[str, object]:
    """Measure and print; the rows."""
    directory = Path(tempfile.mkdtemp(prefix="wg-bench-", dir="/tmp"))
    (directory / "run").mkdir(mode=0o700)
    stack = Stack(directory)
    listen, upstream = free_address(), free_address()
    config = configuration(directory, listen, upstream)
    host, _, port = listen.rpartition(":")
    url = (host, int(port))
    result: dict[str, object] = {}
    try:
        stack.start("upstream", [sys.executable, __file__, upstream, str(mib)])
        agentd = stack.start("agentd", agentd_argv(config))
        worker = stack.start("worker", proxy_argv(config))
        agent = stack.start(
            "agent",
            [
                *(sys.executable, str(HERE / "agents" / "scan_v2.py"), "--connect"),
                *(f"ipc://{directory}/run/agents/v2", "--name", "scan", "--log-level", "warning"),
                *("--secret-file", str(directory / "agent.secret"), "--drain-deadline", "1"),
            ],
        )
        _wait(stack, url)
        for direction in ("up", "down"):
            cost: dict[str, list[float]] = {"/none": [], "/agent": []}
            spent: dict[str, float] = {}
            for path in cost:
                send(url, path, mib * MIB, direction)
            for _ in range(rounds):
                for path, taken in cost.items():
                    before = stack.cpu_s()
                    for _ in range(REPEATED):
                        send(url, path, mib * MIB, direction)
                    after = stack.cpu_s()
                    spent = {role: round((after[role] - before[role]) / REPEATED, 3) for role in COUNTED}
                    taken.append(sum(spent.values()))
            none, one = statistics.median(cost["/none"]), statistics.median(cost["/agent"])
            peaks = {role.name: round(peak_mib(role), 1) for role in (worker, agentd, agent)}
            result[direction] = {"none_s": none, "agent_s": one, "ratio": one / none, "last": spent, "peak_mib": peaks}
            print(
                f"{direction:5} {mib} MiB  without {none:.2f} s of CPU, with one streaming agent {one:.2f} s: "
                f"x {one / none:.2f} (allowed {ALLOWED:.0f})   {spent}   peak MiB {peaks}"
            )
        return result
    finally:
        for role in reversed(stack.roles):
            role.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _wait(stack: Stack, url: tuple[str, int]) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            send(url, "/agent", PIECE, "up")
            return
        except (OSError, RuntimeError):
            stack.check()
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def measure(mib: int, rounds: int, json_file: str | None) -> int:
    """Run, print and write; the exit code."""
    try:
        result = run(mib, rounds)
    except (OSError, RuntimeError) as error:
        print(f"bodies: {error}", file=sys.stderr)
        return 1
    if json_file:
        Path(json_file).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":  # the upstream's process
    serve(sys.argv[1], int(sys.argv[2]))
