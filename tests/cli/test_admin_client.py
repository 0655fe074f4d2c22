"""proxy/cli/admin_client.py: every way in which agentd may not answer has its error, within the time."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy.cli.admin_client import AdminClient, _UnixConnection, find
from shared.errors import AdminRefused, ConfigError, Unreachable
from shared.runtime import Runtime
from shared.wire import admin as wire

Serve = Callable[[bytes], AdminClient]


@pytest.fixture
def serve(short_tmp_dir: Path) -> Iterator[Serve]:
    """A client of something that answers one connection with the given bytes."""
    threads = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(short_tmp_dir / "admin.sock"))
    server.listen()

    def start(answer: bytes) -> AdminClient:
        def run() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return AdminClient(Runtime(str(short_tmp_dir)), timeout_s=0.2)

    yield start
    for thread in threads:
        thread.join()
    server.close()


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d x\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body)


def test_an_answer_is_decoded_and_what_a_newer_agentd_says_beyond_is_ignored(serve: Serve) -> None:
    """Readers take what they know."""
    body = b'{"agents":[],"news":{"a":1}}'
    assert serve(answer(200, body)).agents() == wire.Agents(())


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b'{"error":{"code":"not_found","message":"there is no agent"}}', "there is no agent"),
        (500, b"<html>", "agentd answered 500"),
    ],
)
def test_a_refusal_carries_agentds_words(serve: Serve, status: int, body: bytes, message: str) -> None:
    """Exit code 1."""
    with pytest.raises(AdminRefused, match=message) as refused:
        serve(answer(status, body)).change_breaker("waf", "open")
    assert refused.value.status == status


def test_unhealthy_is_an_answer(serve: Serve) -> None:
    """503 with the report in it."""
    health = wire.Health(wire.Status.UNHEALTHY, False, "1", ())
    assert serve(answer(503, wire.encode(health))).health() == health


@pytest.mark.parametrize("data", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\nabc"])
def test_an_answer_that_breaks_off_is_unreachable(serve: Serve, data: bytes) -> None:
    """Exit code 3."""
    with pytest.raises(Unreachable, match="broke off"):
        serve(data).agents()


def test_silence_is_unreachable_in_time(short_tmp_dir: Path) -> None:
    """A hung agentd: the kernel takes the connection, nobody answers."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short_tmp_dir / "admin.sock"))
        server.listen()
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"did not answer within 0\.1 s"):
            AdminClient(Runtime(str(short_tmp_dir)), timeout_s=0.1).breakers()
        assert time.monotonic() - began < 1


def test_no_socket_is_unreachable_and_a_forbidden_one_refused(
    short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference between exit codes 3 and 1."""
    client = AdminClient(Runtime(str(short_tmp_dir)))
    with pytest.raises(Unreachable, match="agentd is not running"):
        client.agents()

    def forbid(self: _UnixConnection) -> None:
        raise PermissionError

    monkeypatch.setattr(_UnixConnection, "connect", forbid)
    with pytest.raises(AdminRefused, match="permission denied"):
        client.agents()


def test_a_change_carries_its_deadline_and_a_question_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the client gives up."""
    sent: list[dict[str, str]] = []

    def request(self: _UnixConnection, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        sent.append(headers)
        raise ConnectionRefusedError

    monkeypatch.setattr(_UnixConnection, "request", request)
    client = AdminClient(Runtime("/nowhere"), timeout_s=10)
    began = time.monotonic_ns()
    for ask in (client.agents, lambda: client.change_breaker("waf", "open")):
        with pytest.raises(Unreachable):
            ask()
    assert sent[0] == {}
    assert 8.9e9 < int(sent[1][wire.DEADLINE]) - began < 10e9


def test_the_directory_comes_from_the_option_or_the_configuration(short_tmp_dir: Path) -> None:
    """With the option no configuration is read."""
    named = find("/nowhere.toml", str(short_tmp_dir))
    assert (named.runtime.dir, named.config) == (str(short_tmp_dir), None)
    config = short_tmp_dir / "w.toml"
    config.write_text(f'runtime.dir = "{short_tmp_dir}/run"\n')
    found = find(str(config), None)
    assert found.runtime.dir == f"{short_tmp_dir}/run"
    assert found.config is not None
    with pytest.raises(ConfigError, match="--runtime-dir"):
        find("/nowhere.toml", None)


def test_daemons_are_found_although_the_file_is_broken_now(
    short_tmp_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run the one from before. Its problems are said, and a directory that cannot be told is not guessed."""
    config = short_tmp_dir / "w.toml"
    config.write_text(f'runtime.dir = "{short_tmp_dir}/run"\nserver.wrokers = 2\n')
    found = find(str(config), None)
    assert (found.runtime.dir, found.config) == (f"{short_tmp_dir}/run", None)
    said = capsys.readouterr().err
    assert "did you mean `workers`?" in said
    assert f"asking the daemons in {short_tmp_dir}/run" in said
    for text in ("[runtime\n", "runtime.dir = 7\n", 'runtime.drr = "/x"\n', 'runtime.dir = "/a\\n"\n'):
        config.write_text(text)
        with pytest.raises(ConfigError, match="--runtime-dir DIR, by default /run/wardgate"):
            find(str(config), None)
