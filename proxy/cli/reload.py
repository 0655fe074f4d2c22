"""`wardgate reload`: checks the configuration, reloads agentd, then the proxy, and says what came of each.

agentd goes first: it must know every agent before a worker asks for it, and it goes on asking those that the
old workers still name. It also tells the proxy (a SIGHUP to the arbiter), so that whoever may use the admin
socket may reload, and the audit says who did.

Kind: IO.
"""

import os
import sys
from typing import Any, NoReturn

import click
import msgspec

from proxy.cli import EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE, config_option, json_option, runtime_option
from proxy.cli.admin_client import AdminClient
from proxy.cli.patience import Patience
from shared.config.load import Loaded
from shared.defaults import RELOAD_WAIT_S
from shared.errors import AdminRefused, ConfigError, Unreachable, WardgateError
from shared.runtime import Runtime
from shared.wire import admin as wire

EPILOG = """\b
What happens, in this order:
  1. The configuration is checked, as by `wardgate check`. With a problem nothing is told to anybody.
  2. agentd reads it and brings it into force. Agents that did not change keep their connections; a v2
     agent whose `config` or limits changed gets them without losing its connection; a v1 agent whose
     endpoint changed is dialled at the new one before the old connections are drained.
  3. The proxy starts workers with it; when they are ready the old ones drain. No request is lost.

\b
Each daemon reads its own file, the one it was started with. What it refuses changes nothing there; if
agentd refuses, the proxy is not told. Keys marked "Restart" in the reference are refused when they have
changed, by name. `wardgate health` (component config) and the metrics wardgate_config_* tell later, too.

\b
Who may: root, the daemons' user and members of the group wardgate-admin, by admin.sock. Files that
only the daemons can read, like secrets, are then checked by them alone.

\b
Examples:
  wardgate reload
  wardgate reload -c /etc/wardgate/wardgate.toml --timeout 120
  wardgate reload --json | jq -r .proxy.result

Exit codes: 0 reloaded, 1 refused by a daemon or not done in time, 2 usage or configuration, 3 a daemon is
unreachable.
"""


@click.command(epilog=EPILOG)
@config_option
@runtime_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1, 3600),
    default=RELOAD_WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each daemon. What takes longer goes on; only the command ends.",
)
@json_option
def command(config_path: str | None, runtime_dir: str | None, timeout_s: float, as_json: bool) -> None:
    """Check the configuration and bring it into force in agentd and the proxy, without losing a request."""
    said = _Said(as_json)
    try:
        loaded = _checked(config_path, runtime_dir)
    except ConfigError as error:
        said.end(EXIT_USAGE, *error.problems, "nothing was reloaded")
    said.checked(loaded)
    runtime = Runtime(os.path.abspath(runtime_dir) if runtime_dir else loaded.config.runtime.dir)
    client = AdminClient(runtime)
    try:
        said.daemon(_agentd(client, runtime, timeout_s))
        said.daemon(_proxy(client, timeout_s))
    except Unreachable as error:
        hint = "" if runtime_dir else "; --runtime-dir names another directory, if runtime.dir has just been changed"
        said.end(EXIT_UNREACHABLE, f"{error}{hint}")
    except WardgateError as error:
        said.end(EXIT_REFUSED, str(error))
    said.compare(loaded)
    said.end(0)


def _checked(config_path: str | None, runtime_dir: str | None) -> Loaded:
    """As `wardgate check`. Files are looked into by whoever may be expected to be able to."""
    from shared.config import owners
    from shared.config.load import load

    problems = owners.problems()
    loaded = None
    try:
        loaded = load(config_path, os.environ, needs_files=False)
        directory = runtime_dir or loaded.config.runtime.dir
        if os.geteuid() == 0 or (os.path.isdir(directory) and os.stat(directory).st_uid == os.geteuid()):
            loaded = load(config_path, os.environ)
    except ConfigError as error:
        problems = error.problems + problems
    if problems or loaded is None:
        raise ConfigError(problems)
    return loaded


def _agentd(client: AdminClient, runtime: Runtime, timeout_s: float) -> wire.Reload:
    """Reload it; how that went. AdminRefused: it refused."""
    found = AdminClient.for_reload(runtime).reload()
    number = found.begun
    patience = Patience(timeout_s, lambda seconds: f"agentd reads the configuration, {seconds:.0f} s")
    while found.is_under_way and found.begun <= number:
        if not patience.has_more():
            raise AdminRefused(408, f"agentd has not finished within {timeout_s:g} s, and goes on")
        found = client.reloads().agentd
    if found.result != "applied":
        raise AdminRefused(409, "\n".join(("agentd refused it", *(found.problems or (found.message,)))))
    return found


def _proxy(client: AdminClient, timeout_s: float) -> wire.Reload:
    """The same. New workers have to start, so this is what takes time."""
    if client.reloads().proxy is None:
        raise Unreachable("agentd has reloaded, but the proxy does not run")
    before = client.reload_proxy()

    def progress(seconds: float) -> str:
        workers = next((c.message for c in client.health().components if c.name == "workers"), "")
        return f"the proxy starts workers, {seconds:.0f} s: {workers}"

    patience = Patience(timeout_s, progress)
    found: wire.Reload | None = before
    while found is None or found.begun <= before.begun or found.is_under_way:
        if not patience.has_more():
            raise AdminRefused(408, f"the proxy has not finished within {timeout_s:g} s, and goes on")
        found = client.reloads().proxy
        if found is not None and found.begun < before.begun:
            raise AdminRefused(409, "the proxy was started anew meanwhile")
    if found.result != "applied":
        how = "refused it" if found.result == "refused" else "could not serve with it and has gone back"
        raise AdminRefused(409, f"agentd has reloaded, but the proxy {how}: {found.message}")
    return found


class _Said:
    """What is told, as lines while it happens or as one JSON document at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._document: dict[str, Any] = {"ok": False, "digest": "", "warnings": [], "agentd": None, "proxy": None}

    def checked(self, loaded: Loaded) -> None:
        self._document |= {"digest": loaded.digest, "warnings": list(loaded.warnings)}
        for text in loaded.warnings:
            self._note(f"warning: {text}")
        self._line(f"configuration {loaded.digest} is well: {', '.join(loaded.files)}")

    def daemon(self, reload: wire.Reload) -> None:
        self._document[reload.daemon] = msgspec.to_builtins(reload)
        self._line(f"{reload.daemon}: reloaded, runs {reload.digest}")

    def compare(self, loaded: Loaded) -> None:
        """Each daemon reads its own file, in its own environment."""
        for name in ("agentd", "proxy"):
            digest = self._document[name]["digest"]
            if digest != loaded.digest:
                text = f"{name} runs {digest}, the configuration checked here is {loaded.digest}: it reads another "
                self._document["warnings"].append(text + "file or has other WARDGATE__ variables")
                self._note(f"warning: {text}file or has other WARDGATE__ variables")

    def end(self, code: int, *problems: str) -> NoReturn:
        for text in problems:
            for line in text.splitlines():
                self._note(f"wardgate: {line}")
        if self._as_json:
            self._document |= {"ok": not code, "problems": [line for text in problems for line in text.splitlines()]}
            click.echo(wire.pretty(self._document))
        sys.exit(code)

    def _line(self, text: str) -> None:
        if not self._as_json:
            click.echo(text)

    def _note(self, text: str) -> None:
        click.echo(text, err=True)
