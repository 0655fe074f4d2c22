"""How much a text speaks like a prompt injection: signals added up where they stand together.

    View --words.py--> hits --groups of signals.py--> signals \\
         --forms (chat tokens, forged turns, links)--> signals  > talk about attacks, quotes: less
         --squeezed (words broken up)--> signals               /
    signals within about 700 characters of each other, each id once --> score; findings where it reaches the threshold

What is encoded is decoded and read in the same way (scan.py decides how deep). No word or weight may be put here.

Kind: pure.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from wardgate_agents.guardrail.normalise import View
from wardgate_agents.guardrail.parts import Part
from wardgate_agents.guardrail.signals import (
    BROKEN_UP,
    CATEGORIES,
    DISGUISED,
    FORMS,
    GROUPS,
    LINK_CARRIES,
    RESET,
    Group,
    Signal,
)
from wardgate_agents.guardrail.spans import Finding, Severity
from wardgate_agents.guardrail.words import Hit, Words, find_words

_NEAR_CHARS: Final = 350  # signals within one to two of these add up
_NEIGHBOURS_MAX: Final = 12  # words of the lexicon to either side of an anchor
_CHECK_EVERY: Final = 1_024  # hits, where every one may begin a signal
_QUOTE_CHARS: Final = 60  # a quotation opens at most so far before, and closes at most so far behind a signal
_TALK_CHARS: Final = 400
_QUOTED: Final = 0.8
_QUOTED_IN_TALK: Final = 0.35
_IN_TALK: Final = 0.6
_REPORTED: Final = 0.65  # "users may ignore ..."
_ACROSS_SENTENCES: Final = 0.6
_QUOTES: Final = "\"'`"
_OPENS: Final = re.compile(r"(?:^|[\s(\[{=:,r<])([\"'`])(?=[^\s])")
_SENTENCE_END: Final = re.compile(r"[.!?][\"')]?\s|\n[ \t]{0,20}\n")
_ONE_SENTENCE: Final = ("instruction_override", "prompt_exfiltration", "tool_abuse")
_REPORTERS_TEXT: Final = (
    "i we they it may might could would should can users attackers who people someone ai he she model models not "
)
_REPORTERS: Final = frozenset(_REPORTERS_TEXT.split())
_ASKED_TEXT: Final = "you need have want going required supposed must now "
_ASKED: Final = frozenset(_ASKED_TEXT.split())
_IMPERATIVE_AFTER_TEXT: Final = "please and then now just to actually also instead kindly must simply "
_IMPERATIVE_AFTER: Final = frozenset(_IMPERATIVE_AFTER_TEXT.split())
_IN_NAME: Final = re.compile(r"[@./-]|\W?\w+(?:[@/]|\.\w)")  # part of a host, an address, a path
_IN_LINK: Final = 0.6
_LINK: Final = re.compile(r"https?://[^\s\"')\]]{3,2000}+")
_PLACE: Final = re.compile(r"[?&][\w.-]{1,40}=(?:$|[<{\[$]|[A-Z_]{4,}+(?![\w]))|[?&][\w.-]{1,40}=\Z")
_CARRIES: Final = re.compile(r"[?&/=][\w.~%+-]{48,}+")
_IMAGE: Final = re.compile(r"\]\(\s{0,2}$")
_STEMS: Final = ("ignore", "disregard", "forget", "override", "bypass", "reveal")
_SQUEEZED: Final = re.compile(
    r"(?:ignore|disregard|forget|override|bypass)(?:all|any|every|the|of|your|my|these|those){0,4}"
    r"(?:(?:previous|prior|above|earlier|preceding|initial)(?:the|your|system)?|(?<=your)(?:system)?)"
    r"(?:instructions?|prompts?|rules|guidelines|directives|orders)"
    r"|(?:reveal|print|show)(?:me)?(?:your|the)(?:hidden|secret|full|entire)?(?:systemprompt|systemmessage|instructions)"
)
_LETTERS: Final = re.compile(r"[^\W_]+")


class Scored(NamedTuple):
    """A signal at its place in the original content, with what it is worth there."""

    start: int
    end: int
    signal: Signal
    weight: float


class Judgement(NamedTuple):
    """The highest score anywhere, and what made the places that reach the threshold."""

    score: float
    findings: list[Finding]


Custom = Callable[[View], Iterable[tuple[int, int, Signal]]]  # the operator's patterns, in `cased`


def score_view(
    view: View,
    *,
    is_completion: bool = False,
    weights: Mapping[str, float] | None = None,
    custom: Custom | None = None,
    is_nested: bool = False,
    check: Callable[[], None] = lambda: None,
) -> list[Scored]:
    """Every signal of one text, weighted by its surroundings. `check` is called in between and may raise."""
    found: list[tuple[int, int, Signal, float]] = []
    words = find_words(view)
    check()
    links = _links(view, is_completion)
    hits = words.hits
    if links:
        hits = _with_links(words, links)
    _group_signals(view, hits, words, found, check)
    check()
    _form_signals(view, found)
    found += ((start, end, LINK_CARRIES, 1.0) for start, end, _, carries in links if carries)
    _broken_up(view, words, found)
    if custom is not None:
        found += ((start, end, signal, 1.0) for start, end, signal in custom(view))
    check()
    if not found:
        return []
    talk = [] if is_nested else _Talk.places(view.latin, hits)
    surroundings = _Talk(view.latin, talk)
    out = []
    for start, end, signal, factor in found:
        weight = signal.weight if weights is None else weights.get(signal.id, signal.weight)
        weight *= factor * (1.0 if is_nested else surroundings.factor(start, end))
        if links and weight:
            link = links[max(0, bisect_left(links, (start,)) - 1)]
            if link[0] < start and end <= link[1]:
                weight *= _IN_LINK  # the title of an article, say
        if weight > 0:
            out.append(Scored(*view.span(start, end), signal, weight))
    return out


def judge(scored: Sequence[Scored], threshold: float, is_on: Callable[[str], bool]) -> Judgement:
    """Add up what stands together."""
    near: dict[int, dict[str, float]] = {}
    kept = [one for one in scored if is_on(one.signal.category)]
    for one in kept:
        place = one.start // _NEAR_CHARS
        for at in (place - 1, place):
            ids = near.setdefault(at, {})
            if one.weight > ids.get(one.signal.id, 0.0):
                ids[one.signal.id] = one.weight
    scores = {at: sum(ids.values()) for at, ids in near.items()}
    findings = {}
    for one in kept:
        place = one.start // _NEAR_CHARS
        score = max(scores[place - 1], scores[place])
        if score >= threshold:
            key = (one.start, one.end, one.signal.id)
            findings[key] = Finding(
                one.signal.category,
                one.signal.text,
                severity_of(one.signal),
                confidence_of(score, threshold),
                one.start,
                one.end,
            )
    return Judgement(max(scores.values(), default=0.0), sorted(findings.values(), key=lambda found: found.start))


def confidence_of(score: float, threshold: float) -> float:
    """From 0 to 1: a half at the threshold, 0.75 at twice as much."""
    return 1.0 - float(2.0 ** (-score / threshold))


def severity_of(signal: Signal) -> Severity:
    """Of the category; weak signals tell of less."""
    severity: Severity = CATEGORIES.get(signal.category, "high")
    return "medium" if signal.weight < 0.5 and severity != "medium" else severity


def _group_signals(
    view: View,
    hits: list[Hit],
    words: Words,
    found: list[tuple[int, int, Signal, float]],
    check: Callable[[], None],
) -> None:
    text = view.latin
    parts_of = [hit.parts for hit in hits]
    groups_of = {parts: _groups(parts) for parts in set(parts_of)}
    for at, parts in enumerate(parts_of):
        groups = groups_of[parts]
        if not groups:
            continue
        if not at % _CHECK_EVERY:
            check()
        is_repeated = at + 1 < len(hits) and parts_of[at + 1] == parts  # then the next one is nearer to what follows
        for group, both in groups:
            if is_repeated and not both:
                continue
            have, first, last = _neighbourhood(hits, parts_of, at, group, both)
            for row in group.rows:
                if row.need & have == row.need:
                    _add_signal(text, hits, words, at, hits[first:last], group, row, found)
                    break


def _groups(parts: int) -> list[tuple[Group, bool]]:
    """The groups whose anchor this is, and whether they look back as well."""
    if parts & (Part.NOT | Part.SHIELD):
        return []
    return [(group, group.is_both or bool(parts & Part.LATE)) for group in GROUPS if parts & group.anchor]


def _neighbourhood(hits: list[Hit], parts_of: list[int], at: int, group: Group, both: bool) -> tuple[int, int, int]:
    """Which parts stand within the group's gap, and the range of the hits looked at."""
    place = hits[at].place
    have = parts_of[at] & ~group.anchor
    first = last = at
    gap = group.gap
    resets = Part.OTHER if group.anchor & (Part.OVERRIDE | Part.SET_ASIDE) else 0
    end = min(at + _NEIGHBOURS_MAX, len(hits) - 1)
    while last < end and hits[last + 1].place - place <= gap:
        last += 1
        parts = parts_of[last]
        if parts & resets and not have & Part.OBJECT:
            have &= ~RESET
        else:
            have |= parts
    if both:
        end = max(at - _NEIGHBOURS_MAX, 0)
        while first > end and place - hits[first - 1].place <= gap:
            first -= 1
            parts = parts_of[first]
            if parts & resets and not have & Part.OBJECT:
                have &= ~RESET
            else:
                have |= parts
    return have, first, last + 1


def _add_signal(
    text: str,
    hits: list[Hit],
    words: Words,
    at: int,
    near: list[Hit],
    group: Group,
    row: Signal,
    found: list[tuple[int, int, Signal, float]],
) -> None:
    hit = hits[at]
    start, end = _extent(hit, near, row)
    factor = 1.0
    if group.anchor & (Part.OVERRIDE | Part.SET_ASIDE) and not hit.is_disguised:
        factor = _mood(text, words, hit)
    if row.need:
        if end - start > 30 and row.category in _ONE_SENTENCE and _SENTENCE_END.search(text, start, end - 1):
            factor *= _ACROSS_SENTENCES
        if any(one.is_disguised for one in near):
            found.append((start, end, DISGUISED, 1.0))
    found.append((start, end, row, factor))


def _extent(anchor: Hit, near: list[Hit], row: Signal) -> tuple[int, int]:
    """From the first to the last word that the signal needs."""
    start, end = anchor.start, anchor.end
    left = row.need & ~anchor.parts
    if not left:
        return start, end
    middle = near.index(anchor)
    for hit in (*near[middle + 1 :], *reversed(near[:middle])):
        if hit.parts & left:
            start, end = min(start, hit.start), max(end, hit.end)
            left &= ~hit.parts
            if not left:
                break
    return start, end


def _mood(text: str, words: Words, hit: Hit) -> float:
    """Less for what somebody may do than for what is to be done."""
    at = bisect_left(words.starts, hit.start)
    if at == 0 or text[max(0, hit.start - 3) : hit.start].strip(" ")[-1:] in (*".!?\n:;,-*([>\"'`", ""):
        return 1.0
    before = words.words[at - 1]
    if before == "to":
        before_that = words.words[at - 2] if at > 1 else ""
        return 1.0 if before_that in _ASKED or before_that in ("", "is") else _REPORTED
    return _REPORTED if before in _REPORTERS else 1.0


class _Talk:
    """Whether a place is quoted, and whether attacks are talked about around it."""

    def __init__(self, text: str, talk: list[tuple[int, float]]) -> None:
        self._text = text
        self._starts = [start for start, _ in talk]
        self._sums = [0.0]
        for _, weight in talk:
            self._sums.append(self._sums[-1] + weight)

    @staticmethod
    def places(text: str, hits: list[Hit]) -> list[tuple[int, float]]:
        """Where the words of those who talk about attacks stand, and what they weigh."""
        return [
            (hit.start, 1.0 if hit.parts & Part.TALK else 0.5)
            for hit in hits
            if hit.parts & (Part.TALK | Part.TALK_WEAK) and not _IN_NAME.match(text, max(0, hit.start - 1), hit.end + 2)
        ]

    def factor(self, start: int, end: int) -> float:
        first = bisect_left(self._starts, start - _TALK_CHARS)
        last = bisect_left(self._starts, end + _TALK_CHARS)
        talk: float = self._sums[last] - self._sums[first]
        if self._is_quoted(start, end):
            return _QUOTED_IN_TALK if talk >= 0.5 else _QUOTED
        if talk >= 1.5 and not self._is_imperative(start):
            return _IN_TALK
        return 1.0

    def _is_quoted(self, start: int, end: int) -> bool:
        before = self._text[max(0, start - _QUOTE_CHARS) : start]
        if not any(quote in before for quote in _QUOTES):
            return False
        opened = None
        for match in _OPENS.finditer(before + "x"):
            opened = match
        if opened is None:
            return False
        quote = opened[1]
        if re.search(re.escape(quote) + r"(?![a-z])", before[opened.end() :]):
            return False  # closed again
        return quote in self._text[start + 1 : end + _QUOTE_CHARS]

    def _is_imperative(self, start: int) -> bool:
        before = self._text[max(0, start - 20) : start].rstrip(" ")
        if not before or before[-1] in ".!?\n:;":
            return True
        words = before.split()
        return bool(words) and words[-1] in _IMPERATIVE_AFTER and words[-1] != "to"


def _form_signals(view: View, found: list[tuple[int, int, Signal, float]]) -> None:
    text = view.latin
    for form in FORMS:
        if form.literal in text:
            found += ((match.start(), match.end(), form.signal, 1.0) for match in form.pattern.finditer(text))


def _links(view: View, is_completion: bool) -> list[tuple[int, int, bool, bool]]:
    """(start, end, has a place for data, carries data) of every URL."""
    text = view.cased
    if "://" not in text:
        return []
    out = []
    for found in _LINK.finditer(text):
        url = found[0]
        is_out = "=" in url and _PLACE.search(url) is not None
        is_image = is_completion and _IMAGE.search(text[max(0, found.start() - 4) : found.start()]) is not None
        if is_image:
            is_image = text.rfind("![", max(0, found.start() - 210), found.start()) >= 0
        out.append((found.start(), found.end(), is_out, is_image and _CARRIES.search(url) is not None))
    return out


def _with_links(words: Words, links: list[tuple[int, int, bool, bool]]) -> list[Hit]:
    """URLs among the hits."""
    hits: list[Hit] = list(words.hits)
    starts = [hit.start for hit in words.hits]
    for start, end, is_out, _ in links:
        at = bisect_left(starts, start)
        index = max(words.hits[at - 1].place if at else 0.0, float(bisect_left(words.starts, start)))
        hits.append(Hit(index, start, end, Part.LINK | Part.LINK_OUT if is_out else Part.LINK))
    hits.sort(key=lambda hit: (hit.start, -hit.end))
    return hits


def _broken_up(view: View, words: Words, found: list[tuple[int, int, Signal, float]]) -> None:
    """`ig nore prev ious instruc tions`, `IgnorePreviousInstructions`: the plain orders with all gaps closed."""
    squeezed = "".join(words.words)
    if not any(stem in squeezed for stem in _STEMS):
        return
    matches = list(_SQUEEZED.finditer(squeezed))
    if not matches:
        return
    plain = sorted((start, end) for start, end, signal, _ in found if signal.category in _PLAIN_ORDERS)
    text = view.latin
    counts = [0, *accumulate(map(len, words.words))]
    for match in matches:
        start, end = (_unsqueezed(at, words.starts, counts) for at in (match.start(), match.end() - 1))
        at = bisect_left(plain, (start, 0))
        if any(a < end and start < b for a, b in plain[max(0, at - 3) : at + 3]):
            continue  # read as words already
        if _is_plain(text[start : end + 1]):
            continue
        found.append((start, end + 1, BROKEN_UP, 1.0))


_PLAIN_ORDERS: Final = ("instruction_override", "prompt_exfiltration")
_VOCABULARY_TEXT: Final = (
    "ignore disregard forget override bypass all any every the of your my these those previous prior above "
    "earlier preceding initial system instruction instructions prompt prompts rules guidelines directives "
    "orders reveal print show me hidden secret full entire message "
)
_VOCABULARY: Final = frozenset(_VOCABULARY_TEXT.split())


def _is_plain(stretch: str) -> bool:
    """Whether it is made of whole words: then words.py has looked at it, and at what is around it."""
    return all(word in _VOCABULARY for word in _LETTERS.findall(stretch))


def _unsqueezed(at: int, places: list[int], counts: list[int]) -> int:
    row = bisect_right(counts, at) - 1
    return places[row] + at - counts[row]
