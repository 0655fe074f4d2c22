"""Takes a content apart into windows and texts inside of texts, has each searched, and joins what was found.

    content --windows (64 Ki characters, overlapping)--> View --injection.py, pii.py, secrets.py--> findings
                     |                                       ^
                     '--decode.py: escapes, base64, hex, ... '  as deep as is asked for

A window ends at a blank where there is one, so that no word, key or number is cut; the overlap is for what has blanks
in it. Memory is a few times a window, whatever the content's size. What to look for is the caller's (Wanted).

Kind: pure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from wardgate_agents.guardrail.decode import blob_pieces, payloads, unescape
from wardgate_agents.guardrail.injection import Custom, Judgement, Scored, judge, score_view
from wardgate_agents.guardrail.normalise import Offsets, Shift, View
from wardgate_agents.guardrail.pii import find_personal
from wardgate_agents.guardrail.secrets import find_keys, find_private_keys
from wardgate_agents.guardrail.signals import ENCODED
from wardgate_agents.guardrail.spans import Finding, settle

WINDOW_CHARS: Final = 65_536
OVERLAP_CHARS: Final = 2_048  # longer than what is looked for and has blanks in it
FLOOD: Final = 2_000  # findings after which the rest of a content is not read, but taken for one of them
_SLACK_CHARS: Final = 8_192  # so far back a window's end looks for a blank
PII_RANK: Final[Mapping[str, int]] = {
    "private_key": 0,
    "api_key": 1,
    "iban": 2,
    "credit_card": 3,
    "email": 4,
    "ssn": 5,
    "phone": 6,
}


class Wanted(NamedTuple):
    """What is looked for, and from when on it counts."""

    is_on: Callable[[str], bool]
    threshold: float = 1.0
    confidence_min: float = 0.5
    decode_depth: int = 2
    weights: Mapping[str, float] | None = None
    signals: Custom | None = None  # the operator's injection patterns
    personal: Callable[[View], Iterable[Finding]] | None = None  # and those of personal data
    check: Callable[[], None] = lambda: None  # called every few milliseconds of work; it may raise to end it


def windows(content: str, size: int = WINDOW_CHARS, overlap: int = OVERLAP_CHARS) -> Iterator[tuple[int, int]]:
    """Starts and ends that cover the content."""
    start = 0
    slack = min(_SLACK_CHARS, size // 4)
    while True:
        end = start + size
        if end >= len(content):
            yield start, len(content)
            return
        blank = max(content.rfind(char, end - slack, end) for char in " \n\t")
        end = blank + 1 if blank >= 0 else end
        yield start, end
        back = end - overlap
        blank = max(content.rfind(char, back - slack // 4, back) for char in " \n\t")
        start = blank + 1 if blank > start else back


def inspect_injection(content: str, wanted: Wanted, *, is_completion: bool = False) -> Judgement:
    """The highest score of any place, and the findings of those that reach the threshold."""
    scored: list[Scored] = []
    for start, end in windows(content):
        text = content[start:end]
        scored += _score(text, Shift(start), wanted, wanted.decode_depth, is_completion, False)
        if len(scored) > FLOOD and end < len(content):
            judged = judge(scored, wanted.threshold, wanted.is_on)
            if len(judged.findings) > FLOOD:  # enough; all that follows counts as found
                rest = judged.findings[-1]._replace(
                    description="unread after very many findings", start=end, end=len(content)
                )
                return Judgement(judged.score, [*judged.findings, rest])
    if wanted.decode_depth:
        for text, offsets in blob_pieces(content, Shift()):
            scored += _score(text, offsets, wanted, wanted.decode_depth - 1, is_completion, True)
    return judge(scored, wanted.threshold, wanted.is_on)


def _score(text: str, outer: Offsets, wanted: Wanted, depth: int, is_completion: bool, is_nested: bool) -> list[Scored]:
    wanted.check()
    view = View(text, outer)
    wanted.check()
    scored = score_view(
        view,
        is_completion=is_completion,
        weights=wanted.weights,
        custom=wanted.signals,
        is_nested=is_nested,
        check=wanted.check,
    )
    if is_nested and scored:
        weight = (wanted.weights or {}).get(ENCODED.id, ENCODED.weight)
        scored += [Scored(one.start, one.end, ENCODED, weight) for one in scored if one.weight >= ENCODED.weight]
    if not depth:
        return scored
    offsets = outer
    for _ in range(depth):
        wanted.check()
        unescaped = unescape(text, offsets)
        if unescaped is None:
            break
        text, offsets = unescaped
    wanted.check()
    if offsets is not outer:
        scored += score_view(
            View(text, offsets),
            is_completion=is_completion,
            weights=wanted.weights,
            custom=wanted.signals,
            is_nested=is_nested,
            check=wanted.check,
        )
    wanted.check()
    inner = payloads(text, offsets, has_tags=view.has_tags)
    if inner is not None:
        scored += _score(*inner, wanted, depth - 1, is_completion, True)
    return scored


def inspect_personal(content: str, wanted: Wanted) -> list[Finding]:
    """Personal data and keys, in order and without overlaps."""
    found = list(find_private_keys(content)) if wanted.is_on("private_key") else []
    for start, end in windows(content):
        wanted.check()
        view = View(content[start:end], Shift(start))
        wanted.check()
        found += find_keys(view)
        wanted.check()
        found += find_personal(view)
        wanted.check()
        if wanted.personal is not None:
            found += wanted.personal(view)
    kept = [one for one in found if wanted.is_on(one.category) and one.confidence >= wanted.confidence_min]
    return settle(kept, PII_RANK)
