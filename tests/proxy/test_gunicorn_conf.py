"""proxy/gunicorn_conf.py: what gunicorn is told, and that it takes it."""

import importlib.util
import logging
import os

import pytest
from gunicorn.config import Config as GunicornConfig

from proxy.gunicorn_conf import BridgeLogger, settings, workers_wanted
from proxy.worker import Worker
from shared.config.schema import Config, Server
from tests.support import ROOT


def told(config: Config) -> GunicornConfig:
    made = GunicornConfig()
    for name, value in settings(config).items():
        made.set(name, value)
    return made


def test_gunicorn_accepts_every_setting_and_acts_on_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No control socket thread, no preload, no SO_REUSEPORT, no address from $PORT, no command line."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--bind 0.0.0.0:1 --preload")
    made = told(Config(server=Server(workers=3, max_requests=1000)))
    assert made.control_socket_disable is True
    assert made.preload_app is False
    assert made.reuse_port is False
    assert made.address == []
    assert made.worker_class is Worker
    assert made.workers == 3
    assert (made.max_requests, made.max_requests_jitter) == (1000, 100)


def test_gunicorns_c_parser_is_not_installed() -> None:
    """It would be used where nobody looks."""
    assert importlib.util.find_spec("gunicorn_h1c") is None
    assert "gunicorn_h1c" not in (ROOT / "requirements.lock").read_text().replace("-", "_")


def test_workers_0_is_one_per_core() -> None:
    """Of the cores that this process may use."""
    assert workers_wanted(Config(server=Server(workers=0))) == len(os.sched_getaffinity(0))


def test_never_more_workers_than_fit_twice_into_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with more cores than slots a reload still has room."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(500)))
    assert workers_wanted(Config(server=Server(workers=0))) == 64


def test_its_lines_go_to_our_handler(caplog: pytest.LogCaptureFixture) -> None:
    """One format for everything; what it tells at info is told by us already."""
    logger = BridgeLogger(told(Config()))
    with caplog.at_level(logging.DEBUG):
        logger.info("Booting worker with pid: %s", 1)
        logger.critical("WORKER TIMEOUT (pid:%s)", 1)
    assert [(r.name, r.levelname) for r in caplog.records] == [
        ("proxy.arbiter", "DEBUG"),
        ("proxy.arbiter", "CRITICAL"),
    ]
    assert logging.getLogger("gunicorn.error").handlers == []
