"""What agents found in a text, what is done about it, and where it is redacted.

    texts --Joined--> one content for the agents --their inspections--> judge --> Judged: block, or edits per text

The texts of one body are shown as one content, a line feed between them, so that what stands across two of them is
found too. Spans are mapped back to the texts they touch. The action for a finding: the rule for its category, else
the guardrail's where it is severe enough, else log; of several block > redact > log. What is to be redacted and
has no usable span is taken from `redacted_content` where it can be told which text it changes; else it blocks.

Nothing here knows JSON, streams or agents' protocols.

Kind: pure.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from shared.config.schema_routes import Guardrail
from shared.decision import Finding, Inspection
from shared.defaults import GUARDRAIL_MARK

SEPARATOR: Final = "\n"
_SEVERITIES: Final = ("low", "medium", "high", "critical")
_MEDIUM: Final = 1


class Edit(NamedTuple):
    """Characters [start, end) of a text become `text`."""

    start: int
    end: int
    text: str = GUARDRAIL_MARK


class Found(NamedTuple):
    """A finding and what is done about it; for the audit, which never gets the text."""

    agent: str
    inspection: str
    category: str
    severity: str
    confidence: float
    action: str
    start: int = -1  # characters of the content, -1 = not told
    end: int = -1


class Judged(NamedTuple):
    """What inspections of one content come to. `edits` by the number of the text."""

    found: tuple[Found, ...]
    blocked_by: Found | None
    edits: dict[int, list[Edit]]


class Joined:
    """Texts as one content, and the way back. `fixed`: numbers of those that cannot be edited."""

    __slots__ = ("content", "fixed", "starts", "texts")

    def __init__(self, texts: Sequence[str], fixed: Iterable[int] = ()) -> None:
        self.texts = texts
        self.fixed = frozenset(fixed)
        self.content = SEPARATOR.join(texts)
        self.starts: list[int] = []
        at = 0
        for text in texts:
            self.starts.append(at)
            at += len(text) + len(SEPARATOR)

    def touched(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(number, start, end) of what the characters [start, end) of the content are in its texts."""
        found = []
        at = self.number_at(start)
        while at < len(self.texts) and self.starts[at] < end:
            begin = self.starts[at]
            first, last = max(start - begin, 0), min(end - begin, len(self.texts[at]))
            if first < last:
                found.append((at, first, last))
            at += 1
        return found

    def number_at(self, start: int) -> int:
        """Which text holds this character of the content, or the separator behind it."""
        return max(bisect_right(self.starts, start) - 1, 0)

    def is_text(self, start: int, end: int) -> bool:
        """Whether [start, end) is more than separators."""
        at = self.number_at(start)
        if start < self.starts[at] + len(self.texts[at]):
            return True
        return at + 1 < len(self.starts) and end > self.starts[at + 1]

    def characters(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int] | None]:
        """Spans of UTF-8 bytes as spans of characters, widened to whole ones; None for one that is not in there."""
        content = self.content
        if content.isascii():
            return [span if 0 <= span[0] < span[1] <= len(content) else None for span in spans]
        encoded = content.encode()
        size = len(encoded)
        usable = [0 <= start < end <= size for start, end in spans]
        wanted = {0, size}
        for (start, end), is_usable in zip(spans, usable, strict=True):
            if is_usable:
                wanted |= {_down(encoded, start), _up(encoded, end)}
        position: dict[int, int] = {}
        before = count = 0
        for offset in sorted(wanted):
            count += len(encoded[before:offset].decode())
            position[offset] = count
            before = offset
        return [
            (position[_down(encoded, start)], position[_up(encoded, end)]) if is_usable else None
            for (start, end), is_usable in zip(spans, usable, strict=True)
        ]


def _down(encoded: bytes, offset: int) -> int:
    while offset < len(encoded) and encoded[offset] & 0xC0 == 0x80:
        offset -= 1
    return offset


def _up(encoded: bytes, offset: int) -> int:
    while offset < len(encoded) and encoded[offset] & 0xC0 == 0x80:
        offset += 1
    return offset


def action_of(rules: Guardrail, category: str, severity: int) -> str:
    """block, redact, log or ignore."""
    action = rules.categories.get(category)
    if action is not None:
        return action
    return rules.action if severity >= _SEVERITIES.index(rules.min_severity) else "log"


def judge(rules: Guardrail, joined: Joined, answers: Iterable[tuple[str, Sequence[Inspection]]]) -> Judged:
    """`answers`: per inspection type what each agent said of the content."""
    found: list[Found] = []
    blocked_by: Found | None = None
    marked_by: Found | None = None
    edits: dict[int, list[Edit]] = {}
    spans_marked: list[Edit] = []
    for inspection_type, inspections in answers:
        for inspection in inspections:
            findings = inspection.findings
            if not findings and inspection.detected:
                findings = (Finding(inspection_type, _MEDIUM, confidence=inspection.confidence),)
            spans = joined.characters([(finding.start, finding.end) for finding in findings])
            unplaced: Found | None = None
            for finding, span in zip(findings, spans, strict=True):
                action = action_of(rules, finding.category, finding.severity)
                if action == "ignore":
                    continue
                one = Found(
                    inspection.agent,
                    inspection_type,
                    finding.category,
                    _SEVERITIES[finding.severity],
                    finding.confidence,
                    action,
                    *(span or (-1, -1)),
                )
                found.append(one)
                if action == "block":
                    blocked_by = blocked_by or one
                elif action == "redact":
                    if span is not None and joined.is_text(*span):
                        spans_marked.append(Edit(*span))
                        marked_by = marked_by or one
                    else:
                        unplaced = unplaced or one
            if unplaced is not None and not _replace(joined, inspection.redacted, edits):
                blocked_by = blocked_by or unplaced._replace(action="block")
    # Joined before they are mapped to texts: a thousand findings may each be the whole of fifty thousand texts.
    if not _mark(joined, merged(spans_marked), edits) and marked_by is not None:
        blocked_by = blocked_by or marked_by._replace(action="block")
    return Judged(tuple(found), blocked_by, edits)


def _mark(joined: Joined, spans: Sequence[Edit], edits: dict[int, list[Edit]]) -> bool:
    """Redact spans of the content in the texts they touch; False where one of those cannot be edited."""
    for span in spans:
        for at, start, end in joined.touched(span.start, span.end):
            if at in joined.fixed:
                return False
            edits.setdefault(at, []).append(Edit(start, end))
    return True


def _replace(joined: Joined, redacted: str | None, edits: dict[int, list[Edit]]) -> bool:
    """Take what an agent's whole redacted content changes as edits; False where it cannot be told of which text.

    It can where one text holds all that differs, or where no line was added or taken away.
    """
    content = joined.content
    if redacted is None or redacted == content:
        return False
    start, end, text = difference(content, redacted)
    if start == end:  # something was put in, and nothing taken out
        return False
    touched = joined.touched(start, end)
    if len(touched) == 1:
        at = touched[0][0]
        begin = joined.starts[at]
        if begin <= start and end <= begin + len(joined.texts[at]):
            if at in joined.fixed:
                return False
            edits.setdefault(at, []).append(Edit(start - begin, end - begin, text))
            return True
    lines = redacted.split(SEPARATOR)
    if len(lines) != content.count(SEPARATOR) + 1:
        return False
    made: dict[int, Edit] = {}
    line = 0
    for at, before in enumerate(joined.texts):
        count = before.count(SEPARATOR) + 1
        after = SEPARATOR.join(lines[line : line + count])
        line += count
        if after != before:
            if at in joined.fixed:
                return False
            made[at] = Edit(*difference(before, after))
    for at, edit in made.items():
        edits.setdefault(at, []).append(edit)
    return True


def difference(before: str, after: str) -> tuple[int, int, str]:
    """(start, end, text): the one edit that makes `after` of `before`, without what both begin and end with."""
    shorter = min(len(before), len(after))
    start = _common(before, after, shorter)
    rest = shorter - start
    end = _common(before[::-1], after[::-1], rest)
    return start, len(before) - end, after[start : len(after) - end]


def _common(one: str, other: str, most: int) -> int:
    """How many characters both begin with, by halving: comparing slices is the interpreter's fastest way."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def merged(edits: Iterable[Edit]) -> list[Edit]:
    """In order, without overlaps: edits that overlap and are not the same become one mark over all of them."""
    made: list[Edit] = []
    for edit in sorted(edits):
        last = made[-1] if made else None
        if last is not None and edit.start < last.end:
            if edit != last:
                made[-1] = Edit(last.start, max(last.end, edit.end))
        elif edit != last:
            made.append(edit)
    return made


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with its edits done."""
    out: list[str] = []
    at = 0
    for edit in merged(edits):
        out += (text[at : edit.start], edit.text)
        at = edit.end
    out.append(text[at:])
    return "".join(out)
