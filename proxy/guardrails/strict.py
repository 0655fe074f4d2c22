"""Reads JSON only where every reader would read the same.

A model's server parses the body again with a parser of its own. Where two parsers may differ, what was inspected
need not be what the model gets, so such a body is refused: invalid UTF-8, a byte order mark, a key twice in one
object, NaN and numbers beyond a double, lone surrogates, control characters in strings, nesting beyond
GUARDRAIL_DEPTH_MAX (checked by who walks it). What may be done about a refusal is not decided here.

Kind: pure.
"""

import json
import re
from json import JSONDecodeError
from math import isinf
from typing import Any, Final, NoReturn

from shared.defaults import GUARDRAIL_VALUES_MAX
from shared.errors import Uninspectable

_SIGNS_MAX: Final = 4 * GUARDRAIL_VALUES_MAX  # of which some may be in strings
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class NotJson(Uninspectable):
    """It is no JSON at all, as opposed to JSON that is refused."""


def parse(data: bytes) -> Any:
    """The value of one JSON text; raises Uninspectable, as NotJson where it is none."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise NotJson("is not UTF-8") from None
    return parse_text(text)


def parse_text(text: str) -> Any:
    """The same for text that is decoded."""
    if text.count("{") + text.count("[") > _SIGNS_MAX or text.count('":') > _SIGNS_MAX:
        raise Uninspectable("has too many values", is_too_large=True)  # before it costs the loop 0.2 s to count them
    try:
        value = _decode(text)
    except RecursionError:
        raise Uninspectable("is nested too deeply") from None
    except JSONDecodeError:
        raise NotJson("is not JSON") from None
    except ValueError:  # int() with more digits than the interpreter converts
        raise Uninspectable("has a number that is too long") from None
    if _SURROGATE.search(text) is not None:
        try:
            dump(value)
        except UnicodeEncodeError:
            raise Uninspectable("has half of a surrogate pair") from None
        except RecursionError:
            raise Uninspectable("is nested too deeply") from None
    return value


def dump(value: Any) -> bytes:
    """What `parse` gave, perhaps edited, as JSON without spaces."""
    return dump_text(value).encode()


def dump_text(value: Any) -> str:
    return _encode(value)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Uninspectable("has a key twice in one object")
    return made


def _constant(name: str) -> NoReturn:
    raise Uninspectable("has a number that is not JSON's")


def _float(digits: str) -> float:
    value = float(digits)
    if isinf(value):
        raise Uninspectable("has a number beyond a double's range")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
