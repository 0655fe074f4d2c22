"""Opens what the proxy owns before the first fork, runs the arbiter, and removes it all at the end.

    config -> runtime directory -> lock -> sockets -> segment -> proxy.addr -> arbiter (never returns)

In this order, so that a second start touches nothing of the first one's, and backwards at the end.
Workers are forked inside and unwind through the same code: only the process that opened removes.

Nothing about workers or requests may be put here.

Kind: IO.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, MutableMapping
from typing import NoReturn

from proxy import listen
from proxy.arbiter import Accepted, Application, Arbiter, row_names
from proxy.worker import INHERITED
from shared import descriptors, log
from shared.config.load import Loaded
from shared.defaults import BACKLOG
from shared.notify import Notify
from shared.plan import compile_plans
from shared.runtime import Runtime, lock
from shared.segment import ProxyWriter

_log = logging.getLogger("proxy.arbiter")


def serve(read: Callable[[], Loaded], environ: MutableMapping[str, str]) -> NoReturn:
    """Run the proxy until it is told to stop; ends in SystemExit.

    Raises ConfigError, AlreadyRunning or ListenFailed before anything was left behind.
    """
    loaded = read()
    config = loaded.config
    log.configure(config.logging.level, config.logging.format)
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    for warning in descriptors.warnings(config, descriptors.raise_limit()):
        _log.warning("%s", warning)
    accepted = Accepted(loaded, compile_plans(config), 1)
    runtime = Runtime(config.runtime.dir)
    runtime.prepare()
    with contextlib.ExitStack() as stack:
        # A signal from here on waits until the arbiter's handlers stand: by its default it would end us with the
        # lock file, the segment and the sockets left behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, INHERITED)
        _own(stack, lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))
        _own(stack, lock(runtime.dir, "proxy").release)
        listeners = listen.open_all(config.server.listen, BACKLOG, environ)
        _own(stack, listeners.close)
        if listeners.is_passed and set(listeners.addresses()) != set(config.server.listen):
            _log.warning("server.listen is not used: the service manager passed %s", ", ".join(listeners.addresses()))
        writer = ProxyWriter.create(runtime.proxy_segment, loaded.digest, *row_names(loaded))
        _own(stack, writer.close)
        listen.write_addresses(runtime.dir, listeners.addresses())
        _own(stack, lambda: listen.remove_addresses(runtime.dir))
        os.chdir("/")
        arbiter = Arbiter(Application(accepted), read, listeners, writer, Notify(environ))
        try:
            arbiter.run()
        except SystemExit as error:
            # gunicorn's codes tell why a worker failed; towards the shell that is simply "did not work".
            if os.getpid() == arbiter.pid and error.code:
                sys.exit(1)
            raise
    sys.exit(0)


def _own(stack: contextlib.ExitStack, clean: Callable[[], object]) -> None:
    """Clean up at the end of this process only: workers unwind through the same stack."""
    owner = os.getpid()
    stack.callback(lambda: clean() if os.getpid() == owner else None)
