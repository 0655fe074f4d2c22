"""One worker process: uvicorn's server under gunicorn, made to drain, to beat and to exit cleanly.

    after fork    claim the slot, build the context (config and plans come through the fork, no file is read)
    accept        when agentd is connected, or soon if it is not alive
    each 0.1 s    beat in the slot; is the arbiter still there, did a signal come?
    drain         stop accepting; finish what is open, `Connection: close` on each answer; then close the rest
    exit          status 0

What differs from uvicorn_worker, and why (each measured, 2026-11): signals are not raised again (the
worker would die by SIGTERM: no atexit, no worker_exit, no coverage); idle connections are not cut (307 of
4 x 64 reloads broke under load); the heartbeat goes on while draining; a graceful shutdown has an end.

TERM drains, INT and QUIT close at once. Nothing about requests is decided here.

Kind: IO.
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import gunicorn.workers.base
import uvicorn.loops.uvloop  # noqa: F401
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

# Imported here, before the fork, so that workers start in a fraction of the time and share the pages.
from proxy.app import WorkerContext
from proxy.gate import Gate, Turn
from proxy.protocol import ProxyProtocol
from shared import log
from shared.clock import S, now_ns
from shared.defaults import WORKER_STOP_S
from shared.descriptors import wanted_upstream
from shared.segment import WorkerSlot, WorkerState

if TYPE_CHECKING:
    from proxy.arbiter import Birth

_log = logging.getLogger("proxy.worker")
_WAIT_S = 0.05  # while draining: how soon the last connection's end is seen
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
INHERITED = (*HANDLED, signal.SIGHUP, signal.SIGUSR1, signal.SIGABRT)  # blocked over the fork, see arbiter.spawn_worker


class _Connection(Protocol):
    """What the drain needs of proxy/protocol.py's connections."""

    def shutdown(self) -> None: ...
    def cut(self) -> None: ...


async def no_application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """uvicorn insists on an application. Our protocol class answers every request itself, so nothing gets here."""
    raise RuntimeError(f"no application serves {scope['type']}")


class WorkerServer(Server):
    """uvicorn's server with our ticks, our shutdown and our signals."""

    def __init__(self, worker: "Worker", slot: WorkerSlot, context: WorkerContext) -> None:
        super().__init__(worker.config)
        self._worker = worker
        self._slot = slot
        self._context = context
        self._listeners: list[socket.socket] = []
        self._gate = Gate(slot.cells, wanted_upstream(worker.birth.accepted.loaded.config))

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Like uvicorn's, with SIGQUIT, and without raising them again afterwards: the worker exits with status 0."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in HANDLED}
        # Whatever was sent since the fork is delivered now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INHERITED)
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, signal.SIG_IGN if sig in HANDLED else handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """TERM: drain. INT, QUIT: now."""
        self.should_exit = True
        if sig != signal.SIGTERM:
            self.force_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Accept, and say so in the slot."""
        self._listeners = sockets
        _when_the_arbiter_dies(0)  # from here on `on_tick` notices, and drains
        await self._accept()
        _log.info("worker ready", extra={"pid": os.getpid()})
        self._slot.set_state(WorkerState.READY)

    async def _accept(self) -> None:
        """On duplicates: uvloop closes what it listens on when it is told to stop."""
        await super().startup([sock.dup() for sock in self._listeners])

    async def _mind_descriptors(self) -> None:
        """Without a free descriptor libuv closes whoever connects; the queue and the other workers keep them."""
        match self._gate.look(now_ns(), len(self.server_state.connections)):
            case Turn.PAUSE:
                self._close_servers()
                for connection in list(self.server_state.connections):
                    connection.shutdown()  # the next answer is the last, who stays idle is closed
            case Turn.RESUME:
                try:
                    await self._accept()
                except OSError:
                    self._close_servers()
                    self._gate.is_open = False

    def _close_servers(self) -> None:
        for server in self.servers:
            server.close()
        self.servers = []

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s; True ends the main loop. uvicorn's own tick would make the Date field for its responses."""
        self._beat()
        await self._mind_descriptors()
        if self.should_exit:
            return True
        if os.getppid() != self._worker.ppid:
            _log.error("the arbiter is gone: draining", extra={"arbiter": self._worker.ppid})
            return True
        return False

    def _beat(self) -> None:
        self._slot.beat(now_ns())  # silence for worker_timeout_s is SIGABRT

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop accepting and wait, at most the graceful timeout, until the connections have ended by themselves."""
        self._slot.set_state(WorkerState.DRAINING)
        self._close_servers()
        for sock in self._listeners:
            sock.close()
        self._context.drain()
        deadline = now_ns() + int(self._worker.drain_s * S)
        open_now: set[_Connection] = self.server_state.connections  # type: ignore[assignment]
        if open_now:
            _log.info("draining", extra={"connections": len(open_now)})
        told: set[_Connection] = set()
        while not self.force_exit:
            # One that was accepted just before the socket closed shows up late: look again each time.
            for connection in open_now - told:
                told.add(connection)
                connection.shutdown()
            told &= open_now
            if not open_now or now_ns() >= deadline:
                break
            self._beat()
            await asyncio.sleep(_WAIT_S)
        await self._cut(open_now)
        try:
            await asyncio.wait_for(self._context.stop(), WORKER_STOP_S)
        except TimeoutError:
            _log.error("the worker's context did not stop in time", extra={"timeout_s": WORKER_STOP_S})

    async def _cut(self, connections: Iterable[_Connection]) -> None:
        left = list(connections)
        if not left:
            return
        if not self.force_exit:
            _log.warning("graceful timeout: connections cut", extra={"connections": len(left)})
        for connection in left:
            connection.cut()
        await asyncio.sleep(0)  # connection_lost runs in the loop's next turn


def _when_the_arbiter_dies(sig: int) -> None:
    """Which signal the kernel sends us then; 0 = none."""
    _prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)


class _NoFile:
    """In place of gunicorn's heartbeat file: the slot is the heartbeat, and no disk need have room for a fork."""

    def __init__(self, cfg: object) -> None:
        self._file = open(os.devnull, "rb")  # noqa: SIM115  (gunicorn sets close-on-exec on it)
        self.fileno = self._file.fileno
        self.close = self._file.close


gunicorn.workers.base.WorkerTmp = _NoFile


class Worker(UvicornWorker):  # type: ignore[misc]
    """gunicorn's worker. `__init__` runs in the arbiter, everything else in the worker."""

    CONFIG_KWARGS = {  # noqa: RUF012  (uvicorn_worker's own way)
        "loop": "uvloop",
        "http": ProxyProtocol,
        "ws": "none",
        "lifespan": "off",
        "interface": "asgi3",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.birth: Birth = self.app.birth
        self.slot_index = self.birth.slot.index
        # Where uvicorn_worker points these at gunicorn's handlers, ours are the root logger's.
        for name in ("uvicorn.error", "uvicorn.access"):
            logging.getLogger(name).handlers = []
            logging.getLogger(name).propagate = True

    @property
    def drain_s(self) -> float:
        """How long a drain may take; less than the arbiter's patience, so that the rest is closed by us."""
        return float(max(self.cfg.graceful_timeout - 1, 0))

    def init_signals(self) -> None:
        """The defaults, until the server captures them; the mask of the fork stays until then."""
        super().init_signals()
        # SIGABRT is what the arbiter sends to a worker that stopped beating: leave a traceback behind.
        faulthandler.enable()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def init_process(self) -> None:
        """Everything between fork and loop."""
        _when_the_arbiter_dies(signal.SIGKILL)  # until READY there is nothing to finish, and our sockets keep the port
        config = self.birth.accepted.loaded.config
        log.configure(config.logging.level, config.logging.format, fields={"slot": self.slot_index})
        super().init_process()

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        slot, accepted = self.birth.slot, self.birth.accepted
        slot.claim(os.getpid(), now_ns(), accepted.loaded.digest)
        try:
            context = WorkerContext.build(accepted.loaded, accepted.plans, slot, asyncio.get_running_loop())
            context.start()
            await context.reach_agentd()
        except Exception:
            _log.exception("the worker could not start")
            sys.exit(self.birth.boot_error)
        gc.collect()
        gc.freeze()  # what is here now stays: no need to walk it on every collection
        server = WorkerServer(self, slot, context)
        await server.serve(sockets=self.sockets)
