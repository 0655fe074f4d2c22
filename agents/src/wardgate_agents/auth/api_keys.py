"""API keys: a file of names with the hashes of their keys, and whose key one is.

    ci-server  sha256:5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8

A key is random and long (`wardgate-agent-auth hash-key` makes one), so one SHA-256 is enough: there is nothing to
guess. The look-up is by the beginning of the hash, which nobody can choose; the comparison takes the same time wherever
the hashes differ. A name may have several keys, so that one can be replaced by the next.

Kind: pure.
"""

import hmac
import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

_NAME: Final = re.compile(r"[!-~]{1,200}")
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_INDEX_CHARS: Final = len("sha256:") + 8


def hash_key(key: str) -> str:
    """As the file has it."""
    return "sha256:" + sha256(key.encode()).hexdigest()


class ApiKeys:
    """The keys of a file, by the beginning of their hash."""

    def __init__(self, rows: Iterable[tuple[int, str]]) -> None:
        """(line number, line) pairs; ValueError with the number in front for one that cannot be read."""
        self._rows: dict[str, list[tuple[str, str]]] = {}
        self._count = 0
        for number, line in rows:
            name, _, written = line.partition(" ")
            digest = written.strip()
            if not _HASH.fullmatch(digest) or not _NAME.fullmatch(name):
                raise ValueError(f"{number}: not `NAME sha256:HEX`; make lines with: wardgate-agent-auth hash-key NAME")
            same = self._rows.setdefault(digest[:_INDEX_CHARS], [])
            if any(known == digest for known, _ in same):
                raise ValueError(f"{number}: a key that stands in the file already")
            same.append((digest, name))
            self._count += 1

    def __len__(self) -> int:
        return self._count

    def owner(self, key: str) -> str | None:
        """Whose key it is; None if nobody's."""
        digest = hash_key(key)
        owner = None
        for known, name in self._rows.get(digest[:_INDEX_CHARS], ()):
            if hmac.compare_digest(known, digest):
                owner = name
        return owner
