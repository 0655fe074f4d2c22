"""Writes the reference pages that are made from tables in the code, or tells which are stale.

    python docs/generate.py            write them
    python docs/generate.py --check    write nothing; print a diff and exit 1 if one is stale

A page is a row of PAGES: its file beside this one, and the function that renders its whole text.

Kind: IO.
"""

import argparse
import difflib
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# (file, module, function); a function takes nothing and returns the page.
PAGES = (
    ("configuration.md", "shared.config.reference", "render_markdown"),
    ("configuration.schema.json", "shared.config.reference", "render_schema"),
    ("metrics.md", "shared.metrics_agentd", "render_markdown"),
    ("bounds.md", "shared.bounds", "render_markdown"),
)


def stale(pages: tuple[tuple[str, str, str], ...] = PAGES, folder: Path = HERE) -> list[tuple[Path, str, str]]:
    """(file, its text now, the text it should have) of every page that is not fresh."""
    found = []
    for name, module, function in pages:
        path = folder / name
        old = path.read_text() if path.exists() else ""
        new: str = getattr(importlib.import_module(module), function)()
        if new != old:
            found.append((path, old, new))
    return found


def main(arguments: list[str]) -> int:
    """0 = all fresh (or written), 1 = stale."""
    parser = argparse.ArgumentParser(description="Write the generated reference pages.")
    parser.add_argument("--check", action="store_true", help="only say, with a diff, which are stale")
    only_check = parser.parse_args(arguments).check
    pages = stale()
    for path, old, new in pages:
        if only_check:
            name = f"docs/{path.name}"
            lines = difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"{name} (fresh)", lineterm="")
            print("\n".join(lines))
        else:
            path.write_text(new)
            print(f"wrote docs/{path.name}")
    if only_check and pages:
        print("stale: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
