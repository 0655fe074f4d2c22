"""`python -m wardgate_agents.guardrail.measure [FILES]`: precision and recall on labelled texts.

Each line of a file is a JSON object: `id`, `label` (attack, near_miss, pii, plain), `kind`, `text`, and `expect`, a
list of `{"category": ..., "value": ...}`. Both inspections see every line. Personal data count as found only with their
category and exactly their characters; for injections, all lines expect `prompt_injection` or nothing.

Kind: IO (reads the files, prints).
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from wardgate_agents.guardrail.scan import inspect_injection, inspect_personal
from wardgate_agents.guardrail.settings import GuardrailSettings, Rules

DEFAULT_DIRECTORY: Final = Path("tests/data/guardrail")
INJECTION: Final = "prompt_injection"


class Row(NamedTuple):
    """One labelled text."""

    id: str
    label: str
    kind: str
    text: str
    expected: Counter[tuple[str, str]]  # (category, value); the value of an injection is empty


class Counts(NamedTuple):
    """What was found right, found wrongly, and missed."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    def __add__(self, other: "Counts") -> "Counts":  # type: ignore[override]
        return Counts(self.right + other.right, self.wrong + other.wrong, self.missed + other.missed)

    @property
    def precision(self) -> float:
        """1.0 where nothing was found."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0

    @property
    def recall(self) -> float:
        """1.0 where there was nothing to find."""
        return self.right / (self.right + self.missed) if self.right + self.missed else 1.0


class Measured(NamedTuple):
    """Of one file: per category, per kind of attack (right, missed) and of clean text (wrong), and the mistakes."""

    lines: int
    categories: dict[str, Counts]
    kinds: dict[tuple[str, str], tuple[int, int]]  # (label, kind): lines, lines with a mistake
    mistakes: list[str]

    @property
    def overall(self) -> Counts:
        """All categories together."""
        return sum_of(self.categories.values())


def sum_of(counts: Iterable[Counts]) -> Counts:
    """Added up."""
    total = Counts()
    for one in counts:
        total = total + one
    return total


def rows_of(path: Path) -> list[Row]:
    """The labelled texts of a file."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            raw: dict[str, Any] = json.loads(line)
            expected = Counter((one["category"], one.get("value", "")) for one in raw["expect"])
            rows.append(Row(raw["id"], raw["label"], raw["kind"], raw["text"], expected))
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}:{number}: no labelled text: {error!r}") from None
    return rows


def found_in(text: str, rules: Rules) -> Counter[tuple[str, str]]:
    """What the guardrail finds in a text, in the form of Row.expected."""
    found: Counter[tuple[str, str]] = Counter()
    if inspect_injection(text, rules.wanted("prompt_injection", ())).findings:
        found[INJECTION, ""] = 1
    for one in inspect_personal(text, rules.wanted("pii_detection", ())):
        found[one.category, text[one.start : one.end]] += 1
    return found


def measure(rows: Sequence[Row]) -> Measured:
    """Compare, with the default configuration."""
    rules = Rules(GuardrailSettings())
    categories: dict[str, Counts] = {}
    kinds: dict[tuple[str, str], tuple[int, int]] = {}
    mistakes = []
    for row in rows:
        found = found_in(row.text, rules)
        wrong, missed = found - row.expected, row.expected - found
        for part, counts in ((found & row.expected, Counts(1)), (wrong, Counts(0, 1)), (missed, Counts(0, 0, 1))):
            for (category, _), times in part.items():
                categories[category] = sum_of([categories.get(category, Counts()), *[counts] * times])
        lines, bad = kinds.get((row.label, row.kind), (0, 0))
        kinds[row.label, row.kind] = (lines + 1, bad + bool(wrong or missed))
        for word, part in (("wrong", wrong), ("missed", missed)):
            mistakes += [f"{row.id} {row.kind}: {word} {category} {value!r}" for category, value in part]
    return Measured(len(rows), categories, kinds, mistakes)


def table(name: str, measured: Measured) -> str:
    """To be read by people."""
    lines = [f"{name}: {measured.lines} texts", f"  {'category':<24} right wrong missed  precision  recall"]
    for category, counts in [*sorted(measured.categories.items()), ("all", measured.overall)]:
        lines.append(
            f"  {category:<24} {counts.right:5} {counts.wrong:5} {counts.missed:6}"
            f"  {counts.precision:9.3f}  {counts.recall:6.3f}"
        )
    lines.append(f"  {'label / kind':<40} texts without a mistake")
    for (label, kind), (count, bad) in sorted(measured.kinds.items()):
        lines.append(f"  {label + ' / ' + kind:<40} {count - bad:5} of {count}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m wardgate_agents.guardrail.measure", description="Precision and recall on labelled texts."
    )
    parser.add_argument("files", nargs="*", type=Path, help=f"JSONL files (default: those in {DEFAULT_DIRECTORY})")
    parser.add_argument("--mistakes", action="store_true", help="list every text that was judged wrongly")
    arguments = parser.parse_args(argv)
    files = arguments.files or sorted(DEFAULT_DIRECTORY.glob("*.jsonl"))
    if not files:
        sys.stderr.write(f"measure: no files, and none in {DEFAULT_DIRECTORY}\n")
        return 2
    for path in files:
        measured = measure(rows_of(path))
        sys.stdout.write(table(path.name, measured) + "\n")
        if arguments.mistakes:
            sys.stdout.write("".join(f"    {line}\n" for line in measured.mistakes))
        sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
