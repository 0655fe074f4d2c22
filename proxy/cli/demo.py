"""What `wardgate run --demo` adds: its directory, its configuration, its application and its agents.

Which processes those are and what the banner says is decided here; nothing is started here.

Kind: pure, but for `Demo.open`, which makes files and one socket.
"""

import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from string import Template

import orjson

from proxy.cli.children import Spec, python
from proxy.cli.supervise import Role
from shared.runtime import Runtime

CONFIG_NAME = "demo.toml"
AGENTS = (("agent-1", "policy", "policy_agent.py"), ("agent-2", "tag", "tag_agent.py"))
# What to try: (arguments of curl before the URL, path, what it shows). Short: a line has 80 columns.
TRIES = (
    ("", "/", "the application's page"),
    ("", "/echo", "what the application got"),
    ("-i", "/json", "a header from an agent"),
    ("-i", "/admin", "403, blocked by an agent"),
    ("-i", "/old/page", "302, redirected by an agent"),
    ("-i", "/members", "401, challenged by an agent"),
    ("-i -H 'X-Block: 1'", "/", "403, because of a header"),
    ("-N", "/stream", "a line each half second"),
    ("-d hello", "/upload", "its size and SHA-256"),
)
ADMIN_TRIES = (
    ("", "/health", "every component's state"),
    ("", "/metrics", "for Prometheus"),
)


def directory(environ: Mapping[str, str], uid: int) -> str:
    """Where the demo runs: $XDG_RUNTIME_DIR/wardgate-demo, else /tmp/wardgate-demo-<uid>."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    return f"{base.rstrip('/')}/wardgate-demo" if os.path.isabs(base) else f"/tmp/wardgate-demo-{uid}"  # noqa: S108


def render(template: str, values: Mapping[str, str | list[str]]) -> str:
    """The template with its values as TOML (whose strings and arrays of strings are JSON's)."""
    return Template(template).substitute({name: orjson.dumps(value).decode() for name, value in values.items()})


class Demo:
    """The demo's own parts. `open` after the lock of the runtime directory was taken."""

    def __init__(self, runtime: Runtime, port: int, admin_port: int) -> None:
        self.runtime = runtime
        self.config_path = f"{runtime.dir}/{CONFIG_NAME}"
        self.audit_dir = f"{runtime.dir}/audit"
        self._tag_socket = f"{runtime.agents_dir}/tag"
        self._port = port
        self._admin_port = admin_port
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Bind the application's socket, so that its address is known and stays, and write the configuration."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        host, port = self._socket.getsockname()
        values: dict[str, str | list[str]] = {
            "listen": [f"127.0.0.1:{self._port}"],
            "admin": [f"127.0.0.1:{self._admin_port}"],
            "dir": self.runtime.dir,
            "audit": self.audit_dir,
            "upstream": f"{host}:{port}",
            "tag": f"ipc://{self._tag_socket}",
        }
        template = files("proxy.demo").joinpath(CONFIG_NAME).read_text(encoding="utf-8")
        os.makedirs(self.audit_dir, 0o700, exist_ok=True)
        # A demo begins afresh: a breaker that somebody opened in the last one would look like a broken start.
        for path in (self.runtime.breakers_file, os.path.join(self.audit_dir, "audit.jsonl")):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        fd = os.open(self.config_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(render(template, values))

    def upstream(self) -> Spec:
        """The application; it inherits the socket."""
        assert self._socket is not None
        fd = self._socket.fileno()
        args = python("-m", "proxy.demo.upstream", "--fd", str(fd), executable=sys.executable)
        return Spec("upstream", Role.UPSTREAM, args, pass_fds=(fd,))

    def agents(self) -> list[Spec]:
        """The two agents; files, because that is how people write theirs."""
        where = {"policy": ("--connect", self.runtime.agents_endpoint), "tag": (f"ipc://{self._tag_socket}",)}
        folder = files("proxy.demo").joinpath("agents")
        return [
            Spec(
                label,
                Role.AGENT,
                python(str(folder.joinpath(script)), *where[name], executable=sys.executable),
                agent=name,
            )
            for label, name, script in AGENTS
        ]

    def close(self) -> None:
        """What was opened, and the socket that a plain REP agent leaves behind when it is stopped."""
        if self._socket is not None:
            self._socket.close()
        for path in (self._tag_socket, self.config_path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


def url_of(address: str) -> str:
    """How a person reaches one of the proxy's addresses from this machine; "" for a unix socket."""
    host, _, port = address.rpartition(":")
    if address.startswith("unix:"):
        return ""
    return f"http://{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"  # noqa: S104


def banner(
    *,
    addresses: Sequence[str],
    admin: Sequence[str],
    config_path: str,
    audit_dir: str,
    absent: Sequence[str],
    is_demo: bool,
    program: str = "wardgate",
    bold: Callable[[str], str] = str,
) -> str:
    """What is shown once everything serves."""
    urls = [url for url in map(url_of, addresses) if url]
    admin_url = url_of(admin[0]) if admin else ""
    rows = [("proxy", " ".join(urls) or " ".join(addresses)), ("admin", f"{admin_url}/health" if admin_url else "")]
    rows += [("config", config_path), ("audit", audit_dir)]
    lines = ["", "  " + bold("Wardgate is ready.") + " Ctrl-C stops it.", ""]
    lines += [f"  {name:8}{bold(value) if name == 'proxy' else value}" for name, value in rows if value]
    if absent:
        names = ", ".join(absent)
        lines += ["", f"  Not connected yet: {names}. Until then their failure_mode decides."]
    tries = [(args, urls[0] + path, what) for args, path, what in TRIES if is_demo and urls]
    tries += [(args, admin_url + path, what) for args, path, what in ADMIN_TRIES if admin_url]
    commands = [(" ".join(filter(None, ("curl", args, url))), what) for args, url, what in tries]
    width = max((len(text) for text, _ in commands), default=0)
    lines += ["", "  Try:", *(f"    {text:{width}}  # {what}" for text, what in commands)]
    lines += [f"    {program} health -c {shlex.quote(config_path)}", "", ""]
    return "\n".join(lines)
