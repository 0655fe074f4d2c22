"""Fixtures for every test, and the check that none leaves a process, context or task behind."""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import Clock, NotifySocket, is_running, process_state, wait_until

_PR_SET_CHILD_SUBREAPER = 36
_contexts: "weakref.WeakSet[Any]" = weakref.WeakSet()


# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    # Orphans of our children become our children, so that the check below sees them too.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        import zmq
    except ImportError:
        return
    made = zmq.Context.__init__

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        _contexts.add(self)

    zmq.Context.__init__ = remember  # type: ignore[method-assign, assignment, unused-ignore]


def _children() -> set[int]:
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            pids.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
        except FileNotFoundError:
            continue
    return pids


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """A process or ZeroMQ context that the test made and left is a failure (and is removed)."""
    children = _children()
    contexts = set(_contexts)
    yield
    new = _children() - children
    try:
        wait_until(lambda: not any(map(is_running, new)), 1.0)
    except AssertionError:
        pass
    left = []
    for pid in new:
        if is_running(pid):
            left.append(f"{pid}: {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ')}")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: process_state(pid) in ("", "Z"))  # type: ignore[misc]
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
    assert not left, f"processes left running: {left}"
    if "zmq" in sys.modules:
        open_contexts = [c for c in set(_contexts) - contexts if not c.closed]
        for context in open_contexts:
            context.destroy(linger=0)
        assert not open_contexts, f"{len(open_contexts)} ZeroMQ contexts left open"


@pytest.fixture
def short_tmp_dir() -> Iterator[Path]:
    """A private directory with a path short enough for unix sockets (107 bytes), removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="wg-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def clock() -> Clock:
    """A clock turned by hand."""
    return Clock()


@pytest.fixture
def notify_socket(short_tmp_dir: Path) -> Iterator[NotifySocket]:
    """A socket for $NOTIFY_SOCKET; `.fields()` is what was said."""
    made = NotifySocket(short_tmp_dir / "notify")
    yield made
    made.close()
