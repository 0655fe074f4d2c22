"""`python -P -m agentd`: configuration, lock, loop; what goes wrong before the loop becomes an exit code.

    exit code   0 stopped by a signal   1 cannot start, or running already   2 usage or configuration

Nothing is created or bound before the lock is held, and nothing before the configuration is accepted:
a refused start leaves no trace.

Kind: IO.
"""

import argparse
import faulthandler
import logging
import os
import sys
from functools import partial
from typing import NoReturn

import uvloop

from agentd.daemon import Daemon
from agentd.reload import Fresh
from shared import descriptors, log
from shared.config.load import Loaded, load
from shared.config.read import config_path
from shared.config.secrets import read_secret
from shared.errors import ConfigError, WardgateError
from shared.notify import Notify
from shared.runtime import Runtime, lock

_log = logging.getLogger("agentd")
EXIT_REFUSED = 1
EXIT_CONFIG = 2


def main(argv: list[str] | None = None) -> int:
    """The daemon's whole life."""
    parser = argparse.ArgumentParser(prog="wardgate agentd", description="Asks the agents; see wardgate agentd --help.")
    parser.add_argument("-c", "--config", metavar="FILE", help="default: $WARDGATE_CONFIG, else the installed one")
    path = parser.parse_args(argv).config
    faulthandler.enable()  # a crash in a library leaves a traceback
    os.umask(0o077)  # what is for others says so where it is made
    path = os.path.abspath(config_path(path, os.environ))  # whatever the directory is when it is read again
    try:
        loaded = load(path, os.environ)
        log.configure(loaded.config.logging.level, loaded.config.logging.format)
        token = _token(loaded)
        for warning in loaded.warnings:
            _log.warning("configuration: %s", warning)
        descriptors.raise_limit()
        runtime = Runtime(loaded.config.runtime.dir)
        runtime.prepare()
        held = lock(runtime.dir, "agentd")
    except ConfigError as error:
        return _refused(EXIT_CONFIG, error.problems)
    except (WardgateError, OSError) as error:
        return _refused(EXIT_REFUSED, [str(error)])
    try:
        return uvloop.run(Daemon(loaded, runtime, token, Notify(os.environ), partial(_fresh, path)).run())
    except ConfigError as error:
        return _refused(EXIT_CONFIG, error.problems)
    except WardgateError as error:
        return _refused(EXIT_REFUSED, [str(error)])
    finally:
        held.release()


def _fresh(path: str) -> Fresh:
    """For a reload: what the files say now. Raises ConfigError."""
    loaded = load(path, os.environ)
    return Fresh(loaded, _token(loaded))


def _token(loaded: Loaded) -> str:
    path = loaded.config.admin.token_file
    return read_secret(path, "admin.token_file").decode("latin-1") if path else ""


def _refused(code: int, problems: list[str]) -> int:
    """To a person at a terminal: no log format, whatever the configuration says of one."""
    for problem in problems:
        sys.stderr.write(f"wardgate agentd: {problem}\n")
    return code


def run() -> NoReturn:
    """For `python -m agentd`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
