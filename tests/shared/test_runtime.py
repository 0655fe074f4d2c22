"""The runtime directory is ours alone, and a daemon's lock is free exactly when nobody holds it."""

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from shared.defaults import SUN_PATH_MAX
from shared.errors import AlreadyRunning, ConfigError
from shared.runtime import Runtime, give_to_group, lock
from tests.support import Child, python, wait_until


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# --- names -----------------------------------------------------------------------------------------


def test_names_stand_below_the_directory() -> None:
    runtime = Runtime("/run/wardgate")
    assert runtime.workers_endpoint == "ipc:///run/wardgate/workers.sock"
    assert runtime.agents_endpoint == "ipc:///run/wardgate/agents/v2"
    assert runtime.admin_socket == "/run/wardgate/admin.sock"
    assert runtime.agentd_segment == "/run/wardgate/agentd.seg"
    assert runtime.proxy_segment == "/run/wardgate/proxy.seg"
    assert runtime.breakers_file == "/run/wardgate/breakers.json"


def test_a_path_that_no_socket_can_have_is_a_config_error() -> None:
    """The limit is on the longest socket path in bytes, not in characters."""
    room = SUN_PATH_MAX - len("/workers.sock")
    assert Runtime("/" + "a" * (room - 1)).problems() == []
    assert f"{SUN_PATH_MAX + 1} bytes" in Runtime("/" + "a" * room).problems()[0]
    assert Runtime("/" + "ä" * (room // 2 + 1)).problems() != []
    with pytest.raises(ConfigError, match="at most 107"):
        Runtime("/" + "a" * 200).prepare()


def test_a_relative_path_is_a_config_error() -> None:
    """Daemons change to `/`."""
    with pytest.raises(ConfigError, match="not an absolute path"):
        Runtime("run").prepare()


# --- the directory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_prepare_makes_both_directories_whatever_the_umask(short_tmp_dir: Path, umask: int) -> None:
    runtime = Runtime(f"{short_tmp_dir}/above/wg")
    before = os.umask(umask)
    try:
        runtime.prepare()
        runtime.prepare()
    finally:
        os.umask(before)
    assert (mode(runtime.dir), mode(runtime.agents_dir)) == (0o711, 0o750)


def test_prepare_keeps_what_an_operator_made_stricter(short_tmp_dir: Path) -> None:
    runtime = Runtime(f"{short_tmp_dir}/wg")
    os.mkdir(runtime.dir, 0o700)
    runtime.prepare()
    assert mode(runtime.dir) == 0o700


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o1777])
def test_prepare_refuses_a_directory_that_others_may_write(short_tmp_dir: Path, bits: int) -> None:
    runtime = Runtime(f"{short_tmp_dir}/wg")
    os.mkdir(runtime.dir)
    os.chmod(runtime.dir, bits)
    with pytest.raises(ConfigError, match="writable by others"):
        runtime.prepare()
    assert os.listdir(runtime.dir) == []


def test_prepare_refuses_an_agents_directory_that_agents_may_write(short_tmp_dir: Path) -> None:
    """Members of the group could replace the socket and answer for agentd."""
    runtime = Runtime(f"{short_tmp_dir}/wg")
    runtime.prepare()
    os.chmod(runtime.agents_dir, 0o770)
    with pytest.raises(ConfigError, match="agents is writable by others"):
        runtime.prepare()


def test_prepare_refuses_a_link_and_a_file(short_tmp_dir: Path) -> None:
    (short_tmp_dir / "real").mkdir()
    (short_tmp_dir / "link").symlink_to(short_tmp_dir / "real")
    (short_tmp_dir / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(ConfigError, match="is not a directory"):
            Runtime(f"{short_tmp_dir}/{name}").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_prepare_refuses_a_directory_of_another_user(short_tmp_dir: Path) -> None:
    runtime = Runtime(f"{short_tmp_dir}/wg")
    os.mkdir(runtime.dir, 0o711)
    os.chown(runtime.dir, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to uid 65534"):
        runtime.prepare()


def test_prepare_says_what_the_system_said(short_tmp_dir: Path) -> None:
    (short_tmp_dir / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runtime\.dir: .*/file: File exists"):
        Runtime(f"{short_tmp_dir}/file/wg").prepare()


def test_an_unknown_group_changes_nothing(short_tmp_dir: Path) -> None:
    fd = os.open(short_tmp_dir, os.O_RDONLY)
    try:
        assert give_to_group(fd, "no-such-group-here") is False
    finally:
        os.close(fd)


# --- locks -----------------------------------------------------------------------------------------

HOLD = """
import signal, sys
from shared.runtime import lock
held = lock(sys.argv[1], "agentd")
print("held", flush=True)
signal.pause()
"""


def test_a_second_daemon_is_told_who_runs_where(short_tmp_dir: Path) -> None:
    directory = str(short_tmp_dir)
    with Child(python("-c", HOLD, directory), short_tmp_dir / "out") as child:
        child.wait_for("held")
        with pytest.raises(AlreadyRunning, match=rf"agentd is already running in {directory} with pid {child.pid};"):
            lock(directory, "agentd")
        lock(directory, "proxy").release()  # another daemon's


def test_the_lock_of_a_killed_holder_is_free(short_tmp_dir: Path) -> None:
    with Child(python("-c", HOLD, str(short_tmp_dir)), short_tmp_dir / "out") as child:
        child.wait_for("held")
        child.kill()
        assert (short_tmp_dir / "agentd.lock").read_text() == f"{child.pid}\n"
        held = lock(str(short_tmp_dir), "agentd")
    assert (short_tmp_dir / "agentd.lock").read_text() == f"{os.getpid()}\n"
    held.release()


def test_a_stale_file_is_taken_and_its_longer_text_gone(short_tmp_dir: Path) -> None:
    path = short_tmp_dir / "agentd.lock"
    path.write_text("99999999 and more text than a pid\n")
    held = lock(str(short_tmp_dir), "agentd")
    assert path.read_text() == f"{os.getpid()}\n"
    held.release()


def test_release_removes_the_file_once(short_tmp_dir: Path) -> None:
    held = lock(str(short_tmp_dir), "run")
    assert held.is_held
    assert mode(held.path) == 0o600
    held.release()
    held.release()
    assert not held.is_held
    assert os.listdir(short_tmp_dir) == []


def test_release_leaves_another_file_of_that_name_alone(short_tmp_dir: Path) -> None:
    held = lock(str(short_tmp_dir), "run")
    os.unlink(held.path)
    other = lock(str(short_tmp_dir), "run")
    held.release()
    assert os.path.exists(other.path)
    other.release()


def test_a_forked_child_does_not_hold_the_lock(short_tmp_dir: Path) -> None:
    """Workers outlive a killed arbiter for a moment, and the next arbiter must not wait for them."""
    script = """
import os, signal, sys
from shared.runtime import lock
held = lock(sys.argv[1], "proxy")
if os.fork() == 0:
    held.release()  # does nothing in a child
    print("worker", flush=True)
    signal.pause()
signal.pause()
"""
    with Child(python("-c", script, str(short_tmp_dir)), short_tmp_dir / "out") as child:
        child.wait_for("worker")
        assert os.path.exists(f"{short_tmp_dir}/proxy.lock")
        with pytest.raises(AlreadyRunning):
            lock(str(short_tmp_dir), "proxy")
        os.kill(child.pid, signal.SIGKILL)
        child.popen.wait()
        lock(str(short_tmp_dir), "proxy").release()


def test_no_two_hold_it_while_others_release_it(short_tmp_dir: Path) -> None:
    """Removing the file on release must not let two in: one by the old file, one by the new."""
    script = """
import os, sys, time
from shared.errors import AlreadyRunning
from shared.runtime import lock
directory, end = sys.argv[1], time.monotonic() + 0.6
taken = 0
while time.monotonic() < end or not taken:
    try:
        held = lock(directory, "agentd")
    except AlreadyRunning:
        continue
    os.close(os.open(directory + "/inside", os.O_CREAT | os.O_EXCL))  # fails if somebody else is in
    os.unlink(directory + "/inside")
    held.release()
    taken += 1
"""
    command = python("-c", script, str(short_tmp_dir))
    children = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for child in children:
        assert child.communicate(timeout=20)[1] == b""
        assert child.returncode == 0
    assert os.listdir(short_tmp_dir) == []


def test_a_lock_file_that_is_a_link_is_refused(short_tmp_dir: Path) -> None:
    (short_tmp_dir / "agentd.lock").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        lock(str(short_tmp_dir), "agentd")


def test_the_lock_survives_a_program_that_it_starts(short_tmp_dir: Path) -> None:
    """Close-on-exec: an agent started by `run` holds nothing of ours."""
    held = lock(str(short_tmp_dir), "run")
    with Child(["sleep", "60"], short_tmp_dir / "out") as child:
        wait_until(lambda: os.path.exists(f"/proc/{child.pid}/fd"))
        held.release()
        lock(str(short_tmp_dir), "run").release()
