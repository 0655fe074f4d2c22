"""Secrets and certificates: the paths that `*_file` keys mean, and the bytes behind them.

A bare name is a systemd credential (systemd.exec(5), LoadCredential=): it is looked for in
$CREDENTIALS_DIRECTORY, which only the unit that loads it has. A daemon reads only the secrets that it
uses, so a credential that is absent is an error where it is read, and a warning in `wardgate check`.

Kind: IO.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from shared import defaults as d
from shared.config.schema import Config
from shared.errors import ConfigError


def locate(name: str, environ: Mapping[str, str]) -> str:
    """The absolute path behind a `*_file` key; a credential that was not given stays a bare name.

    ConfigError, naming the directory, where it cannot be looked into.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if not name or "/" in name or not directory.startswith("/"):
        return name
    path = f"{directory}/{name}"
    try:
        return path if Path(path).exists() else name
    except OSError as error:  # not "there is none": whoever set the variable has given us somebody else's directory
        raise ConfigError(
            f'environment CREDENTIALS_DIRECTORY: "{directory}" cannot be searched for "{name}": {error.strerror}; '
            "unset it outside the unit that it belongs to"
        ) from None


def resolve(config: Config, environ: Mapping[str, str]) -> Config:
    """The configuration with credentials replaced by the files they are in."""
    replace = msgspec.structs.replace
    upstreams = tuple(
        replace(upstream, tls=replace(upstream.tls, ca_file=locate(upstream.tls.ca_file, environ)))
        if upstream.tls is not None
        else upstream
        for upstream in config.upstreams
    )
    agents = tuple(replace(agent, secret_file=locate(agent.secret_file, environ)) for agent in config.agents)
    admin = replace(config.admin, token_file=locate(config.admin.token_file, environ))
    return replace(config, admin=admin, upstreams=upstreams, agents=agents)


def read_secret(path: str, key: str) -> bytes:
    """The secret in a file, without a trailing newline. ConfigError, naming `key`, if it cannot be had."""
    if not path.startswith("/"):
        raise ConfigError(f'{key}: the systemd credential "{path}" was not given to this process')
    try:
        with open(path, "rb") as file:
            secret = file.read(d.SECRET_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f'{key}: "{path}" cannot be read: {error.strerror}') from None
    secret = secret.removesuffix(b"\n").removesuffix(b"\r")
    if not secret or len(secret) > d.SECRET_MAX_BYTES:
        raise ConfigError(f'{key}: "{path}" must hold 1 to {d.SECRET_MAX_BYTES} bytes')
    return secret
