"""The guardrail's `config` table: what is looked for, when it counts, and the operator's own patterns.

What cannot be right is rejected with the key's name, here and at once: a guardrail that looks for nothing because of a
misspelt category would be found out by an attacker.

Kind: pure.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal

import re2
from msgspec import Meta, field

from wardgate_agents.guardrail.normalise import View
from wardgate_agents.guardrail.scan import PII_RANK, Wanted
from wardgate_agents.guardrail.signals import ALL_IDS, CATEGORIES, Signal
from wardgate_agents.guardrail.spans import Finding
from wardgate_agents.settings import ConfigRejected, Settings

Inspection = Literal["prompt_injection", "pii_detection"]
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_RE2_MEM_BYTES: Final = 8 * 1024 * 1024
KNOWN: Final[dict[Inspection, frozenset[str]]] = {
    "prompt_injection": frozenset(CATEGORIES),
    "pii_detection": frozenset(PII_RANK),
}


class Pattern(Settings, frozen=True, kw_only=True):
    """An entry of `patterns`: what else is to be found. RE2 syntax, in the text after normalisation."""

    category: Annotated[str, Meta(max_length=64)]
    regex: Annotated[str, Meta(min_length=1, max_length=1_000)]
    inspection: Inspection = "pii_detection"
    description: Annotated[str, Meta(max_length=200)] = ""
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    confidence: Annotated[float, Meta(ge=0, le=1)] = 0.9  # of personal data
    weight: Annotated[float, Meta(gt=0, le=5)] = 1.0  # of an injection's signal


class GuardrailSettings(Settings, frozen=True, kw_only=True):
    """The `config` table."""

    injection_threshold: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    pii_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.5
    categories: dict[str, bool] = field(default_factory=dict)
    weights: dict[str, Annotated[float, Meta(ge=0, le=5)]] = field(default_factory=dict)
    labels: dict[str, Annotated[str, Meta(max_length=100)]] = field(default_factory=dict)
    decode_depth: Annotated[int, Meta(ge=0, le=4)] = 2
    when_busy: Literal["refuse", "error"] = "refuse"
    max_content_bytes: Annotated[int, Meta(ge=1_024, le=8_388_608)] = 4_194_304
    patterns: Annotated[list[Pattern], Meta(max_length=100)] = field(default_factory=list)


class Rules:
    """A configuration that was checked. `known`: the categories per inspection type, the operator's included."""

    def __init__(self, settings: GuardrailSettings) -> None:
        """Raises ConfigRejected."""
        self.settings = settings
        self.known: dict[str, frozenset[str]] = {
            kind: names | {one.category for one in settings.patterns if one.inspection == kind}
            for kind, names in KNOWN.items()
        }
        every = frozenset().union(*self.known.values())
        for at, pattern in enumerate(settings.patterns):
            if not _NAME.match(pattern.category):
                raise ConfigRejected(
                    f"config.patterns[{at}].category: {pattern.category!r} is no name: a-z, 0-9 and _, a letter first"
                )
            other: Inspection = "pii_detection" if pattern.inspection == "prompt_injection" else "prompt_injection"
            if pattern.category in KNOWN[other]:
                raise ConfigRejected(f"config.patterns[{at}].category: {pattern.category} belongs to {other}")
        _only("categories", settings.categories, every)
        _only("labels", settings.labels, self.known["pii_detection"])
        _only("weights", settings.weights, ALL_IDS | {f"pattern_{at}" for at in range(len(settings.patterns))})
        if not any(settings.categories.get(name, True) for name in every):
            raise ConfigRejected("config.categories: all are off; nothing would ever be found")
        compiled = [
            (_compiled(one.regex, f"config.patterns[{at}].regex"), at, one) for at, one in enumerate(settings.patterns)
        ]
        self._signals = [
            (regex, Signal(f"pattern_{at}", one.category, 0, one.weight, one.description or "an own pattern"))
            for regex, at, one in compiled
            if one.inspection == "prompt_injection"
        ]
        self._severities = {one.category: one.severity for one in settings.patterns}
        self._personal = [(regex, one) for regex, _, one in compiled if one.inspection == "pii_detection"]

    def wanted(self, inspection: Inspection, categories: Iterable[str]) -> Wanted:
        """What is looked for, for one event. `categories` are its own; none means all."""
        on = {name for name in self.known[inspection] if self.settings.categories.get(name, True)}
        asked = set(categories)
        if asked and inspection not in asked:
            on &= asked
        return Wanted(
            on.__contains__,
            self.settings.injection_threshold,
            self.settings.pii_confidence,
            self.settings.decode_depth,
            self.settings.weights,
            self._find_signals if self._signals else None,
            self._find_personal if self._personal else None,
        )

    def is_known(self, name: str) -> bool:
        """Whether an event may ask for it: a category, or an inspection type as all of its categories."""
        return name in self.known or any(name in names for names in self.known.values())

    def severity(self, finding: Finding) -> Finding:
        """With the severity that the operator gave to a category of his own."""
        severity = self._severities.get(finding.category)
        return finding if severity is None else finding._replace(severity=severity)

    def _find_signals(self, view: View) -> Iterator[tuple[int, int, Signal]]:
        for regex, signal in self._signals:
            for start, end in _matches(regex, view.cased):
                yield start, end, signal

    def _find_personal(self, view: View) -> Iterator[Finding]:
        for regex, one in self._personal:
            for start, end in _matches(regex, view.cased):
                text = one.description or "an own pattern"
                yield Finding(one.category, text, one.severity, one.confidence, *view.span(start, end))


def _only(key: str, given: Iterable[str], known: frozenset[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ConfigRejected(f"config.{key}: there is no {name!r}; {hint}")


def _compiled(regex: str, where: str) -> Any:
    """RE2 is linear in the text whatever the pattern, so an operator's cannot hold up the agent."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _RE2_MEM_BYTES
    try:
        made = re2.compile(regex.encode(), options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ConfigRejected(f"{where}: not a pattern for RE2 (github.com/google/re2/wiki/Syntax): {text}") from None
    if made.fullmatch(b"") is not None:
        raise ConfigRejected(f"{where}: fits the empty text, and so everywhere")
    return made


def _matches(regex: Any, text: str) -> Iterator[tuple[int, int]]:
    """Places in characters; RE2 counts bytes."""
    data = text.encode("utf-8", "surrogatepass")
    is_ascii = len(data) == len(text)
    chars = done = 0
    for match in regex.finditer(data):
        start, end = match.span()
        if start >= end:
            continue
        if is_ascii:
            yield start, end
            continue
        first = chars + len(data[done:start].decode("utf-8", "surrogatepass"))
        chars = first + len(data[start:end].decode("utf-8", "surrogatepass"))
        done = end
        yield first, chars
