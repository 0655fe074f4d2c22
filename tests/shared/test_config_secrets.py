"""shared/config/secrets.py: systemd credentials, and the bytes of a secret."""

from pathlib import Path

import pytest

from shared import defaults as d
from shared.config.load import load
from shared.config.schema import Admin, Agent, Config, Target, Upstream, UpstreamTls
from shared.config.secrets import locate, read_secret, resolve
from shared.errors import ConfigError


def test_a_bare_name_is_a_credential_and_a_path_is_a_path(tmp_path):
    (tmp_path / "token").write_bytes(b"t")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert locate("token", environ) == f"{tmp_path}/token"
    assert locate("other", environ) == "other"
    assert locate("token", {}) == "token"
    assert locate("token", {"CREDENTIALS_DIRECTORY": ""}) == "token"
    assert locate("/etc/token", environ) == "/etc/token"
    assert locate("", environ) == ""


def test_a_directory_that_cannot_be_entered_is_a_config_error_that_names_it(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refused)  # root may enter every directory
    (tmp_path / "w.toml").write_text('[admin]\ntoken_file = "token"\n')
    with pytest.raises(ConfigError, match=r'CREDENTIALS_DIRECTORY: "/run/theirs" .* "token": Permission denied'):
        load(str(tmp_path / "w.toml"), {"CREDENTIALS_DIRECTORY": "/run/theirs"})


def test_every_file_key_is_resolved(tmp_path):
    for name in ("token", "secret", "ca"):
        (tmp_path / name).write_bytes(b"x")
    config = Config(
        admin=Admin(token_file="token"),
        upstreams=(Upstream("u", (Target("a:1"),), tls=UpstreamTls(ca_file="ca")), Upstream("v", (Target("a:1"),))),
        agents=(Agent("a", "zmq-v2", secret_file="secret"),),
    )
    found = resolve(config, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found.admin.token_file == f"{tmp_path}/token"
    assert found.agents[0].secret_file == f"{tmp_path}/secret"
    assert found.upstreams[0].tls is not None
    assert found.upstreams[0].tls.ca_file == f"{tmp_path}/ca"
    assert found.upstreams[1].tls is None


def test_daemons_with_different_credential_directories_agree_on_the_digest(tmp_path):
    (tmp_path / "w.toml").write_text('[admin]\ntoken_file = "token"\n')
    digests = set()
    for unit in ("a", "b"):
        (tmp_path / unit).mkdir()
        (tmp_path / unit / "token").write_bytes(b"t")
        (tmp_path / unit / "token").chmod(0o400)
        loaded = load(str(tmp_path / "w.toml"), {"CREDENTIALS_DIRECTORY": str(tmp_path / unit)})
        assert loaded.config.admin.token_file == str(tmp_path / unit / "token")
        digests.add(loaded.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(("data", "secret"), [(b"s", b"s"), (b"s\n", b"s"), (b"s\r\n", b"s"), (b" s \n\n", b" s \n")])
def test_one_trailing_newline_is_not_part_of_a_secret(tmp_path, data, secret):
    (tmp_path / "s").write_bytes(data)
    assert read_secret(str(tmp_path / "s"), "admin.token_file") == secret


def test_a_secret_that_cannot_be_had_is_a_config_error_that_names_the_key(tmp_path):
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "long").write_bytes(b"x" * (d.SECRET_MAX_BYTES + 1))
    for path in ("bare", str(tmp_path / "absent"), str(tmp_path / "empty"), str(tmp_path / "long")):
        with pytest.raises(ConfigError, match=r"admin\.token_file"):
            read_secret(path, "admin.token_file")
