"""Asks agentd over admin.sock, within ADMIN_TIMEOUT_S, and turns what can go wrong into our errors.

    no socket, nobody behind it, no answer in time   Unreachable    exit code 3
    not admitted, refused, unknown agent             AdminRefused   exit code 1

A change carries its deadline: what a command said had failed is not done later by an agentd that had stopped.
Also here: how a command finds the runtime directory, and what `--json` prints when there is no answer.
What is shown is the commands' business.

Kind: IO.
"""

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

import click
import msgspec

from shared.clock import S, now_ns
from shared.config.schema import Config
from shared.defaults import ADMIN_LATEST_SHARE, ADMIN_TIMEOUT_S, RELOAD_ANSWER_S, RUNTIME_DIR
from shared.errors import AdminRefused, ConfigError, Unreachable
from shared.runtime import Runtime
from shared.wire import admin as wire


class Place(NamedTuple):
    """Where the daemons meet; `config` is None when the directory was named on the command line, or it is refused."""

    runtime: Runtime
    config: Config | None


def find(config_path: str | None, runtime_dir: str | None) -> Place:
    """From `--runtime-dir`, else from the configuration. Raises ConfigError.

    A configuration that is refused still says where the daemons are that run the one from before.
    """
    if runtime_dir:
        return Place(Runtime(os.path.abspath(runtime_dir)), None)
    from shared.config.load import load, meeting_place

    try:
        config = load(config_path, os.environ, needs_files=False).config
    except ConfigError as error:
        directory = meeting_place(config_path, os.environ)
        if not directory:
            hint = "the directory of running daemons can be named without a configuration: --runtime-dir "
            raise ConfigError([*error.problems, f"{hint}DIR, by default {RUNTIME_DIR}"]) from None
        for problem in error.problems:
            click.echo(f"wardgate: {problem}", err=True)
        click.echo(f"wardgate: this configuration is refused; asking the daemons in {directory} all the same", err=True)
        return Place(Runtime(directory), None)
    return Place(Runtime(config.runtime.dir), config)


@contextlib.contextmanager
def json_problems(as_json: bool) -> Iterator[None]:
    """With `--json`, Unreachable and AdminRefused are a JSON document on standard output, too, before they go on."""
    try:
        yield
    except (AdminRefused, Unreachable) as error:
        if as_json:
            code = "refused" if isinstance(error, AdminRefused) else "unreachable"
            click.echo(wire.pretty(wire.Problem(wire.ProblemBody(code, str(error)))))
        raise


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self._path)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class AdminClient:
    """One agentd. Every method raises Unreachable or AdminRefused."""

    def __init__(self, runtime: Runtime, timeout_s: float = ADMIN_TIMEOUT_S) -> None:
        self._path = runtime.admin_socket
        self._timeout_s = timeout_s

    def health(self) -> wire.Health:
        """Also when it is unhealthy (503)."""
        status, body = self._ask("GET", wire.HEALTH)
        return wire.decode_health(body) if status == 503 else wire.decode_health(_good(status, body))

    def agents(self) -> wire.Agents:
        return wire.decode_agents(_good(*self._ask("GET", wire.AGENTS)))

    def breakers(self) -> wire.Breakers:
        return wire.decode_breakers(_good(*self._ask("GET", wire.BREAKERS)))

    def change_breaker(
        self, agent: str, action: wire.BreakerAction, change: wire.BreakerChange | None = None
    ) -> wire.Breaker:
        """How the breaker is now."""
        body = wire.encode(change) if change is not None else b""
        return wire.decode_breaker(_good(*self._ask("POST", wire.breaker_path(agent, action), body)))

    def limits(self) -> wire.Limits:
        return wire.decode_limits(_good(*self._ask("GET", wire.LIMITS)))

    def overrides(self) -> wire.Overrides:
        return wire.decode_overrides(_good(*self._ask("GET", wire.OVERRIDES)))

    def change_limit(self, name: str, action: wire.LimitAction, change: wire.LimitChange | None = None) -> wire.Limit:
        """How the limit is now, for all workers."""
        body = wire.encode(change) if change is not None else b""
        return wire.decode_limit(_good(*self._ask("POST", wire.limit_path(name, action), body)))

    @classmethod
    def for_reload(cls, runtime: Runtime) -> "AdminClient":
        """agentd answers a reload when it has ended, or after RELOAD_ANSWER_S that it has not."""
        return cls(runtime, RELOAD_ANSWER_S + ADMIN_TIMEOUT_S)

    def reloads(self) -> wire.Reloads:
        return wire.decode_reloads(_good(*self._ask("GET", wire.RELOAD)))

    def reload(self) -> wire.Reload:
        """agentd's; it may still be under way."""
        return wire.decode_reload(_good(*self._ask("POST", wire.RELOAD)))

    def reload_proxy(self) -> wire.Reload:
        """Have the proxy told; how its reloads went before."""
        return wire.decode_reload(_good(*self._ask("POST", wire.RELOAD_PROXY)))

    def drain(self, agent: str, request: wire.DrainRequest) -> wire.Drains:
        """What has begun."""
        return wire.decode_drains(_good(*self._ask("POST", wire.drain_path(agent), wire.encode(request))))

    def drains(self) -> wire.Drains:
        """The last ones, newest first."""
        return wire.decode_drains(_good(*self._ask("GET", wire.DRAINS)))

    def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            headers = {}
            if method != "GET":
                headers[wire.DEADLINE] = str(now_ns() + int(self._timeout_s * ADMIN_LATEST_SHARE * S))
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except PermissionError:
            raise AdminRefused(
                403, f"{self._path}: permission denied; root, agentd's user and members of wardgate-admin may use it"
            ) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise Unreachable(f"agentd is not running: nobody listens on {self._path}") from None
        except (TimeoutError, BlockingIOError):
            raise Unreachable(f"agentd did not answer within {self._timeout_s:g} s on {self._path}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"agentd broke off on {self._path}: {error or type(error).__name__}") from None
        finally:
            connection.close()


def _good(status: int, body: bytes) -> bytes:
    if status in (200, 202):
        return body
    try:
        message = wire.decode_problem(body).error.message
    except msgspec.MsgspecError:
        message = f"agentd answered {status}"
    raise AdminRefused(status, message)
