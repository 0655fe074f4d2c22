r"""What is written in another code inside a text, made readable: base64, hex, escapes, tags, spaced letters.

    unescape()   %69, \u0069, \x69, &#105; in their places: the whole text again
    payloads()   stretches that stand for other text, one after the other in one text

Both give a text and where each part came from, so that it can be read (normalise.py), searched and decoded again.
How often is the caller's matter; every step gives less text than it took, or the same. What decodes to no text
(pictures, hashes, keys) is dropped. Nothing is judged here.

Kind: pure.
"""

import binascii
import html
import re
from array import array
from typing import Final
from urllib.parse import unquote_to_bytes

from wardgate_agents.guardrail.normalise import TAG_FIRST, TAG_LAST, Offsets, Stretches

_ESCAPES: Final = re.compile(
    r"(?=[%&\\])(?:(?:%[0-9A-Fa-f]{2})+|&#[0-9]{2,7};|&#[xX][0-9A-Fa-f]{2,6};|&(?:lt|gt|amp|quot|nbsp);"
    r"|(?:\\u[0-9A-Fa-f]{4})+|(?:\\x[0-9A-Fa-f]{2})+)"
)
# Nothing behind them can fail: a long run that is given up would be begun again at each character. Possessive are only
# sets of characters: of groups CPython before 3.11.5 takes more than the pattern says (its issue 106052).
_ESCAPES_MIN: Final = 2  # one of them is a "100%25"
_BASE64: Final = re.compile(
    r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}+(?:\r?\n[A-Za-z0-9+/_-]{8,}+)*={0,2}",
)
_HEX: Final = re.compile(r"(?<![0-9A-Za-z])(?:(?:0x)?[0-9A-Fa-f]{2}[ :,]?){12,}")
_TAGS: Final = re.compile(f"[{chr(TAG_FIRST)}-{chr(TAG_LAST)}]+")
_SUBDIVISION_FLAG: Final = re.compile(f"\U0001f3f4[{chr(TAG_FIRST)}-{chr(TAG_LAST)}]{{2,6}}\U000e007f")
_VARIATION: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{6,}")
_SPACED: Final = re.compile(r"(?<![^\W_])[^\W_](?:[ ._*|/\\+~=,-]{1,4}[^\W_](?![^\W_])){5,}")
_LETTER_GAP: Final = re.compile(r"[^\W_]([ ._*|/\\+~=,-]+)")
_READABLE_RUN: Final = re.compile(rb"[\x20-\x7e\t\r\n]{16,}")
_ODD: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_PIECE: Final = 65_536  # of one blob at a time; a multiple of 4 and of 2
_BETWEEN: Final = "\n.\n"  # between two payloads; ends a sentence
BIG_BLOB: Final = re.compile(r"[A-Za-z0-9+/_-]{4096,}+={0,2}")


def unescape(text: str, outer: Offsets) -> tuple[str, Offsets] | None:
    """The text with its escapes replaced by what they stand for; None if there are none to speak of."""
    if text.count("%") + text.count("&") + text.count("\\") == 0:
        return None
    parts: list[str] = []
    at, origin, until = array("I", (0,)), array("I", (0,)), array("I", (0,))
    made = done = count = 0
    for found in _ESCAPES.finditer(text):
        value = _unescaped(found[0])
        parts += (text[done : found.start()], value)
        made += found.start() - done
        if value:
            at.append(made)
            origin.append(found.start())
            until.append(found.end())
            made += len(value)
        done = found.end()
        at.append(made)
        origin.append(done)
        until.append(0)
        count += len(found[0]) // {"%": 3, "&": len(found[0])}.get(found[0][0], 4)  # escapes, not characters
    if count < _ESCAPES_MIN:
        return None
    parts.append(text[done:])
    return "".join(parts), Stretches(at, origin, until, outer)


def _unescaped(escape: str) -> str:
    if escape[0] == "%":
        return unquote_to_bytes(escape).decode("utf-8", "ignore")
    if escape[0] == "&":
        return html.unescape(escape)
    step = 6 if escape[1] == "u" else 4
    made = "".join(chr(int(escape[i + 2 : i + step], 16)) for i in range(0, len(escape), step))
    return made.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")  # pairs become one character


def payloads(text: str, outer: Offsets, *, has_tags: bool = False) -> tuple[str, Offsets] | None:
    """Everything that stands for other text, decoded and joined; None if there is nothing."""
    found: list[tuple[str, int, int]] = []
    for match in _BASE64.finditer(text):
        _add_blob(found, match[0], match.start())
    for match in _HEX.finditer(text):
        _add_hex(found, match[0], match.start())
    for match in _SPACED.finditer(text):
        found.append((_closed_up(match[0]), match.start(), match.end()))
    if has_tags:
        _add_tags(found, text)
    if not text.isascii():
        for match in _VARIATION.finditer(text):
            if readable := _readable(bytes(_variation_byte(char) for char in match[0])):
                found.append((readable, match.start(), match.end()))
    if not found:
        return None
    return _joined(found, outer)


def blob_pieces(text: str, outer: Offsets) -> list[tuple[str, Offsets]]:
    """The decoded pieces of blobs that may be larger than a window of the text."""
    out = []
    for match in BIG_BLOB.finditer(text):
        found: list[tuple[str, int, int]] = []
        blob = match[0]
        for start in range(0, len(blob), _PIECE):
            piece = blob[start : start + _PIECE]
            if not _add_hex(found, piece, match.start() + start):
                _add_blob(found, piece, match.start() + start)
        out += [_joined([one], outer) for one in found]
    return out


def _joined(found: list[tuple[str, int, int]], outer: Offsets) -> tuple[str, Offsets]:
    at, origin, until = array("I"), array("I"), array("I")
    made = 0
    for payload, start, end in found:
        at.append(made)
        origin.append(start)
        until.append(end)
        made += len(payload) + len(_BETWEEN)
    return _BETWEEN.join(payload for payload, _, _ in found), Stretches(at, origin, until, outer)


def _add_blob(found: list[tuple[str, int, int]], blob: str, start: int) -> None:
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    if "\n" in body:
        body = body.replace("\r", "").replace("\n", "")
    body = body[: len(body) - (len(body) % 4 == 1)]
    data = binascii.a2b_base64(body + "=" * (-len(body) % 4))
    if readable := _readable(data):
        found.append((readable, start, start + len(blob)))


def _add_hex(found: list[tuple[str, int, int]], digits: str, start: int) -> bool:
    try:
        data = bytes.fromhex(digits.replace("0x", "").replace(":", "").replace(",", ""))
    except ValueError:
        return False
    if readable := _readable(data):
        found.append((readable, start, start + len(digits)))
    return True


def _add_tags(found: list[tuple[str, int, int]], text: str) -> None:
    flags = [match.span() for match in _SUBDIVISION_FLAG.finditer(text)]  # England, Scotland, Wales: no message
    runs = [match for match in _TAGS.finditer(text) if not any(a <= match.start() < b for a, b in flags[:50])]
    if runs:
        hidden = "".join(run[0] for run in runs)
        shown = "".join(chr(ord(char) - 0xE0000) for char in hidden)
        found.append((shown, runs[0].start(), runs[-1].end()))


def _variation_byte(char: str) -> int:
    code = ord(char)
    return code - 0xFE00 if code < 0xE0000 else code - 0xE0100 + 16


def _readable(data: bytes) -> str:
    """Bytes as text; empty if they are none."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        runs = _READABLE_RUN.findall(data)
        return b"\n".join(runs).decode("ascii") if runs else ""
    return text if len(_ODD.findall(text)) * 20 <= len(text) else ""


def _closed_up(spaced: str) -> str:
    """`i g n o r e   a l l` as `ignore all`: the wider gaps are those between words, if there are two kinds."""
    gaps = _LETTER_GAP.findall(spaced)
    if len(set(gaps)) == 1:
        return spaced.replace(gaps[0], "")
    narrow = min(map(len, gaps))
    out = []
    for found in _LETTER_GAP.finditer(spaced):
        out.append(found[0][0])
        gap = found[1]
        if len(gap) > narrow or (gap.isspace() and not gaps[0].isspace()):
            out.append(" ")
    out.append(spaced[-1])
    return "".join(out)
