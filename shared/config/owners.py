"""Whether the import names `proxy`, `agentd` and `shared` are this product's and nobody else's.

They are plain words, so another distribution in the same environment, or a directory that happens to
be on the path, could take their place unseen: a program would then run with half of it replaced.

Kind: IO.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

NAMES = ("proxy", "agentd", "shared")
DISTRIBUTION = "wardgate"


def problems() -> list[str]:
    """What is wrong with the owners of our import names; [] if each has exactly one, and it is ours."""
    home = Path(__file__).resolve().parents[2]  # of this very module
    owners = importlib.metadata.packages_distributions()
    found: list[str] = []
    for name in NAMES:
        others = sorted({owner for owner in owners.get(name, ()) if owner.lower() != DISTRIBUTION})
        if others:
            found.append(f"import name {name}: also belongs to {', '.join(others)}; give wardgate its own environment")
        for place in sorted(_places(name)):
            if place.parent != home:
                found.append(f"import name {name}: {place} could be imported in its place; remove it from the path")
    return found


def _places(name: str) -> Iterator[Path]:
    """Every package or module of that name on the path, and the one that an import would take."""
    for entry in sys.path:
        for candidate in (Path(entry or ".", name, "__init__.py"), Path(entry or ".", f"{name}.py")):
            if candidate.is_file():
                resolved = candidate.resolve()
                yield resolved.parent if resolved.name == "__init__.py" else resolved
    spec = importlib.util.find_spec(name)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(place).resolve()
