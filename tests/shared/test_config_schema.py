"""shared/config/schema.py: every key is documented, its default is in range, and importing it is cheap."""

import subprocess
import sys

import msgspec
import pytest

from shared.config import former, later
from shared.config.build import walk_keys
from shared.config.schema import Agent, Config
from shared.config.shape import Shape, describe, fields_of, shape_of
from shared.events import SUPPORTED, EventKind


def all_shapes(shape, prefix=""):
    """(generic path, shape) of every key."""
    for name, field in fields_of(shape.table).items():
        path = f"{prefix}.{name}".lstrip(".")
        yield path, field
        inner = field.item if field.kind == "list" else field
        if inner is not None and inner.kind == "table":
            yield from all_shapes(inner, path + ("[]" if field.kind == "list" else ""))


KEYS = dict(all_shapes(shape_of(Config, None)))


@pytest.mark.parametrize("path", KEYS)
def test_a_key_has_documentation_a_way_to_change_it_and_a_valid_default(path):
    shape: Shape = KEYS[path]
    assert shape.doc.endswith("."), "a sentence"
    assert shape.note("change") in ("reload", "restart")
    assert describe(shape)
    if shape.kind == "leaf" and shape.default not in (msgspec.NODEFAULT, None):
        assert msgspec.convert(shape.default, shape.hint) == shape.default
        # An integer as the default of a number would make equal configurations differ in their digest.
        assert type(shape.default) is (str if shape.choices else shape.base)
    if shape.kind == "map":
        assert shape.item is not None
        assert shape.item.choices
    if shape.kind == "leaf" and shape.base in (int, float):
        assert shape.bound("le") is not None, "numbers are bounded on both sides"
        assert shape.bound("ge") is not None or shape.bound("gt") is not None


def test_every_table_says_what_it_is():
    for shape in KEYS.values():
        table = shape.item if shape.kind == "list" and shape.item is not None else shape
        if table.kind == "table":
            assert table.table.__doc__


def test_no_key_is_both_here_and_later():
    assert set(KEYS) == set(walk_keys(shape_of(Config, None), ""))
    assert not set(KEYS) & set(later.KEYS)
    assert not set(former.KEYS) & {*KEYS, *later.KEYS}
    for path, values in later.VALUES.items():
        shape = KEYS[path.removesuffix("[]")]
        choices = shape.choices or (shape.item.choices if shape.item else ())
        assert choices
        assert not set(choices) & set(values)


def test_the_events_of_an_agent_are_those_that_are_sent():
    shape = fields_of(Agent)["events"]
    assert shape.item is not None
    assert shape.item.choices == tuple(kind.wire_name for kind in SUPPORTED)
    assert set(shape.item.choices) == {kind.wire_name for kind in EventKind} - {"configure"}


def test_importing_the_schema_pulls_in_nothing_heavy():
    """Workers and every command import it."""
    code = "import shared.config.schema, sys; print(*sys.modules)"
    modules = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    )
    assert not modules & {"tomllib", "click", "zmq", "asyncio", "shared.config.load", "orjson"}
