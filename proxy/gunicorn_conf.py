"""Tells gunicorn what our configuration means, and where its log lines go.

`settings` is the whole of what gunicorn is told: no gunicorn configuration file, command line or
GUNICORN_CMD_ARGS is read. Each row that differs from gunicorn's default says why.

Kind: table.
"""

import logging
import os
from typing import Any

from gunicorn.glogging import Logger

from proxy.worker import Worker
from shared import defaults
from shared.config.schema import Config


def workers_wanted(config: Config) -> int:
    """`server.workers`, where 0 is one per core that we may run on; never more than fit twice into the slots."""
    wanted = config.server.workers or len(os.sched_getaffinity(0))
    return min(wanted, defaults.WORKER_SLOTS // 2)  # a reload needs the old and the new ones side by side


def settings(config: Config) -> dict[str, Any]:
    """gunicorn's settings for an accepted config."""
    server = config.server
    return {
        "bind": [],  # the sockets are ours (proxy/listen.py); also keeps $PORT from meaning anything
        "worker_class": Worker,
        "workers": workers_wanted(config),
        "timeout": server.worker_timeout_s,
        "graceful_timeout": server.graceful_timeout_s,
        "max_requests": server.max_requests,
        "max_requests_jitter": server.max_requests // 10,  # workers that started together should not leave together
        "backlog": defaults.BACKLOG,
        "logger_class": BridgeLogger,
        "proc_name": "wardgate-proxy",
        "chdir": "/",
        "umask": 0o077,
        "control_socket_disable": True,  # on by default since 25.1: a thread in the process that forks
        "preload_app": False,  # a ZeroMQ context does not survive a fork
        "reuse_port": False,  # connections queued for a dying worker would be reset
        "forwarded_allow_ips": "127.0.0.1",  # unused: server.trusted_proxies decides, in our protocol
    }


class BridgeLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger without handlers of its own: its lines go to the root logger (shared/log.py).

    What it tells at info (booting, exiting, which signal) the arbiter and the workers tell themselves.
    """

    error_log: logging.Logger
    access_log: logging.Logger

    def setup(self, cfg: Any) -> None:
        """Called at start and on reload; our level and format are set by whoever accepted the config."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.loglevel = logging.NOTSET
        for log in (self.error_log, self.access_log):
            log.handlers.clear()
            log.setLevel(logging.NOTSET)
            log.propagate = True
        self.error_log = logging.getLogger("proxy.arbiter")

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """At debug."""
        self.error_log.debug(msg, *args, **kwargs)

    def reopen_files(self) -> None:
        """Nothing is written to files."""

    def close_on_exec(self) -> None:
        """Nothing but standard error is open."""
