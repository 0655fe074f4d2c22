"""What every pattern of the agent has to hold, whatever it looks for."""

import importlib
import pkgutil
import re
import re._constants as op  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterator
from typing import Any

import pytest

import wardgate_agents.guardrail as package

ONE_CHARACTER = (op.IN, op.LITERAL, op.NOT_LITERAL, op.ANY)


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{found.name}.{name}", value
            elif isinstance(value, tuple):
                yield from ((f"{found.name}.{name}", one.pattern) for one in value if hasattr(one, "pattern"))


def possessive(parsed: Any) -> Iterator[Any]:
    """What is repeated possessively, or taken atomically, anywhere in a pattern."""
    for code, argument in parsed:
        if code is op.POSSESSIVE_REPEAT:
            yield argument[2]
        elif code is op.ATOMIC_GROUP:
            yield argument
        for part in argument if isinstance(argument, (tuple, list)) else [argument]:
            for inner in part if isinstance(part, list) else [part]:
                if isinstance(inner, parser.SubPattern):
                    yield from possessive(inner)


@pytest.mark.parametrize(("name", "pattern"), list(patterns()))
def test_only_single_characters_are_possessive(name: str, pattern: re.Pattern[Any]) -> None:
    """CPython before 3.11.5 (Debian 12 has 3.11.2) matches possessive groups wrongly: its issue 106052."""
    if not isinstance(pattern, re.Pattern):  # RE2 has neither
        return
    for repeated in possessive(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG)):
        assert len(repeated) == 1, name
        assert repeated[0][0] in ONE_CHARACTER, name


def test_the_search_would_find_one() -> None:
    assert len(list(possessive(parser.parse(r"a(?:b(?:cd|e)*+)?")))) == 1
