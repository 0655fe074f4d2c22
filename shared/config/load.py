"""The one entry to the configuration: files, environment and command line in, a checked Config out.

    read -> tree -> build (shape) -> check (relations) -> host (users, files) -> Loaded
                                  \\-> every problem at once, as ConfigError

Whoever holds a `Loaded` holds a configuration in which every key was accepted.

Kind: IO.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from shared.config import check, host
from shared.config.build import Built, build, plain
from shared.config.read import apply_environment, apply_overrides, config_path, read_files, runtime_dir
from shared.config.schema import Config
from shared.config.secrets import resolve
from shared.config.syntax import has_control
from shared.config.tree import Path, Problem, origin_at, show_path
from shared.errors import ConfigError


class Loaded(msgspec.Struct, frozen=True):
    """An accepted configuration.

    digest: 16 hex digits of what the files and overrides say; equal in daemons of one configuration.
    origins: dotted path -> "file:line", "environment WARDGATE__...", "command line" or "default".
    """

    config: Config
    digest: str
    warnings: list[str]
    files: list[str]
    origins: dict[str, str]


def load(
    path: str | None, environ: Mapping[str, str], *, overrides: Mapping[str, Any] = {}, needs_files: bool = True
) -> Loaded:
    """The configuration of `path` (None: $WARDGATE_CONFIG, else the installed one).

    `overrides`: dotted path -> value, from the command line; they win over the environment.
    `needs_files`: whether secrets and certificates must be readable, as they must for a daemon. A command
    that only wants to know where the daemons meet may be run by somebody who can read none of them.
    Raises ConfigError with every problem.
    """
    root, files, problems = read_files(config_path(path, environ))
    if problems:
        # What a file that could not be read whole would have said is unknown: all else would be noise.
        raise _refusal(problems, files)
    problems += apply_environment(root, environ)
    problems += apply_overrides(root, overrides)
    built = build(root)
    problems += built.problems
    config = built.config
    if not config.runtime.dir:
        directory, origin = runtime_dir(environ)
        if has_control(directory):
            raise ConfigError(f"{origin}: runtime.dir: control characters are not allowed")
        config = msgspec.structs.replace(config, runtime=msgspec.structs.replace(config.runtime, dir=directory))
        built.origins["runtime.dir"] = origin
    unresolved = config
    config = resolve(config, environ)
    errors, warnings = _judge(config, built, needs_files)
    problems += errors
    if problems:
        raise _refusal(problems, files)
    origins = {name: str(origin) for name, origin in built.origins.items()}
    return Loaded(config, _digest(unresolved), _lines(warnings, files), files, origins)


def meeting_place(path: str | None, environ: Mapping[str, str]) -> str:
    """runtime.dir of a configuration that is refused for something else; "" where it cannot be told.

    The daemons still run what they read before: whoever looks after them must find them.
    """
    try:
        root, _, problems = read_files(config_path(path, environ))
    except ConfigError:
        return ""
    if problems:
        return ""
    apply_environment(root, environ)
    built = build(root)
    if any(broken[:1] == ("runtime",) for broken in built.broken):
        return ""
    directory = built.config.runtime.dir or runtime_dir(environ)[0]
    return "" if has_control(directory) else directory


def _judge(config: Config, built: Built, needs_files: bool) -> tuple[list[Problem], list[Problem]]:
    """(errors, warnings) of the relations and of the machine, without those that rest on broken keys."""
    errors: list[Problem] = []
    warnings: list[Problem] = []
    for finding in (*check.findings(config, host.uid_of), *(host.findings(config) if needs_files else ())):
        at, *others = finding.paths
        is_moot = any(at[: len(path)] == path for path in built.broken)
        if is_moot or any(_touches(path, built.broken) for path in others):
            continue
        text = finding.text
        if finding.see:
            text += f" (see {origin_at(built.root, finding.see)})"
        problem = Problem(origin_at(built.root, at), show_path(built.root, at), text, finding.hint)
        (errors if finding.is_error else warnings).append(problem)
    return errors, warnings


def _touches(path: Path, broken: Iterable[Path]) -> bool:
    """Whether a key, something around it or something in it has been refused already."""
    return any(path[: len(other)] == other[: len(path)] for other in broken)


def _refusal(problems: list[Problem], files: list[str]) -> ConfigError:
    return ConfigError(_lines(problems, files))


def _lines(problems: list[Problem], files: list[str]) -> list[str]:
    """As text, in the order of files and lines, each once."""
    order = {name: number for number, name in enumerate(files)}
    located = sorted(problems, key=lambda problem: (order.get(problem.origin.source, len(files)), problem.origin.line))
    return list(dict.fromkeys(map(str, located)))


def _digest(config: Config) -> str:
    """Before credentials are resolved: their directory differs from unit to unit."""
    return hashlib.sha256(msgspec.json.encode(plain(config), order="sorted")).hexdigest()[:16]
