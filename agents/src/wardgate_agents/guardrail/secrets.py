"""API keys and private keys: by the issuer's prefix and form, else by what they are assigned to and their entropy.

    prefix       a form that only one issuer uses (AWS, GitHub, Slack, Stripe, ...) with a body that looks random
    JWT          three parts, the first of which is a JOSE header
    PEM, PuTTY   private keys; one that is cut off as far as it goes
    assigned     `password = "..."`, `"apiKey": "..."`, `Bearer ...` with a value that looks random

Placeholders (`sk-...`, `${KEY}`, `changeme`, `xxxxxxxx`) do not look random. Each pattern begins where no character of
its body stands before it, so that every character is looked at a bounded number of times.

Kind: pure.
"""

import binascii
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from wardgate_agents.guardrail.normalise import View
from wardgate_agents.guardrail.spans import Finding


class _Key(NamedTuple):
    """`literals`: one of them is in every text that the pattern fits. `body` of the key is group 1."""

    issuer: str
    literals: tuple[str, ...]
    pattern: re.Pattern[str]
    bits: float  # Shannon entropy per character of the body at least


def _key(issuer: str, literals: str, pattern: str, bits: float = 3.0) -> _Key:
    return _Key(issuer, tuple(literals.split()), re.compile(rf"(?<![A-Za-z0-9_-])(?:{pattern})"), bits)


_KEYS: Final = (
    _key("AWS", "AKIA ASIA", r"(?:AKIA|ASIA)([A-Z0-9]{16})(?![A-Za-z0-9])", 2.8),
    _key("GitHub", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_([A-Za-z0-9]{36,255}+)"),
    _key("GitHub", "github_pat_", r"github_pat_([A-Za-z0-9_]{50,255}+)"),
    _key("GitLab", "glpat-", r"glpat-([A-Za-z0-9_-]{20,64}+)"),
    _key("Slack", "xox", r"xox[abeoprs]-([A-Za-z0-9-]{20,250}+)", 2.8),
    _key("Slack", "xapp-", r"xapp-([A-Za-z0-9-]{20,250}+)", 2.8),
    _key("Slack", "hooks.slack.com", r"https://hooks\.slack\.com/(?:services|workflows)/([A-Za-z0-9/]{20,100}+)"),
    _key("Stripe", "sk_live_ rk_live_ sk_test_ rk_test_", r"[rs]k_(?:live|test)_([A-Za-z0-9]{16,247}+)"),
    _key("Stripe", "whsec_", r"whsec_([A-Za-z0-9+/]{24,64}+)"),
    _key("Anthropic", "sk-ant-", r"sk-ant-[a-z0-9]{2,12}-([A-Za-z0-9_-]{20,200}+)"),
    _key("OpenAI", "sk-", r"sk-(?!ant-)(?:proj-|svcacct-|admin-|None-)?([A-Za-z0-9_-]{20,250}+)", 3.3),
    _key("Google", "AIza", r"AIza([A-Za-z0-9_-]{35})(?![A-Za-z0-9_-])"),
    _key("Google", "GOCSPX-", r"GOCSPX-([A-Za-z0-9_-]{24,40}+)"),
    _key("npm", "npm_", r"npm_([A-Za-z0-9]{36})(?![A-Za-z0-9])"),
    _key("PyPI", "pypi-", r"pypi-(AgE[A-Za-z0-9_-]{40,500}+)"),
    _key("Hugging Face", "hf_", r"hf_([A-Za-z0-9]{30,60}+)"),
    _key("SendGrid", "SG.", r"SG\.([A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}+)"),
    _key("Twilio", "SK", r"SK([0-9a-f]{32})(?![A-Za-z0-9])"),
)
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{8,}+)\.(eyJ[A-Za-z0-9_-]{4,}+)\.[A-Za-z0-9_-]{8,}+")
_ASSIGNED: Final = re.compile(  # in lower case
    r"(?:api[_-]?key|secret|token|passw(?:d|ord|ort)|pwd|access[_-]?key|credentials?|private[_-]?key)(?:[_-][a-z]{2,12})?"
    r"[\"']?\s{0,3}(?::=|=>|[=:])\s{0,3}|\bbearer {1,3}"
)
_ASSIGNED_WORDS: Final = ("key", "secret", "token", "passw", "pwd", "credential", "bearer ")
_ASSIGNED_VALUE: Final = re.compile(
    r"\"([^\"\n]{12,200})\"|'([^'\n]{12,200})'|([^\s\"',:;<>(){}`=]{12,500}+={0,2})(?!\()"
)
_ASSIGNED_BITS: Final = 3.2
_ASSIGNED_HEX: Final = re.compile(r"[0-9a-fA-F]{32,128}\Z")
_VALUE: Final = re.compile(r"[!-~]+\Z")
_PLACEHOLDER: Final = re.compile(
    r"\$\{|\{\{|<|\*{3}|x{4}|\.{3}|your|example|changeme|placeholder|environ|getenv|process\.env|dummy|redacted", re.I
)
_PEM_BEGIN: Final = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[23]:"
)
_PEM_END: Final = re.compile(
    r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----|Private-MAC: ?[0-9a-f]{40,64}"
)
_PEM_BODY: Final = re.compile(r"(?:[A-Za-z0-9+/=\s\\:,.]|-(?!----))*")
_PEM_MAX_CHARS: Final = 32_768


def find_keys(view: View) -> Iterator[Finding]:
    """Every API key; places are those of the original content."""
    text = view.cased
    for key in _KEYS:
        if not any(literal in text for literal in key.literals):
            continue
        for match in key.pattern.finditer(text):
            if looks_random(match[1], key.bits):
                yield _finding(view, f"an API key ({key.issuer})", 0.97, match.start(), match.end())
    if "eyJ" in text:
        for match in _JWT.finditer(text):
            if _is_jose(match[1]):
                yield _finding(view, "a signed token (JWT)", 0.95, match.start(), match.end())
    if any(word in view.native for word in _ASSIGNED_WORDS):
        for name in _ASSIGNED.finditer(view.native):
            value = _ASSIGNED_VALUE.match(text, name.end())
            if value is not None and _is_secret(value[value.lastindex or 0]):
                start, end = value.span(value.lastindex or 0)
                yield _finding(view, "a secret that is assigned to a name", 0.8, start, end)


def find_private_keys(content: str) -> Iterator[Finding]:
    """Every private key of the whole content: they are long, and span windows."""
    if "PRIVATE KEY" not in content and "PuTTY" not in content:
        return
    end_at = None
    done = 0
    for begin in _PEM_BEGIN.finditer(content):
        if begin.start() < done:
            continue
        if end_at is None or (0 <= end_at[0] < begin.end()):  # the next end, searched for once
            match = _PEM_END.search(content, begin.end())
            end_at = match.span() if match is not None else (-1, -1)
        body_end = (
            len(content[begin.end() : (_PEM_BODY.match(content, begin.end()) or begin).end()].rstrip()) + begin.end()
        )
        if (
            begin.end() <= end_at[0] <= begin.end() + _PEM_MAX_CHARS
            and "-----BEGIN" not in content[begin.end() : end_at[0]]
        ):
            done = end_at[1]
        else:
            done = max(begin.end(), body_end)
        yield Finding("private_key", "a private key", "critical", 0.99, begin.start(), done)


def entropy_bits(text: str) -> float:
    """Shannon's, per character."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values()) if size else 0.0


def looks_random(body: str, bits: float) -> bool:
    """Digits and letters mixed, and enough different ones."""
    body = body[:256]
    return any(map(str.isdigit, body)) and any(map(str.isalpha, body)) and entropy_bits(body) >= bits


def _is_secret(value: str) -> bool:
    if not _VALUE.match(value) or _PLACEHOLDER.search(value) or "://" in value:
        return False
    if _ASSIGNED_HEX.match(value):
        return entropy_bits(value) >= 3.0
    return len(value) >= 14 and looks_random(value, _ASSIGNED_BITS) and _mixes(value)


def _mixes(value: str) -> bool:
    """Letters and digits change often: `get_token_v2` and `release-2024` do not."""
    kinds = "".join(
        "0" if char.isdigit() else "A" if char.isupper() else "a" if char.islower() else "-" for char in value
    )
    return sum(a != b for a, b in itertools.pairwise(kinds)) * 4 >= len(kinds)


def _is_jose(part: str) -> bool:
    part = part[:512]
    try:
        data = binascii.a2b_base64(part.replace("-", "+").replace("_", "/") + "==="[: -len(part) % 4])
        return len(part) == 512 or "alg" in json.loads(data)
    except (ValueError, RecursionError, TypeError):
        return False


def _finding(view: View, text: str, confidence: float, start: int, end: int) -> Finding:
    return Finding("api_key", text, "critical", confidence, *view.span(start, end))
