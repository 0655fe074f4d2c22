"""A text as a reader of it would understand it, with the way back to the original's characters.

Full-width, mathematical and circled letters, look-alikes of other scripts, accents, invisible characters and
bidi controls: what a model reads as "ignore" becomes "ignore". Three readings with the same positions: `cased`
(compatibility forms only; numbers and keys are looked for in it), `native` (lower case; words of Cyrillic and Greek
stay theirs) and `latin` (look-alikes folded as well). Nothing is judged here.

    original     I ​g​n ⓞ ﬁ      `Offsets` holds one row per stretch in which folded and original run in step,
    folded       i g n o f i     and one per character that became none or several
    start()      0 2 4 5 6 6

Every character folds by itself, whatever its neighbours: a table of code points, filled as characters are met,
and str.translate does the work.

Kind: pure.
"""

import re
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, Protocol

_TABLE_MAX: Final = 60_000  # characters remembered; all scripts of a busy site fit
_REPLACE_MAX: Final = 32  # distinct characters; from about there on one translate is faster
_ODD_ASCII: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ODD: Final = "\x00"
_ODD_RUNS: Final = re.compile(r"\x00+")
TAG_FIRST, TAG_LAST = 0xE0020, 0xE007E  # the "tag" copies of ASCII: invisible, and read by models

# Letters without a decomposition, and quotes, dashes and blanks in their plain form.
_PLAIN: Final = dict(
    zip("ıłøđħŧßæœþðŋ", ("i", "l", "o", "d", "h", "t", "ss", "ae", "oe", "th", "d", "n"), strict=True)
) | dict(zip("‘’‚‛′`´“”„‟″«»「」『』‐‑‒–—―−⁃⠀ㅤᅟᅠ", "''''''" + "'" + '"""""""""""' + "--------" + "    ", strict=True))

# Look-alikes of Latin letters, one to one (that keeps the positions of all readings the same).
_LOOKALIKES: Final = (
    dict(zip("аеорсухіјѕԁԛԝһӏкмтвьгпиднч", "aeopcyxijsdqwhlkmtbbrnnahu", strict=True))
    | dict(zip("АВЕКМНОРСТУХІЈЅԌԚԜҺЗ", "abekmhopctyxijsgqwhz", strict=True))
    | dict(zip("αβγεζηικνορστυχωύΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "abyezniknopotuxwuabezhikmnoptyx", strict=True))
    | dict(zip("ոսցհօզԱՍՕᎪᏟᎬᎻᎥᏦᏞᎷᏢᎡᏚᎢᏙᎳᏃ", "nughoqausaceh" + "iklmprstvwz", strict=True))
    | dict(zip("ɑɡɩɪʟɴɾʀꜱᴀʙᴄᴅᴇꜰɢʜᴊᴋᴍᴏᴘᴛᴜᴠᴡʏᴢƖǀ∣❘", "agiilnrrsabcdefghjkmoptuvwyzllll", strict=True))
)


class Offsets(Protocol):
    """Where a character of a reading came from."""

    def start(self, index: int) -> int:
        """The first original character of the reading's character `index`."""

    def end(self, index: int) -> int:
        """One past the last original character of what ends before `index` (> 0)."""


class Shift:
    """In step from `base` on: nothing was dropped or added."""

    __slots__ = ("_base",)

    def __init__(self, base: int = 0) -> None:
        self._base = base

    def start(self, index: int) -> int:
        return self._base + index

    def end(self, index: int) -> int:
        return self._base + index


class Stretches:
    """Row i is about the reading's characters from `at[i]` on: in step from `origin[i]`, or all from one stretch.

    `until[i]` is 0 for a row in step, otherwise one past the original characters that all of them came from.
    """

    __slots__ = ("_at", "_origin", "_outer", "_until")

    def __init__(self, at: Sequence[int], origin: Sequence[int], until: Sequence[int], outer: Offsets) -> None:
        self._at, self._origin, self._until, self._outer = at, origin, until, outer

    def start(self, index: int) -> int:
        row = max(0, bisect_right(self._at, index) - 1)
        if self._until[row]:
            return self._outer.start(self._origin[row])
        return self._outer.start(self._origin[row] + index - self._at[row])

    def end(self, index: int) -> int:
        row = max(0, bisect_right(self._at, index - 1) - 1)
        if self._until[row]:
            return self._outer.end(self._until[row])
        return self._outer.end(self._origin[row] + index - self._at[row])


class View:
    """One text in its three readings."""

    __slots__ = ("cased", "has_tags", "latin", "native", "offsets", "text")

    def __init__(self, text: str, outer: Offsets | None = None) -> None:
        outer = outer or Shift()
        self.text = text
        self.has_tags = False
        self.offsets: Offsets = outer
        if text.isascii() and not _ODD_ASCII.search(text):
            self.cased = text
            self.native = self.latin = text.lower()
            return
        distinct = set(text)
        self.has_tags = any(TAG_FIRST <= ord(char) <= TAG_LAST for char in distinct)
        changed = {char: made for char in distinct if (made := _FOLD[ord(char)]) != char}
        odd = {char: _ODD for char, made in changed.items() if len(made) != 1}
        if odd:
            self.offsets = _stretches(_replaced(text, odd), text, outer)
        self.cased = _replaced(text, changed)
        self.native = _lower(self.cased)
        alike = {char: ours for char in distinct if (ours := _LATIN.get(ord(char)))} if not self.cased.isascii() else {}
        for made in changed.values():
            alike |= {char: ours for char in made if (ours := _LATIN.get(ord(char)))}
        self.latin = _lower(_replaced(self.cased, alike)) if alike else self.native

    def span(self, start: int, end: int) -> tuple[int, int]:
        """A place in a reading as a place in the original content."""
        return self.offsets.start(start), self.offsets.end(end)


class _Fold(dict[int, str]):
    """What a character folds to, found on first sight."""

    def __missing__(self, code: int) -> str:
        if len(self) > _TABLE_MAX:
            self.clear()
        self[code] = made = _fold(chr(code))
        return made


def _fold(char: str) -> str:
    code = ord(char)
    if char in "\t\n\r" or " " <= char <= "~":
        return char
    if 0x1F130 <= code <= 0x1F189:  # squared, negative circled and negative squared letters
        return chr(65 + (code - 0x1F130) % 32) if (code - 0x1F130) % 32 < 26 else " "
    if 0x1F1E6 <= code <= 0x1F1FF:  # regional indicators, the halves of flags
        return chr(65 + code - 0x1F1E6)
    plain = _PLAIN.get(char) or _PLAIN.get(char.lower())
    if plain is not None:
        return plain.upper() if char.isupper() else plain
    out = []
    for part in unicodedata.normalize("NFKD", char):
        kind = unicodedata.category(part)
        if kind in ("Mn", "Me", "Cf", "Cc", "Cs"):
            continue
        out.append(" " if kind[0] == "Z" else _PLAIN.get(part, part))
    return "".join(out)


_FOLD: Final = _Fold()
_LATIN: Final = {ord(theirs): ours for theirs, ours in _LOOKALIKES.items()}


def _replaced(text: str, table: Mapping[str, str]) -> str:
    """str.translate; a few replacements one after the other are faster, where none makes work for the next."""
    if len(table) > _REPLACE_MAX or any(char in table for made in table.values() for char in made):
        return text.translate({ord(char): made for char, made in table.items()})
    for char, made in table.items():
        text = text.replace(char, made)
    return text


def _lower(text: str) -> str:
    """In lower case, and never of another length."""
    made = text.lower()
    if len(made) == len(text):
        return made
    return "".join(chain.from_iterable(low if len(low) == 1 else char for char in text for low in (char.lower(),)))


def _stretches(marked: str, text: str, outer: Offsets) -> Stretches:
    """`marked` is the text with every character that does not fold to exactly one replaced by NUL."""
    at, origin, until = array("I", (0,)), array("I", (0,)), array("I", (0,))
    folded = done = 0
    for run in _ODD_RUNS.finditer(marked):
        folded += run.start() - done
        for index in range(run.start(), run.end()):
            size = len(_FOLD[ord(text[index])])
            if size:
                at.append(folded)
                origin.append(index)
                until.append(index + 1)
                folded += size
        done = run.end()
        at.append(folded)
        origin.append(done)
        until.append(0)
    return Stretches(at, origin, until, outer)


def fold_word(word: str) -> str:
    """A word of a table as `native` would have it."""
    return _lower("".join(_FOLD[ord(char)] for char in word))
