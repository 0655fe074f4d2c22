"""shared/config/reload.py: what a reload cannot change is what the schema says."""

from typing import Any

import msgspec
import pytest

from shared.config.reload import in_short, needs_restart
from shared.config.schema import Admin, Agent, Audit, Config, Logging, Runtime, Server
from shared.config.shape import Shape, fields_of, shape_of

BOTH = ("agentd", "proxy")


def restart_keys(shape: Shape, path: str) -> list[str]:
    found = []
    for name, field in fields_of(shape.table).items():
        inner = field.item if field.kind == "list" else field
        if inner is not None and inner.kind == "table":
            found += restart_keys(inner, f"{path}{name}.")
        elif field.note("change") == "restart":
            found.append(f"{path}{name}")
    return found


def other(value: Any) -> Any:
    if isinstance(value, tuple):
        return (*value, "127.0.0.1:1")
    return f"{value}/x" if isinstance(value, str) else value + 1


def changed(config: Config, path: str) -> Config:
    table, _, name = path.partition(".")
    inner = getattr(config, table)
    return msgspec.structs.replace(
        config, **{table: msgspec.structs.replace(inner, **{name: other(getattr(inner, name))})}
    )


KEYS = restart_keys(shape_of(Config), "")


def test_there_are_such_keys_and_none_in_a_list_of_tables() -> None:
    """`needs_restart` does not look into agents, upstreams and routes."""
    assert {"server.listen", "runtime.dir", "admin.listen"} <= set(KEYS)
    assert {key.partition(".")[0] for key in KEYS} <= {"server", "runtime", "admin", "audit", "logging"}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_needs_a_restart_is_refused(key: str) -> None:
    """By whoever reads it, by name; the other daemon does not mind."""
    problems = needs_restart(Config(), changed(Config(), key), BOTH)
    assert [problem.partition(":")[0] for problem in problems] == [key]
    assert "needs a restart of" in problems[0]
    refusing = [daemon for daemon in BOTH if needs_restart(Config(), changed(Config(), key), (daemon,))]
    assert refusing == {"server": ["proxy"], "admin": ["agentd"], "audit": ["agentd"]}.get(
        key.partition(".")[0], list(BOTH)
    )


def test_everything_else_can_be_reloaded() -> None:
    new = Config(
        server=Server(workers=7),
        admin=Admin(token_file="/t"),
        agents=(Agent("a", "zmq-v2"),),
        audit=Audit(path="/elsewhere"),
        logging=Logging(level="debug", format="text"),
    )
    assert needs_restart(Config(), new, BOTH) == []


def test_several_are_told_at_once() -> None:
    new = Config(runtime=Runtime(dir="/x"), server=Server(listen=("127.0.0.1:1",)))
    assert [p.partition(":")[0] for p in needs_restart(Config(), new, BOTH)] == ["server.listen", "runtime.dir"]


def test_a_refusal_in_one_line() -> None:
    assert in_short(["a: b"]) == "a: b"
    assert in_short(["a: b", "c", "d"]) == "a: b (and 2 more, see the log)"
