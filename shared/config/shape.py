"""What the schema says about a key, in the few words that reading, checking and documenting need.

Kind: pure.
"""

import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from shared.config.keys import Table

# What TOML calls the types.
WORDS: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}


class Shape(msgspec.Struct, frozen=True):
    """A key's type taken apart. `hint` is what msgspec converts a leaf to.

    A map is a table whose keys are the user's own words; `item` is the shape of its values.
    """

    kind: Literal["table", "list", "map", "leaf", "any"]
    hint: Any
    default: Any  # msgspec.NODEFAULT: the key is required
    table: type[Table] = Table
    item: "Shape | None" = None
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    is_text: bool = False
    base: Any = None
    metas: tuple[Meta, ...] = ()

    def note(self, name: str) -> str:
        """An entry of the key's `Meta.extra`, "" where there is none."""
        for meta in self.metas:
            if meta.extra and name in meta.extra:
                return str(meta.extra[name])
        return ""

    @property
    def doc(self) -> str:
        return next((meta.description for meta in self.metas if meta.description), "")

    @property
    def has_names(self) -> bool:
        """Whether it is a list of tables that are known by their `name`."""
        return self.item is not None and self.item.kind == "table" and "name" in fields_of(self.item.table)

    def bound(self, which: Literal["ge", "gt", "le", "min_length"]) -> Any:
        """A limit of the range, None where there is none."""
        return next((value for meta in self.metas if (value := getattr(meta, which)) is not None), None)


def shape_of(hint: Any, default: Any = msgspec.NODEFAULT) -> Shape:
    """Take a type annotation of the schema apart."""
    full, metas, optional = hint, [], False
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            metas += [meta for meta in hint.__metadata__ if isinstance(meta, Meta)]
            hint = hint.__origin__
        elif origin in (Union, types.UnionType):
            (hint,) = (arg for arg in get_args(hint) if arg is not types.NoneType)
            optional = True
        else:
            break
    common: dict[str, Any] = {"default": default, "is_optional": optional, "metas": tuple(metas), "base": hint}
    if hint is Any:
        return Shape("any", full, **common)
    if isinstance(hint, type) and issubclass(hint, Table):
        return Shape("table", full, table=hint, **common)
    if get_origin(hint) is tuple:
        return Shape("list", full, item=shape_of(get_args(hint)[0]), **common)
    if get_origin(hint) is dict:
        return Shape("map", full, item=shape_of(get_args(hint)[1]), **common)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return Shape("leaf", full, choices=choices, is_text=bool(choices) or hint is str, **common)


@cache
def fields_of(table: type[Table]) -> dict[str, Shape]:
    """The keys of a table in the schema's order."""
    return {field.encode_name: shape_of(field.type, _default(field)) for field in msgspec.structs.fields(table)}


def _default(field: "msgspec.structs.FieldInfo") -> Any:
    """What the key is when it is not given; of a map an own one each time, here one to look at."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def describe(shape: Shape) -> str:
    """What a value must be, for messages and the reference: "integer from 0 to 64"."""
    if shape.kind == "any":
        return "any value"
    if shape.kind == "table":
        return "table"
    if shape.kind == "list":
        assert shape.item is not None
        least = shape.bound("min_length")
        return f"array of {_plural(shape.item)}{f', at least {least}' if least else ''}"
    if shape.kind == "map":
        assert shape.item is not None
        return f"table of {_plural(shape.item)}"
    if shape.choices:
        return _listed([f'"{choice}"' for choice in shape.choices])
    return f"{WORDS[shape.base]}{_range(shape)}"


def _plural(shape: Shape) -> str:
    return describe(shape) if shape.choices else f"{describe(shape)}s"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _range(shape: Shape) -> str:
    ge, gt, le = shape.bound("ge"), shape.bound("gt"), shape.bound("le")
    if ge is not None and le is not None:
        return f" from {ge} to {le}"
    if gt is not None:
        return f" greater than {gt}{f', at most {le}' if le is not None else ''}"
    if ge is not None:
        return f", at least {ge}"
    return f", at most {le}" if le is not None else ""
