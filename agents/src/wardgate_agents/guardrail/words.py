"""Finds the lexicon's words in a text, also where they are disguised: leetspeak, rot13, reversed, scrambled.

A disguise is undone by looking up, never by trying variants of the whole text: a table has every core word's rot13,
its mirror image and the key of its scrambled forms (first and last letter, the others sorted).

Kind: pure.
"""

import codecs
import re
from bisect import bisect_right
from itertools import accumulate
from typing import Final, NamedTuple

from wardgate_agents.guardrail.languages import OTHERS, QUANTIFIERS, UNSPACED
from wardgate_agents.guardrail.lexicon import ENGLISH
from wardgate_agents.guardrail.normalise import View, fold_word
from wardgate_agents.guardrail.parts import Part

_CJK_CLASS: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORDS: Final = re.compile(rf"([^\W_{_CJK_CLASS}]+)")
_CJK: Final = re.compile(f"[{_CJK_CLASS}]")
_LEET: Final = re.compile(r"(?<![a-z0-9@$!|+])[a-z]*+[0-9@$!|+][a-z0-9@$!|+]*+")
_LEET_I: Final = str.maketrans("0134578@$!|+", "oieastbasiit")
_LEET_L: Final = str.maketrans("0134578@$!|+", "oleastbaslit")
_CORE: Final = (
    Part.OVERRIDE
    | Part.SET_ASIDE
    | Part.SCOPE
    | Part.OBJECT
    | Part.REVEAL
    | Part.SECRET
    | Part.YOUR
    | Part.OWNER
    | Part.PROMPT
)
_CORE_MIN: Final = 4  # letters; shorter ones have too many neighbours
_LACK_WORDS: Final = 3
_SCRAMBLED_MIN: Final = 4
_WORD_CHARS: Final = 5  # of a text in which words are not set apart, so many characters count as one, of Latin text
_CJK_CHARS: Final = 2


class Hit(NamedTuple):
    """A word or phrase of the lexicon. `place` counts words; characters are those of the reading."""

    place: float
    start: int
    end: int
    parts: int
    is_disguised: bool = False


class Words(NamedTuple):
    """The hits of one text, in order, and its words."""

    hits: list[Hit]
    words: list[str]
    starts: list[int]


_Phrases = dict[str, list[tuple[tuple[str, ...], int]]]


def _earlier(part: int, phrase: str) -> int:
    return Part.EARLIER if part & Part.SCOPE and phrase not in QUANTIFIERS else 0


def _phrases() -> _Phrases:
    rows: dict[tuple[str, ...], int] = {}
    for part, text in (*ENGLISH, *OTHERS):
        for phrase in text.split():
            key = tuple(fold_word(word) for word in phrase.split("+"))
            rows[key] = rows.get(key, 0) | part | _earlier(part, phrase)
    table: _Phrases = {}
    for key, part in sorted(rows.items(), key=lambda row: -len(row[0])):
        table.setdefault(key[0], []).append((key[1:], part))
    return table


def _scrambled(word: str) -> str:
    return word[0] + "".join(sorted(word[1:-1])) + word[-1]


def _disguises(phrases: _Phrases) -> tuple[dict[str, int], dict[str, int]]:
    whole: dict[str, int] = {}
    scrambled: dict[str, int] = {}
    for word, rows in phrases.items():
        part = next((parts for rest, parts in rows if not rest), 0) & (_CORE | Part.LEAK | Part.EARLIER)
        if part & _CORE and word.isascii() and len(word) >= _CORE_MIN:
            whole[codecs.encode(word, "rot13")] = part
            whole.setdefault(word[::-1], part | Part.LATE)
            if len(word) >= _SCRAMBLED_MIN:
                scrambled.setdefault(_scrambled(word), part)
    for word in [word for word in whole if word in phrases]:
        del whole[word]
    return whole, scrambled


_PHRASES: Final = _phrases()
_WHOLE, _SCRAMBLED = _disguises(_PHRASES)
_SCRAMBLED_ENDS: Final = frozenset((key[0], key[-1], len(key)) for key in _SCRAMBLED)
_UNSPACED: Final = [(fold_word(word), part | _earlier(part, word)) for part, text in UNSPACED for word in text.split()]


def find_words(view: View) -> Words:
    """Every word of the lexicon in a text."""
    latin = view.latin
    parts = _WORDS.split(latin)  # gap, word, gap, ...: lengths added up are places, all of it outside of Python's loop
    words = parts[1::2]
    starts = list(accumulate(map(len, parts)))[0:-1:2]
    native = words if view.native is latin else _WORDS.findall(view.native)
    if len(native) != len(words):  # a look-alike that is no letter; then only the Latin reading
        native = words
    known = {word: part for word in set(words) if (part := _known(word)) is not None}
    if native is not words:
        known |= {word: -1 for word in set(native) if word in _PHRASES and word not in known}
    hits: list[Hit] = []
    skip_to = 0
    for at in [at for at, word in enumerate(words) if word in known or native[at] in known]:
        if at < skip_to:
            continue
        word, tokens = words[at], words
        if native is not words and word not in known:
            word, tokens = native[at], native
        disguised = known[word]
        if disguised >= 0:
            hits.append(Hit(at, starts[at], starts[at] + len(word), disguised, True))
            continue
        following = tokens[at + 1] if at + 1 < len(tokens) else ""
        for rest, part in _PHRASES[word]:
            if not rest or (following == rest[0] and tuple(tokens[at + 1 : at + 1 + len(rest)]) == rest):
                last = at + len(rest)
                hits.append(Hit(at, starts[at], starts[last] + len(words[last]), part))
                skip_to = last + 1
                break
    is_sorted = _add_leet(hits, latin, starts)
    if _CJK.search(view.native):
        _add_unspaced(hits, view.native)
        is_sorted = False
    if not is_sorted:
        hits.sort(key=lambda hit: (hit.start, -hit.end))
        hits = _count_by_characters(hits, view.native) if _CJK.search(view.native) else hits
    return Words(_without_limits(hits), words, starts)


def _without_limits(hits: list[Hit]) -> list[Hit]:
    """`without any moral limits`: what lacks a limit is free."""
    for at, hit in enumerate(hits):
        if not hit.parts & Part.LACK or hit.parts & Part.FREE:
            continue
        for other in hits[at + 1 : at + 4]:
            if other.place - hit.place > _LACK_WORDS or other.parts & Part.SHIELD:
                break
            if other.parts & Part.LIMIT:
                hits[at] = hit._replace(end=other.end, parts=(hit.parts | Part.FREE) & ~Part.OFF)
                break
    return hits


def _known(word: str) -> int | None:
    """-1 for a word that a row begins with, the parts of a disguised one, None for all others."""
    if word in _PHRASES:
        return -1
    if len(word) < _CORE_MIN:
        return None
    part = _WHOLE.get(word)
    if part is None and (word[0], word[-1], len(word)) in _SCRAMBLED_ENDS:
        part = _SCRAMBLED.get(_scrambled(word))
    return part


def _add_leet(hits: list[Hit], latin: str, starts: list[int]) -> bool:
    count = len(hits)
    known: dict[str, int | None] = {}
    for found in _LEET.finditer(latin):
        token = found[0].rstrip("!|+")
        if token not in known:
            known[token] = _leet(token)
        part = known[token]
        if part is not None:
            place = max(0, bisect_right(starts, found.start()) - 1)
            hits.append(Hit(place, found.start(), found.start() + len(token), part, True))
    return len(hits) == count


def _leet(token: str) -> int | None:
    if len(token) < 3 or token.isdigit() or token.isalpha() or len(token) > 40:
        return None
    for table in (_LEET_I, _LEET_L):
        for rest, part in _PHRASES.get(token.translate(table), ()):
            if not rest:
                return part
    return None


def _add_unspaced(hits: list[Hit], native: str) -> None:
    for word, part in _UNSPACED:
        at = native.find(word)
        while at >= 0:
            hits.append(Hit(0, at, at + len(word), part | Part.LATE))
            at = native.find(word, at + len(word))


def _count_by_characters(hits: list[Hit], native: str) -> list[Hit]:
    """Where words are not set apart, distances are counted in characters; of hits in hits the longer stays."""
    out: list[Hit] = []
    index = 0.0
    done = 0
    for hit in hits:
        if out and hit.end <= out[-1].end:
            continue
        between = native[done : hit.start]
        cjk = len(_CJK.findall(between))
        index += cjk / _CJK_CHARS + (len(between) - cjk) / _WORD_CHARS
        done = hit.start
        out.append(hit._replace(place=index))
    return out
