"""What was found and where: findings, their byte positions, and the text without them.

Positions inside this package are characters of the content as it was received; bytes come into being
here only, when an answer is written. No search may be put here.

Kind: pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Severity = Literal["low", "medium", "high", "critical"]


class Finding(NamedTuple):
    """One thing found. `start` and `end` are characters of the content, end exclusive."""

    category: str
    description: str
    severity: Severity
    confidence: float
    start: int
    end: int


def byte_spans(content: str, findings: Sequence[Finding]) -> list[tuple[int, int]]:
    """Each finding's place in UTF-8 bytes, in the order given. One pass over the text, however many there are."""
    if content.isascii():
        return [(one.start, one.end) for one in findings]
    at: dict[int, int] = {}
    done_chars = done_bytes = 0
    for char in sorted({place for one in findings for place in (one.start, one.end)}):
        # a lone surrogate has no UTF-8, and no JSON text can hold one; it counts three as its kind would
        done_bytes += len(content[done_chars:char].encode("utf-8", "surrogatepass"))
        done_chars = char
        at[char] = done_bytes
    return [(at[one.start], at[one.end]) for one in findings]


def settle(findings: Iterable[Finding], rank: Mapping[str, int]) -> list[Finding]:
    """Sorted and without overlaps: the better rank (smaller) wins, of equals the union of the places.

    A finding that loses keeps what reaches beyond the winners, so that no found character is left in a redacted text.
    """
    by_category: dict[str, list[Finding]] = {}
    for one in sorted(findings, key=lambda found: found.start):
        if one.start >= one.end:
            continue
        same = by_category.setdefault(one.category, [])
        if same and one.start < same[-1].end:
            best = max(same[-1], one, key=lambda found: found.confidence)
            same[-1] = best._replace(start=same[-1].start, end=max(same[-1].end, one.end))
        else:
            same.append(one)
    settled: list[Finding] = []
    for category in sorted(by_category, key=lambda name: (rank.get(name, len(rank)), name)):
        settled = _with_the_rest(settled, by_category[category])
    return settled


def _with_the_rest(taken: list[Finding], others: list[Finding]) -> list[Finding]:
    """`taken`, and of the others what is beside them; both are in order and without overlaps, and so is the result."""
    out: list[Finding] = []
    at = 0
    for one in others:
        start = one.start
        while at < len(taken) and taken[at].end <= start:
            out.append(taken[at])
            at += 1
        while at < len(taken) and taken[at].start < one.end:
            if start < taken[at].start:
                out.append(one._replace(start=start, end=taken[at].start))
            start = taken[at].end
            if start > one.end:
                break  # it reaches beyond, and may meet the next one
            out.append(taken[at])
            at += 1
        if start < one.end:
            out.append(one._replace(start=start))
    out += taken[at:]
    return out


def redact(content: str, findings: Sequence[Finding], labels: Mapping[str, str]) -> str:
    """The content with every (settled) finding replaced by its category's label."""
    parts: list[str] = []
    done = 0
    for one in findings:
        parts += (content[done : one.start], labels.get(one.category, f"[{one.category.upper()}]"))
        done = one.end
    parts.append(content[done:])
    return "".join(parts)
