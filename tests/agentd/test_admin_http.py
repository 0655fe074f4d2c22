"""agentd/admin_http.py: who is admitted, and that no client can hold or break the server."""

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentd import admin_http
from agentd.admin import Admin
from agentd.admin_http import AdminServer, Pages, address_of, bind_tcp, bind_unix
from shared.defaults import ADMIN_SLICE_MS
from shared.errors import WardgateError
from shared.wire import admin as wire
from tests.agentd.fake_state import FakeState
from tests.support import Clock, until

TOKEN = "correct horse"


Serving = tuple[FakeState, str, tuple[str, int]]


@asynccontextmanager
async def serving(directory: Path, token: str = "") -> AsyncIterator[Serving]:
    state = FakeState()
    path = str(directory / "admin.sock")
    sockets = [bind_unix(path), bind_tcp("127.0.0.1:0")]
    address = sockets[1].getsockname()
    server = AdminServer(Admin(state, token), sockets)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.has_started)
    try:
        yield state, path, address
    finally:
        server.stop()
        await asyncio.wait_for(task, 5)
        assert all(sock.fileno() < 0 for sock in sockets)


async def exchange(where: "str | tuple[str, int]", data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes, return everything until the server closes."""
    if isinstance(where, str):
        reader, writer = await asyncio.open_unix_connection(where)
    else:
        reader, writer = await asyncio.open_connection(*where)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), timeout_s)
    finally:
        writer.close()


def get(path: str, host: str = "localhost", method: str = "GET", extra: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode()


async def test_both_sockets_answer_and_close(short_tmp_dir: Path) -> None:
    """One request a connection, said in the answer; HEAD has no body; nothing is cached."""
    async with serving(short_tmp_dir) as (_, path, address):
        for where in (path, address):
            answer = await exchange(where, get("/health/live"))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in head.lower()
            assert b"cache-control: no-store" in head.lower()
            assert json.loads(body)["status"] == "live"
        answer = await exchange(address, get("/health/live", method="HEAD"))
        assert answer.endswith(b"\r\n\r\n")
        assert b"content-length: 4" in answer.lower()
        answer = await exchange(address, get("/metrics"))
        assert b"text/plain; version=0.0.4" in answer


async def test_the_admin_sockets_mode_and_peer(short_tmp_dir: Path) -> None:
    """0600 (0660 only where the admin group exists), and a change is audited with the peer's uid and pid."""
    async with serving(short_tmp_dir) as (state, path, _):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        assert mode == (0o600 if admin_http.admin_gid() is None else 0o660)
        answer = await exchange(path, get("/api/breakers/waf/open", method="POST", extra="Content-Length: 0\r\n"))
        assert answer.startswith(b"HTTP/1.1 200")
        assert state.audited == [(f"uid {os.getuid()} pid {os.getpid()}", "breaker.open", "waf", "closed")]


async def test_tcp_changes_need_the_token_end_to_end(short_tmp_dir: Path) -> None:
    """The header reaches the table."""
    async with serving(short_tmp_dir, TOKEN) as (state, _, address):
        body = '{"failure_threshold": 3}'
        extra = f"Content-Length: {len(body)}\r\n"
        request = get("/api/breakers/waf/set", method="PATCH", extra=extra) + body.encode()
        assert (await exchange(address, request)).startswith(b"HTTP/1.1 401")
        extra += f"Authorization: Bearer {TOKEN}\r\n"
        request = get("/api/breakers/waf/set", method="PATCH", extra=extra) + body.encode()
        assert (await exchange(address, request)).startswith(b"HTTP/1.1 200")
        assert state.changes == [("waf", "set", wire.BreakerChange(failure_threshold=3))]
        assert (await exchange(address, get("/health", host="evil.example"))).startswith(b"HTTP/1.1 421")


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
async def test_another_user_is_refused_whatever_the_sockets_mode(
    short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SO_PEERCRED decides, not the file's mode; a member of the admin group is let in by its groups."""
    os.chmod(short_tmp_dir, 0o755)
    async with serving(short_tmp_dir) as (_, path, _):
        os.chmod(path, 0o666)
        code = (
            "import os, socket, sys; os.setgroups([int(sys.argv[2])]); os.setgid(4242); os.setuid(4242);"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "s.sendall(b'GET /health/live HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n');"
            "sys.stdout.write(s.recv(4096).decode())"
        )

        async def status_of(group: int) -> str:
            child = await asyncio.create_subprocess_exec(
                "/usr/bin/env", "python3", "-c", code, path, str(group), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await asyncio.wait_for(child.communicate(), 20)
            return out.decode().split(" ")[1]

        assert await status_of(4243) == "403"
        monkeypatch.setattr(admin_http, "admin_gid", lambda: 4243)
        assert await status_of(4243) == "200"
        assert await status_of(4244) == "403"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"431"),
        (b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n" + b"x" * 90_000, b"413"),
        (b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
    ids=["no host", "two hosts", "nonsense", "long head", "long body", "bad chunk"],
)
async def test_bad_http_is_answered_and_closed(short_tmp_dir: Path, data: bytes, status: bytes) -> None:
    """As JSON, one answer, and the connection ends."""
    async with serving(short_tmp_dir) as (_, _, address):
        answer = await exchange(address, data)
        assert answer.split(b" ")[1] == status, answer
        assert answer.count(b"HTTP/1.1") == 1
        json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    "data",
    [b"", b"GET /health HT", b"POST /api/breakers/waf/set HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab"],
    ids=["silent", "half a head", "half a body"],
)
async def test_a_slow_client_is_cut(short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """After ADMIN_REQUEST_S, whatever it was doing."""
    monkeypatch.setattr(admin_http, "ADMIN_REQUEST_S", 0.1)
    async with serving(short_tmp_dir) as (_, _, address):
        try:
            assert await exchange(address, data, 3.0) == b""
        except ConnectionResetError:
            pass


async def test_idle_connections_cannot_lock_others_out_for_long(
    short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond ADMIN_MAX_CONNECTIONS a new one is closed at once; when the idle ones time out there is room again."""
    monkeypatch.setattr(admin_http, "ADMIN_REQUEST_S", 0.3)
    monkeypatch.setattr(admin_http, "ADMIN_MAX_CONNECTIONS", 3)
    async with serving(short_tmp_dir) as (_, _, address):
        idle = [await asyncio.open_connection(*address) for _ in range(3)]
        try:
            assert await exchange(address, get("/health/live")) == b""
        except ConnectionResetError:
            pass

        async def is_served() -> bool:
            try:
                return b" 200 " in await exchange(address, get("/health/live"))
            except ConnectionResetError:
                return False

        for _ in range(100):
            if await is_served():
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("never served again")
        for _, writer in idle:
            writer.close()


async def test_idle_tcp_connections_leave_the_unix_socket_alone(
    short_tmp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each listener has places of its own, and at the unix socket those who are not admitted take none."""
    monkeypatch.setattr(admin_http, "ADMIN_MAX_CONNECTIONS", 3)
    async with serving(short_tmp_dir) as (_, path, address):
        idle = [await asyncio.open_connection(*address) for _ in range(5)]
        assert b" 200 " in await exchange(path, get("/health/live"))
        monkeypatch.setattr(admin_http, "_is_admitted", lambda sock, uid, gid: False)
        strangers = [await asyncio.open_unix_connection(path) for _ in range(3)]
        for reader, _ in strangers:
            assert await reader.read(13) == b"HTTP/1.1 403 "
        try:
            assert await exchange(path, get("/health/live")) == b"", "strangers have as many places to be refused in"
        except ConnectionError:
            pass
        monkeypatch.undo()
        monkeypatch.setattr(admin_http, "ADMIN_MAX_CONNECTIONS", 3)
        assert b" 200 " in await exchange(path, get("/health/live"))
        for _, writer in idle + strangers:
            writer.close()


async def test_a_change_whose_client_has_hung_up_is_not_made(short_tmp_dir: Path) -> None:
    """agentd stood still; request and hang-up were both there when it went on."""
    async with serving(short_tmp_dir) as (state, path, _):
        with socket.socket(socket.AF_UNIX) as client:  # blocking: the server's loop turns when this is over
            client.connect(path)
            client.sendall(get("/api/breakers/waf/open", method="POST", extra="Content-Length: 0\r\n"))
        assert b" 200 " in await exchange(path, get("/health/live"))
        assert state.changes == []


async def test_http_1_0_without_host_is_served_on_loopback(short_tmp_dir: Path) -> None:
    """Old probes."""
    async with serving(short_tmp_dir) as (_, _, address):
        assert b" 200 " in await exchange(address, b"GET /health/live HTTP/1.0\r\n\r\n")


async def test_a_token_of_any_bytes_end_to_end(short_tmp_dir: Path) -> None:
    """Compared as the bytes that the file has."""
    token = "t\u00f6k\u00e9n".encode()
    async with serving(short_tmp_dir, token.decode("latin-1")) as (state, _, address):
        extra = b"POST /api/breakers/waf/open HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
        request = extra + b"Authorization: Bearer " + token + b"\r\n\r\n"
        assert b" 200 " in await exchange(address, request)
        assert len(state.changes) == 1


async def test_a_client_that_leaves_in_the_middle_is_forgotten(short_tmp_dir: Path) -> None:
    """No task, no connection stays."""
    before = len(asyncio.all_tasks())
    async with serving(short_tmp_dir) as (_, _, address):
        for _ in range(20):
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"POST /api/breakers/waf/set HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab")
            writer.close()
        await until(lambda: len(asyncio.all_tasks()) == before + 1)
        assert b" 200 " in await exchange(address, get("/health/live"))


def test_an_address_in_use_is_an_error_that_names_it() -> None:
    """agentd ends with this text and does not start half."""
    first = bind_tcp("127.0.0.1:0")
    with first, pytest.raises(WardgateError, match=rf"cannot listen on {address_of(first)}: Address already in use"):
        bind_tcp(address_of(first))
    with pytest.raises(WardgateError, match=r"admin\.listen: no-such-host\.invalid:1"):
        bind_tcp("no-such-host.invalid:1")


def test_what_lies_at_the_sockets_path_is_removed_only_if_it_is_a_socket(
    short_tmp_dir: Path,
) -> None:
    """A socket is what a killed agentd left; anything else is somebody's."""
    path = short_tmp_dir / "admin.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    bind_unix(str(path)).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(WardgateError, match="is no socket"):
        bind_unix(str(path))
    assert path.read_text() == "precious"


def test_ipv6_listens_on_ipv6_alone() -> None:
    """`[::1]:port` beside `127.0.0.1:port` is no conflict."""
    try:
        sock = bind_tcp("[::1]:0")
    except WardgateError:
        pytest.skip("no IPv6 here")
    assert address_of(sock).startswith("[::1]:")
    sock.close()


# --- long answers ----------------------------------------------------------------------------------


async def turns_while(pages: Pages, pieces: Iterator[bytes]) -> tuple[list[bytes], int]:
    """What came of the pieces, and how often the loop turned meanwhile."""
    turns = 0
    making = asyncio.ensure_future(pages.made("/metrics", pieces))
    while not making.done():
        await asyncio.sleep(0)
        turns += 1
    return making.result(), turns


async def test_the_loop_turns_while_a_long_answer_is_made(clock: Clock) -> None:
    """After each ADMIN_SLICE_MS, not after each piece: here after every fourth."""

    def pieces() -> Iterator[bytes]:
        for _ in range(400):
            clock.ms(ADMIN_SLICE_MS / 4)
            yield b"x" * 1_000

    parts, turns = await turns_while(Pages(clock), pieces())
    assert 100 <= turns <= 105
    assert b"".join(parts) == b"x" * 400_000
    assert max(map(len, parts)) < 70_000


async def test_many_who_ask_at_once_share_a_page_that_is_begun_after_they_asked(clock: Clock) -> None:
    """One that is under way is too old for them; of those who wait only the first has one made."""
    pages = Pages(clock)
    begun: list[int] = []

    def page(number: int) -> Iterator[bytes]:
        begun.append(number)
        for _ in range(10):
            clock.ms(ADMIN_SLICE_MS)
            yield b"%d" % number

    first = asyncio.ensure_future(pages.made("/metrics", page(0)))
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(pages.made("/metrics", page(number))) for number in range(1, 40)]
    made = [b"".join(parts) for parts in await asyncio.gather(first, *others)]
    assert begun == [0, 1]
    assert made == [b"0" * 10] + [b"1" * 10] * 39
    assert pages._page is None


async def test_a_page_that_cannot_be_made_is_500_and_the_next_one_is_made(short_tmp_dir: Path) -> None:
    """An answer of the usual form, one traceback in the log, and no lock left behind."""

    def broken() -> Iterator[bytes]:
        yield b"wardgate_up 1\n"
        raise ZeroDivisionError

    async with serving(short_tmp_dir) as (state, _, address):
        whole = state.metrics
        state.metrics = lambda accept: ("text/plain", broken())
        answer = await exchange(address, get("/metrics"))
        assert answer.startswith(b"HTTP/1.1 500")
        assert b'"code":"internal"' in answer
        state.metrics = whole
        head, _, body = (await exchange(address, get("/metrics"))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-length: 1400" in head.lower()
        assert len(body) == 1_400
