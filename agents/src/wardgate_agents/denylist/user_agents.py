r"""Rules about the User-Agent of a request.

    contains sqlmap              somewhere in it, in upper or lower case
    regex    ^curl/7\.[0-4]\d    RE2 finds it somewhere; (?i) for upper or lower case
    absent                       the request has no User-Agent, or an empty one

One of more than 4,096 characters fits any rule but `absent`.

Kind: pure.
"""

from collections.abc import Iterable

from wardgate_agents.denylist.patterns import Literals, Patterns


class UserAgents:
    """Rules about user agents with where each was written down."""

    __slots__ = ("_absent", "_literals", "_patterns", "count")

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        """(rule, where) pairs; ValueError with `where` in front for one that cannot be read."""
        self._absent: str | None = None
        self.count = 0
        literals: list[tuple[str, str]] = []
        patterns: list[tuple[str, str]] = []
        for text, where in rules:
            kind, _, value = text.partition(" ")
            value = value.strip()
            if kind == "contains" and value:
                literals.append((value, where))
            elif kind == "regex" and value:
                patterns.append((value, where))
            elif text == "absent":
                self._absent = self._absent or where
            else:
                raise ValueError(f"{where}: {text!r} is not `contains TEXT`, `regex PATTERN` or `absent`")
            self.count += 1
        self._literals = Literals(literals)
        self._patterns = Patterns(patterns)

    def __bool__(self) -> bool:
        return self.count > 0

    def find(self, value: str) -> str | None:
        """Where the first rule that fits this User-Agent was written down; "" is one that is absent."""
        if not value:
            return self._absent
        return self._literals.find(value) or self._patterns.find(value)
