"""What the configuration needs from this machine: users that exist, files that can be read.

Kind: IO.
"""

import os
import pwd
import stat
from collections.abc import Iterator

from shared.config.finding import Finding, Findings
from shared.config.schema import Config
from shared.config.tree import Path


def uid_of(user: str) -> int | None:
    """The uid of a user of this machine, None if there is no such user."""
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        return None


def findings(config: Config) -> Findings:
    """Users that do not exist yet are warnings: packages and units may still make them. Unreadable files are errors."""
    for i, agent in enumerate(config.agents):
        for j, user in enumerate(agent.allow_users or ()):
            if uid_of(user) is None:
                text = f'there is no user "{user}" on this machine; nobody can register by it'
                yield Finding((("agents", i, "allow_users", j),), text, is_error=False)
    for path, name, is_secret in file_keys(config):
        if name:
            yield from _file(path, name, is_secret=is_secret)


def file_keys(config: Config) -> Iterator[tuple[Path, str, bool]]:
    """(path of the key, its value, whether it is a secret) of every `*_file` key."""
    yield ("admin", "token_file"), config.admin.token_file, True
    for i, upstream in enumerate(config.upstreams):
        if upstream.tls is not None:
            yield ("upstreams", i, "tls", "ca_file"), upstream.tls.ca_file, False
    for i, agent in enumerate(config.agents):
        yield ("agents", i, "secret_file"), agent.secret_file, True


def _file(path: Path, name: str, *, is_secret: bool) -> Findings:
    if not name.startswith("/"):
        text = f'"{name}" is a systemd credential, which this process was not given'
        hint = "the daemon that needs it must have LoadCredential= or SetCredential= in its unit"
        yield Finding((path,), text, hint, is_error=False)
        return
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        yield Finding((path,), f'"{name}" cannot be read: {error.strerror}')
        return
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(status.st_mode):
        yield Finding((path,), f'"{name}" is not a file')
    elif status.st_size == 0:
        yield Finding((path,), f'"{name}" is empty')
    elif is_secret and status.st_mode & stat.S_IROTH:
        yield Finding((path,), f'"{name}" can be read by everybody', f"chmod 0600 {name}", is_error=False)
