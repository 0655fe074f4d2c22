"""shared/config/host.py: users that exist, files that can be read."""

import os
import pwd
from pathlib import Path

import pytest

from shared.config.host import findings, uid_of
from shared.config.schema import Admin, Agent, Config, Target, Upstream, UpstreamTls


def told(config):
    return [(finding.paths[0], finding.text, finding.is_error) for finding in findings(config)]


def test_users_are_looked_up():
    assert uid_of(pwd.getpwuid(0).pw_name) == 0
    assert uid_of("no-such-user-here") is None
    assert uid_of("nul\0byte") is None


def test_an_unknown_user_is_a_warning():
    config = Config(agents=(Agent("a", "zmq-v2", allow_users=(pwd.getpwuid(0).pw_name, "no-such-user-here")),))
    ((path, text, is_error),) = told(config)
    assert path == ("agents", 0, "allow_users", 1)
    assert "no-such-user-here" in text
    assert not is_error


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda name: Config(admin=Admin(token_file=name)), ("admin", "token_file")),
        (lambda name: Config(agents=(Agent("a", "zmq-v2", secret_file=name),)), ("agents", 0, "secret_file")),
        (
            lambda name: Config(upstreams=(Upstream("u", (Target("a:1"),), tls=UpstreamTls(ca_file=name)),)),
            ("upstreams", 0, "tls", "ca_file"),
        ),
    ],
)
def test_files_that_are_given_must_be_readable(tmp_path, make, path):
    good = tmp_path / "good"
    good.write_bytes(b"s")
    good.chmod(0o600)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert told(make("")) == []
    assert told(make(str(good))) == []
    for name, text in ((tmp_path / "absent", "cannot be read"), (empty, "is empty"), (fifo, "is not a file")):
        ((where, what, is_error),) = told(make(str(name)))
        assert where == path
        assert text in what
        assert is_error


def test_a_directory_is_not_a_file(tmp_path):
    ((_, text, is_error),) = told(Config(admin=Admin(token_file=str(tmp_path))))
    assert "is not a file" in text
    assert is_error


def test_a_secret_that_everybody_can_read_is_a_warning(tmp_path):
    secret = Path(tmp_path / "s")
    secret.write_bytes(b"s")
    secret.chmod(0o644)
    ((_, text, is_error),) = told(Config(admin=Admin(token_file=str(secret))))
    assert "by everybody" in text
    assert not is_error


def test_a_credential_of_another_unit_is_a_warning():
    ((_, text, is_error),) = told(Config(admin=Admin(token_file="admin-token")))
    assert "credential" in text
    assert not is_error
