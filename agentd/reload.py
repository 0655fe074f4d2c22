"""Reloads: one at a time, read beside the loop, brought into force in one turn of it, or refused and told why.

    SIGHUP, POST /api/reload --ask--> RELOADING=1 -> read and check in a thread -> prepare -> apply -> READY=1
                                                        |                            |
                                                        +---- whatever goes wrong ---+--> nothing has changed

Whoever asks while one is under way gets the next one, which reads the file after he asked. The outcome
stands in agentd.seg, for health, metrics and who finds agentd dead; the proxy's own in proxy.seg, read here.
Telling the proxy is a SIGHUP to its arbiter: agentd runs as the same user, so who may use the admin socket
need not be allowed to signal. What a configuration means to lanes and transports is not known here.

Kind: IO.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from shared import readiness
from shared.clock import now_ns
from shared.config.load import Loaded
from shared.config.reload import in_short
from shared.defaults import RELOAD_ANSWER_S, RELOAD_SWITCH_S
from shared.errors import AdminRefused, ConfigError, WardgateError
from shared.notify import Notify
from shared.segment import AgentdWriter, ProxyView, Reload, ReloadResult
from shared.wire import admin as wire

_log = logging.getLogger("agentd.reload")


class Fresh(msgspec.Struct, frozen=True):
    """What the files say now: the configuration, and the content of admin.token_file."""

    loaded: Loaded
    token: str


class Target(Protocol):
    """What a configuration means something to."""

    @property
    def loaded(self) -> Loaded:
        """The configuration in force."""

    def objections(self, loaded: Loaded) -> list[str]:
        """Why it cannot be taken over while agentd runs; [] = it can."""

    async def take(self, fresh: Fresh) -> None:
        """Bring it into force; raises WardgateError, and then nothing has changed."""


class Reloading:
    """`run` is a task of the daemon."""

    def __init__(
        self,
        target: Target,
        read: Callable[[], Fresh],
        writer: AgentdWriter,
        proxy: ProxyView,
        notify: Notify,
        audit: Callable[[str, str, str, str], None],
        *,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self._target = target
        self._read = read
        self._writer = writer
        self._proxy = proxy
        self._notify = notify
        self._audit = audit
        self._clock = clock
        self._asked: list[tuple[str, asyncio.Future[None]]] = []
        self._is_asked = asyncio.Event()
        self._problems: tuple[str, ...] = ()

    # --- from signals and the admin API ------------------------------------------------------------

    def ask(self, who: str = "") -> "asyncio.Future[None]":
        """Reload; `who` is for the audit, "" = a signal, which only the log tells of. It is done with the reload."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append((who, ended))
        self._is_asked.set()
        return ended

    async def answer(self, ended: "asyncio.Future[None]") -> wire.Reload:
        """How it went, or after RELOAD_ANSWER_S that it is still under way."""
        done, _ = await asyncio.wait((ended,), timeout=RELOAD_ANSWER_S)
        found = self.own()
        return found if done else msgspec.structs.replace(found, is_under_way=True)

    def own(self) -> wire.Reload:
        """How agentd's went."""
        said = _said("agentd", self._target.loaded.digest, self._writer.reload, self._clock())
        return msgspec.structs.replace(said, problems=self._problems if said.result == "refused" else ())

    def all(self) -> wire.Reloads:
        """How both daemons' went."""
        proxy = self._proxy
        if not proxy.check() or not proxy.is_alive(self._clock()):
            return wire.Reloads(self.own(), None)
        return wire.Reloads(self.own(), _said("proxy", proxy.config_digest, proxy.reload, self._clock()))

    def tell_proxy(self) -> wire.Reload:
        """SIGHUP to the arbiter; how the proxy's reloads went before it."""
        before = self.all().proxy
        if before is None:
            raise AdminRefused(409, "the proxy does not run, or its arbiter gives no sign of life")
        try:
            fd = os.pidfd_open(self._proxy.pid)
            try:
                # Held now; and whose beat is fresh is the arbiter, not somebody who got its number later.
                if not self._proxy.check() or not self._proxy.is_alive(self._clock()):
                    raise ProcessLookupError
                signal.pidfd_send_signal(fd, signal.SIGHUP)
            finally:
                os.close(fd)
        except ProcessLookupError:
            raise AdminRefused(409, "the proxy has just ended") from None
        except OSError as error:
            text = f"agentd may not signal the proxy (pid {self._proxy.pid}): {error.strerror}"
            raise AdminRefused(409, text) from None
        return before

    # --- the task ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            asked, self._asked = self._asked, []
            try:
                await self._reload()
                self._write_down([who for who, _ in asked if who])
            except Exception:
                _log.exception("reload")
            finally:
                for _, ended in asked:
                    if not ended.done():
                        ended.set_result(None)

    def _write_down(self, operators: Sequence[str]) -> None:
        own = self.own()
        for who in operators:
            self._audit(who, "reload", "agentd", f"{own.result}: {own.message or own.digest}")

    async def _reload(self) -> None:
        self._notify.reloading()
        self._writer.begin_reload()
        try:
            with _quick_switches():
                fresh = await asyncio.to_thread(self._read)
            problems = self._target.objections(fresh.loaded)
            if problems:
                raise ConfigError(problems)
            await self._target.take(fresh)
        except WardgateError as error:
            self._refused(error.problems if isinstance(error, ConfigError) else [str(error)])
        except Exception as error:  # whatever it is: no reload may end an agentd that serves
            _log.exception("configuration refused")
            self._refused([f"{type(error).__name__}: {error}"])
        else:
            self._problems = ()
            self._writer.end_reload(ReloadResult.APPLIED, self._clock())
            for warning in fresh.loaded.warnings:
                _log.warning("configuration: %s", warning)
            _log.info("reloaded", extra={"digest": fresh.loaded.digest})
            self._notify.ready("reloaded")

    def _refused(self, problems: list[str]) -> None:
        for problem in problems:
            _log.error("configuration refused: %s", problem)
        _log.error("the running configuration stays", extra={"digest": self._target.loaded.digest})
        self._problems = tuple(problems)
        self._writer.end_reload(ReloadResult.REFUSED, self._clock(), in_short(problems))
        self._notify.ready(f"reload refused, the running configuration stays: {in_short(problems)}")


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    """While a thread reads: the loop waits less for the interpreter's lock. A thousand routes take a second."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(RELOAD_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _said(daemon: str, digest: str, reload: Reload, now: int) -> wire.Reload:
    stamp = readiness.stamper(now, time.time())
    return wire.Reload(
        daemon,
        digest,
        reload.is_under_way,
        reload.begun,
        reload.result.word,
        stamp(reload.at_ns),
        stamp(reload.applied_ns),
        reload.applied,
        reload.refused,
        reload.rolled_back,
        reload.message,
    )
