"""proxy/listen.py: sockets from addresses or from systemd, all or none, and nothing left behind."""

import os
import socket
import stat
from pathlib import Path

import pytest

from proxy import listen
from proxy.listen import Address, ListenFailed, open_all, parse, probe
from tests.support import free_port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
        ("unix:/run/app.sock", Address(path="/run/app.sock")),
    ],
)
def test_addresses_and_their_texts(text: str, address: Address) -> None:
    """What `server.listen` may say, and back."""
    assert parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "8080", ":8080", "::1:80", "host:", "host:65536", "host:-1", "unix:rel", "h:٣"])
def test_what_is_no_address_is_refused_with_the_forms(text: str) -> None:
    """The message shows the three forms."""
    with pytest.raises(ListenFailed, match=r"unix:/path"):
        parse(text)


def test_port_0_is_any_free_one() -> None:
    """The real port is known afterwards, and connections are accepted."""
    opened = open_all(["127.0.0.1:0", "127.0.0.1:0"], 10, {})
    try:
        names = opened.addresses()
        assert len(set(names)) == 2
        for name in names:
            host, _, port = name.rpartition(":")
            socket.create_connection((host, int(port)), 1).close()
    finally:
        opened.close()


def test_a_port_in_use_names_the_port_and_the_way_out() -> None:
    """And the sockets that were already open are closed again."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        with pytest.raises(ListenFailed, match=rf"port {busy} is already in use.*choose another port"):
            open_all([f"127.0.0.1:{port}", f"127.0.0.1:{busy}"], 10, {})
    probe([f"127.0.0.1:{port}"])


def test_probe_leaves_the_port_free() -> None:
    """Bound and let go."""
    port = free_port()
    probe([f"127.0.0.1:{port}"])
    probe([f"127.0.0.1:{port}"])


def test_a_foreign_address_is_said_to_be_one() -> None:
    """192.0.2.1 (TEST-NET-1) is nobody's."""
    with pytest.raises(ListenFailed, match="no such address"):
        open_all(["192.0.2.1:0"], 10, {})


def test_a_unix_socket_is_0660_and_removed(short_tmp_dir: Path) -> None:
    """Whatever the umask is; uvicorn's own would be 0666."""
    path = short_tmp_dir / "s"
    before = os.umask(0)
    try:
        opened = open_all([f"unix:{path}"], 10, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert opened.addresses() == [f"unix:{path}"]
    opened.close()
    assert not path.exists()


def test_a_stale_unix_socket_is_taken_over_a_live_one_is_not(short_tmp_dir: Path) -> None:
    """A second bind would steal the path: first see whether somebody answers."""
    path = short_tmp_dir / "s"
    first = open_all([f"unix:{path}"], 10, {})
    with pytest.raises(ListenFailed, match="another process is listening"):
        open_all([f"unix:{path}"], 10, {})
    assert path.exists()
    for sock in first.sockets:
        sock.close()  # as if killed: the file stays
    second = open_all([f"unix:{path}"], 10, {})
    first.close()
    assert path.exists(), "the first one's file is not the second one's"
    second.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(short_tmp_dir: Path) -> None:
    """No configuration makes us delete somebody's file."""
    path = short_tmp_dir / "f"
    path.write_text("precious")
    with pytest.raises(ListenFailed, match="not a socket"):
        open_all([f"unix:{path}"], 10, {})
    assert path.read_text() == "precious"


def test_passed_sockets_win_and_the_variables_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """LISTEN_FDS with our pid: those descriptors and no others; children must not take them for theirs."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        duplicate = os.dup(given.fileno())
        monkeypatch.setattr(listen, "SD_LISTEN_FDS_START", duplicate)
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
        opened = open_all(["192.0.2.1:80"], 10, environ)
        assert opened.is_passed
        assert opened.addresses() == [f"127.0.0.1:{given.getsockname()[1]}"]
        assert environ == {}
        opened.close()


def test_passed_sockets_of_another_process_are_not_ours() -> None:
    """LISTEN_PID of somebody else."""
    opened = open_all(["127.0.0.1:0"], 10, {"LISTEN_PID": "1", "LISTEN_FDS": "1"})
    assert not opened.is_passed
    opened.close()


def test_a_passed_descriptor_that_does_not_listen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said at the start, not at the first accept."""
    monkeypatch.setattr(listen, "SD_LISTEN_FDS_START", os.dup(0))
    with pytest.raises(ListenFailed, match="passed by the service manager"):
        open_all([], 10, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    left = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    monkeypatch.setattr(listen, "SD_LISTEN_FDS_START", left.detach())
    with pytest.raises(ListenFailed, match="passed by the service manager: not a listening stream socket"):
        open_all([], 10, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
