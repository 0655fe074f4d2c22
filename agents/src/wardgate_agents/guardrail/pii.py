"""Personal data by their form, where the number can be what it claims to be.

    credit_card  issuer prefix, a length that the issuer uses, Luhn
    iban         the country's length, ISO 7064 MOD 97-10
    ssn          area, group and serial ranges of the SSA, not the numbers that became famous; context for bare ones
    phone        E.164 with an assigned country code, North American and national shapes; context for what is ambiguous
    email        a name, an at-sign (also %40, [at]) and a domain with a plausible end

Searched is View.cased: full-width digits, invisible characters and exotic blanks are plain there. Every candidate is
looked at once, and a look costs a bounded number of steps.

Kind: pure.
"""

import re
from collections.abc import Iterator
from typing import Final

from wardgate_agents.guardrail.normalise import View
from wardgate_agents.guardrail.spans import Finding

_GROUP: Final = re.compile(r"[0-9]+")
# Where a card's number may begin, and how far it would go; (?=...) because the next group may begin one as well.
_CARD: Final = re.compile(
    r"(?<![0-9A-Za-z_.])(?=((?:[0-9]{4}([ -])[0-9]{4}\2[0-9]{4}\2[0-9]{1,4}|[0-9]{4}([ -])[0-9]{6}\3[0-9]{4,5}"
    r"|[0-9]{6}[ -][0-9]{13}|[0-9]{12,19}))((?:[ -][0-9]{3})?)(?![0-9A-Za-z_]))"
)
_CARD_WORDS: Final = re.compile(
    r"card|visa|master|amex|pan\b|credit|debit|maestro|karte|carte|tarjeta|carta\b|cart[ãa]o"
)
_ISSUERS: Final[tuple[tuple[int, int, frozenset[int]], ...]] = (  # first and last prefix of six digits, lengths
    (400000, 499999, frozenset((16,))),  # Visa
    (510000, 559999, frozenset((16,))),  # Mastercard
    (222100, 272099, frozenset((16,))),
    (340000, 349999, frozenset((15,))),  # American Express
    (370000, 379999, frozenset((15,))),
    (601100, 601199, frozenset((16, 19))),  # Discover
    (644000, 659999, frozenset((16, 19))),
    (300000, 305999, frozenset((14,))),  # Diners
    (309500, 309599, frozenset((14,))),
    (360000, 369999, frozenset((14,))),
    (380000, 399999, frozenset((14,))),
    (352800, 358999, frozenset((16,))),  # JCB
    (620000, 629999, frozenset((16, 17, 18, 19))),  # UnionPay
    (810000, 817199, frozenset((16, 17, 18, 19))),
    (220000, 220499, frozenset((16,))),  # Mir
)
_RARE_ISSUERS: Final = (  # only beside a word for a card: many other numbers look like them
    (500000, 509999, frozenset(range(12, 20))),  # Maestro
    (560000, 589999, frozenset(range(12, 20))),
    (630400, 630499, frozenset(range(12, 20))),
    (675900, 676999, frozenset(range(12, 20))),
    (400000, 499999, frozenset((13, 19))),  # Visa
)

_IBAN_LENGTHS: Final = {
    code: int(size)
    for code, size in (
        pair.split(":")
        for pair in [
            "AD:24",
            "AE:23",
            "AL:28",
            "AT:20",
            "AZ:28",
            "BA:20",
            "BE:16",
            "BG:22",
            "BH:22",
            "BI:27",
            "BR:29",
            "BY:28",
            "CH:21",
            "CR:22",
            "CY:28",
            "CZ:24",
            "DE:22",
            "DJ:27",
            "DK:18",
            "DO:28",
            "EE:20",
            "EG:29",
            "ES:24",
            "FI:18",
            "FK:18",
            "FO:18",
            "FR:27",
            "GB:22",
            "GE:22",
            "GI:23",
            "GL:18",
            "GR:27",
            "GT:28",
            "HN:28",
            "HR:21",
            "HU:28",
            "IE:22",
            "IL:23",
            "IQ:23",
            "IS:26",
            "IT:27",
            "JO:30",
            "KW:30",
            "KZ:20",
            "LB:28",
            "LC:32",
            "LI:21",
            "LT:20",
            "LU:20",
            "LV:21",
            "LY:25",
            "MC:27",
            "MD:24",
            "ME:22",
            "MK:19",
            "MN:20",
            "MR:27",
            "MT:31",
            "MU:30",
            "NI:28",
            "NL:18",
            "NO:15",
            "OM:23",
            "PK:24",
            "PL:28",
            "PS:29",
            "PT:25",
            "QA:29",
            "RO:24",
            "RS:22",
            "RU:33",
            "SA:24",
            "SC:31",
            "SD:18",
            "SE:24",
            "SI:19",
            "SK:24",
            "SM:27",
            "SO:23",
            "ST:25",
            "SV:28",
            "TL:23",
            "TN:24",
            "TR:26",
            "UA:29",
            "VA:22",
            "VG:24",
            "XK:20",
            "YE:30",
        ]
    )
}
_IBAN_HEAD: Final = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})([0-9]{2})(?=[ -]?[A-Za-z0-9])")
_IBAN_BODIES: Final = {
    size: re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{size - 4}}}(?![A-Za-z0-9])") for size in set(_IBAN_LENGTHS.values())
}

_SSN: Final = re.compile(r"(?<![\w.-])([0-9]{3})([ -]?)([0-9]{2})\2([0-9]{4})(?![\w-]|\.[0-9])")
_SSN_WORDS: Final = re.compile(r"\bssns?\b|\bsocial[ -]?sec|\bsoc\.? ?sec|\btin\b|\btax(?:payer)? id")
_SSN_NOT: Final = frozenset(("078051120", "219099999", "457555462", "987654320"))  # printed in advertisements

_NUMBER_WORDS: Final = re.compile(
    r"(?:order|part|serial|invoice|case|ticket|track|sku|isbn|version|model|item|article|account|number of|commit|"
    r"build|revision|bestell|rechnung|auftrag|artikel|commande|pedido|id\b|ref\b|no\.$)[^\n]{0,12}$"
)

_LOCAL: Final = r"[\w.+'’-]"
_EMAIL: Final = re.compile(
    rf"(?<!{_LOCAL})({_LOCAL}++)(?:@|%40)((?:[^\W_](?:[\w-]{{0,62}})\.){{1,8}}((?:xn--[a-z0-9-]{{2,40}}|[^\W\d_]{{2,24}})))(?![\w@-])",
    re.IGNORECASE,
)
_EMAIL_SPELT: Final = re.compile(
    rf"(?<!{_LOCAL})({_LOCAL}++) ?[\[({{] ?at ?[\])}}] ?"
    r"((?:[^\W_][\w-]{0,62} ?(?:\.|[\[({] ?(?:dot|punkt|point|punto) ?[\])}]) ?){1,6}([^\W\d_]{2,24}))(?!\w)",
    re.IGNORECASE,
)
_NO_DOMAINS_TEXT: Final = "png jpg jpeg gif svg webp ico css js ts py json html htm md txt xml yaml yml toml lock "
_NO_DOMAINS: Final = frozenset(_NO_DOMAINS_TEXT.split())
_NAME_MAX: Final = 64

_PHONE: Final = re.compile(r"(?<![\w.,/-])(?<![0-9]:)\+?\(?[0-9](?:[0-9]|[ ./()-]{1,2}(?=[0-9(]))*")
_PHONE_WORDS: Final = re.compile(
    r"\b(?:phone|tel|tél|telephone|telefon|téléphone|teléfono|telefono|telefone|telefoon|mobile|mobil|cell|handy|fax|call|"
    r"ring|whatsapp|sms|text me|dial|contact|hotline|portable|móvil|movil|celular|cellulare|rufe?|anruf|rufnummer|"
    r"numero|número|appel\w{0,4}|llam\w{0,4}|bel|"
    r"тел\w{0,6}|звон\w{0,4})\b|电话|手机|電話|携帯"
)
_CONTEXT_CHARS: Final = 40
_NANP: Final = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-]?)[2-9][0-9]{2}[ .-]?[0-9]{4}")
_NANP_PLAIN: Final = re.compile(
    r"(?:1[ .-])?\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}|(?:1[.-])?[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1[0-9]{4}"
)
_PHONE_WORDS_AFTER: Final = re.compile(r"\b(?:phone|tel|telefon|mobile|mobil|cell|handy|fax|whatsapp)\b")
_DATE: Final = re.compile(
    r"(?:19|20)[0-9]{2}[-./ ][0-9]{1,2}[-./ ][0-9]{1,2}|[0-9]{1,2}[-./][0-9]{1,2}[-./](?:19|20)[0-9]{2}"
)
_COUNTRY_CODES_TEXT: Final = (
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 "
    "82 84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 "
    "234 235 236 237 238 239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 "
    "261 262 263 264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 "
    "372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 "
    "508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 "
    "686 687 688 689 690 691 692 800 850 852 853 855 856 870 880 886 888 960 961 962 963 964 965 966 967 968 "
    "970 971 972 973 974 975 976 977 979 992 993 994 995 996 998 "
)
_COUNTRY_CODES: Final = frozenset(_COUNTRY_CODES_TEXT.split())


def find_personal(view: View) -> Iterator[Finding]:
    """Every candidate that passes its check; places are those of the original content."""
    text = view.cased
    lower = view.native
    if "@" in text or "%40" in text or "at" in lower:
        yield from _emails(view, text)
    yield from _cards(view, text, lower)
    yield from _ibans(view, text)
    yield from _ssns(view, text, lower)
    yield from _phones(view, text, lower)


def is_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: the last digit checks the others."""
    odd = sum(map(int, digits[-1::-2]))
    even = sum(_DOUBLED[digit] for digit in digits[-2::-2])
    return (odd + even) % 10 == 0


_DOUBLED: Final = {str(digit): sum(divmod(2 * digit, 10)) for digit in range(10)}


def is_iban(text: str) -> bool:
    """A known country, its length, and a remainder of 1 (ISO 7064). Blanks and dashes are not part of it."""
    if _IBAN_LENGTHS.get(text[:2].upper()) != len(text) or not text[4:].strip("0"):
        return False
    return 2 <= int(text[2:4]) <= 98 and int("".join(str(int(char, 36)) for char in text[4:] + text[:4])) % 97 == 1


def is_card(digits: str, *, is_sure: bool) -> bool:
    """Whether an issuer gives out such numbers. `is_sure`: the text says that it is about a card."""
    prefix = int(digits[:6])
    rows = _ISSUERS + _RARE_ISSUERS if is_sure else _ISSUERS
    if not any(first <= prefix <= last and len(digits) in sizes for first, last, sizes in rows):
        return False
    return len(set(digits)) > 1 and is_luhn(digits)


def is_ssn(digits: str) -> bool:
    """Nine digits that the SSA may have given out: no area 000, 666, 9xx, no group 00, no serial 0000."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
        return False
    return digits not in _SSN_NOT and len(set(digits)) > 1


def _finding(view: View, category: str, text: str, confidence: float, start: int, end: int) -> Finding:
    return Finding(
        category, text, "medium" if category in ("email", "phone") else "high", confidence, *view.span(start, end)
    )


def _before(lower: str, start: int, chars: int = _CONTEXT_CHARS) -> str:
    return lower[max(0, start - chars) : start]


def _cards(view: View, text: str, lower: str) -> Iterator[Finding]:
    done = 0
    for match in _CARD.finditer(text):
        start = match.start()
        if start < done:
            continue
        for end in (match.end(4), match.end(1)):  # with three more digits: number of 19, or what follows a card
            digits = "".join(_GROUP.findall(text, start, end))
            is_sure = _CARD_WORDS.search(_before(lower, start)) is not None
            if is_card(digits, is_sure=is_sure):
                is_grouped = end - start > len(digits)
                yield _finding(
                    view,
                    "credit_card",
                    "a payment card's number",
                    0.99 if is_sure else 0.95 if is_grouped else 0.85,
                    start,
                    end,
                )
                done = end
                break


def _ibans(view: View, text: str) -> Iterator[Finding]:
    for head in _IBAN_HEAD.finditer(text):
        size = _IBAN_LENGTHS.get(head[1].upper())
        if size is None or not 2 <= int(head[2]) <= 98:
            continue
        body = _IBAN_BODIES[size].match(text, head.end())
        if body is not None and is_iban((head[0] + body[0]).replace(" ", "").replace("-", "")):
            yield _finding(view, "iban", "a bank account's number (IBAN)", 0.99, head.start(), body.end())


def _ssns(view: View, text: str, lower: str) -> Iterator[Finding]:
    for match in _SSN.finditer(text):
        if not is_ssn(match[1] + match[3] + match[4]):
            continue
        before = _before(lower, match.start())
        is_sure = _SSN_WORDS.search(before) is not None
        if not is_sure and (match[2] != "-" or _NUMBER_WORDS.search(before)):
            continue
        yield _finding(view, "ssn", "a US social security number", 0.97 if is_sure else 0.8, match.start(), match.end())


def _emails(view: View, text: str) -> Iterator[Finding]:
    patterns = [_EMAIL] if "@" in text or "%40" in text else []
    if "at]" in text or "at)" in text or "at }" in text or "at ]" in text or "at )" in text or "at}" in text:
        patterns.append(_EMAIL_SPELT)
    for pattern in patterns:
        for match in pattern.finditer(text):
            name = match[1].lstrip(".'’+-").rstrip(".'’")
            start = match.end(1) - len(match[1].lstrip(".'’+-"))
            if not name or len(name) > _NAME_MAX or match[3].lower() in _NO_DOMAINS:
                continue
            if text[max(0, start - 3) : start] == "://" or (
                name == "git" and text[match.end() : match.end() + 1] == ":"
            ):
                continue
            yield _finding(view, "email", "an e-mail address", 0.95 if pattern is _EMAIL else 0.8, start, match.end())


def _phones(view: View, text: str, lower: str) -> Iterator[Finding]:
    for match in _PHONE.finditer(text):
        if match.end() - match.start() < 8:
            continue
        found = match[0].rstrip(" ./(-")
        end = match.start() + len(found)
        confidence = _phone_confidence(text, lower, found, match.start(), end)
        if confidence:
            yield _finding(view, "phone", "a phone number", confidence, match.start(), end)


def _phone_confidence(text: str, lower: str, found: str, start: int, end: int) -> float:
    """0.0 for what is no phone number, or cannot be told from other numbers."""
    digits = "".join(_GROUP.findall(found))
    if not 7 <= len(digits) <= 15 or found.count("(") != found.count(")") or _DATE.search(found):
        return 0.0
    if text[end : end + 1].isalnum() or text[end : end + 2] == ":/" or len(set(digits)) < 3:
        return 0.0
    if end < len(text) and text[end] in "-_%@." and text[end + 1 : end + 2].isalnum():
        return 0.0
    before = _before(lower, start)
    if found[0] == "+":
        if not any(digits[:size] in _COUNTRY_CODES for size in (1, 2, 3)) or len(digits) < 9:
            return 0.0
        return 0.9 if digits[0] != "1" or _NANP.fullmatch(found) else 0.0
    is_sure = _PHONE_WORDS.search(before) is not None
    if not is_sure and _NUMBER_WORDS.search(before):
        return 0.0
    if _NANP_PLAIN.fullmatch(found):
        return 0.9 if is_sure else 0.75
    if not is_sure and not _PHONE_WORDS_AFTER.search(lower[end : end + 25]):
        return 0.0
    if _NANP.fullmatch(found):
        return 0.85
    groups = len(_GROUP.findall(found))
    if found.startswith("00"):
        return 0.85 if any(digits[2 : 2 + size] in _COUNTRY_CODES for size in (1, 2, 3)) and len(digits) >= 10 else 0.0
    if found.lstrip("(")[0] == "0" and 9 <= len(digits) <= 12:
        return 0.85
    return 0.7 if groups >= 3 and 9 <= len(digits) <= 11 else 0.0
