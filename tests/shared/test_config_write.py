"""shared/config/write.py: what is written, read again, is the same configuration."""

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shared.config.load import load
from shared.config.schema import Agent, Config, Target, Upstream, UpstreamTls
from shared.config.schema_routes import Filter, Match, Route
from shared.config.write import rows, toml_key, toml_value, write

EXAMPLE = Path(__file__).parents[1] / "data" / "wardgate.example.toml"

_text = st.text(st.characters(codec="utf-8"), max_size=20)
_any = st.recursive(
    st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=10,
)


@given(_any)
def test_a_value_is_read_again_as_it_was(value):
    assert tomllib.loads(f"a = {toml_value(value)}") == {"a": value}


@given(_text)
def test_a_key_is_read_again_as_it_was(name):
    assert tomllib.loads(f"{toml_key(name)} = 1") == {name: 1}


def test_the_example_survives(tmp_path):
    first = load(str(EXAMPLE), {})
    (tmp_path / "w.toml").write_text(write(first.config))
    again = load(str(tmp_path / "w.toml"), {})
    assert again.config == first.config
    assert again.digest == first.digest


@given(config=_any)
def test_tables_inside_tables_survive(config, tmp_path_factory):
    names = ("a", "b.c")  # a name may hold a dot
    whole = Config(
        upstreams=tuple(
            Upstream(name, (Target("x:1"), Target("y:1", 2)), tls=UpstreamTls(sni="x") if name == "a" else None)
            for name in names
        ),
        agents=tuple(
            Agent(name, "zmq-v1", endpoint=f"ipc:///{name}", config=config, events=("response_headers",))
            for name in names
        ),
        routes=(
            Route("r", "a", Match(("h",), "/x", ("GET",)), filters=(Filter("a"), Filter("b.c", mode="observe"))),
            Route("s", "b.c"),
        ),
    )
    path = tmp_path_factory.mktemp("w") / "w.toml"
    path.write_text(write(whole))
    loaded = load(str(path), {"RUNTIME_DIRECTORY": "/run/x"}).config
    assert (loaded.upstreams, loaded.agents, loaded.routes) == (whole.upstreams, whole.agents, whole.routes)


def test_origins_stand_beside_the_values():
    loaded = load(str(EXAMPLE), {"WARDGATE__AGENTS__TRACER__MAX_QUEUE": "7"})
    text = write(loaded.config, loaded.origins)
    assert tomllib.loads(text)["agents"][1]["max_queue"] == 7
    for line in text.splitlines():
        assert not line or line.startswith("[") or "  # " in line
    assert f"# {EXAMPLE}:8\n" in text
    assert "# environment WARDGATE__AGENTS__TRACER__MAX_QUEUE\n" in text
    assert {row.path for row in rows(loaded.config)} == set(loaded.origins)
