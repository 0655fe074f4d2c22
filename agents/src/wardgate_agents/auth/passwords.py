"""Passwords as scrypt hashes: making one, comparing one, and the file of names with theirs.

    alice:$scrypt$ln=15,r=8,p=3$FXNlVeW8h0bZBpc5PQqVEA$bR0YBaM1bqM3BMs3qEWu4kKSv7UfjYSHW3yQq8V6OSQ

The parameters stand in the hash (the PHC string format), so they can be raised for new passwords alone. The default
takes 32 MiB and 150 to 300 ms of a core: too long for an event loop, so `matches` is called in a thread, and hashlib
lets the others run meanwhile.

Kind: pure (`hash_password` draws a salt).
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple

DEFAULT_LN: Final = 15  # N = 2**15, r = 8, p = 3: one of OWASP's equivalent settings for scrypt, the one of 32 MiB
DEFAULT_R: Final = 8
DEFAULT_P: Final = 3
SALT_BYTES: Final = 16
HASH_BYTES: Final = 32
MIN_COST: Final = 2**16  # N * r * p; less is not worth the name
MAX_MEMORY_BYTES: Final = 128 * 1024 * 1024  # of one comparison: 128 * N * r
MAX_P: Final = 16
_FORM: Final = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{8,})\$([A-Za-z0-9+/]{20,})")
_USER: Final = re.compile(r"[^:\x00-\x1f\x7f]{1,200}")


class Hashed(NamedTuple):
    """A password's hash with what it was made with."""

    ln: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    def __str__(self) -> str:
        return f"$scrypt$ln={self.ln},r={self.r},p={self.p}${_text(self.salt)}${_text(self.digest)}"


def hash_password(password: str, *, ln: int = DEFAULT_LN, r: int = DEFAULT_R, p: int = DEFAULT_P) -> Hashed:
    """With a salt of its own."""
    salt = secrets.token_bytes(SALT_BYTES)
    return Hashed(ln, r, p, salt, _scrypt(password, salt, ln, r, p, HASH_BYTES))


def matches(password: str, hashed: Hashed) -> bool:
    """Whether it is the password; takes as long as its parameters say."""
    digest = _scrypt(password, hashed.salt, hashed.ln, hashed.r, hashed.p, len(hashed.digest))
    return hmac.compare_digest(digest, hashed.digest)


def parse_hash(text: str) -> Hashed:
    """What `hash_password` wrote. ValueError says what is wrong with it."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(
            "not `$scrypt$ln=..,r=..,p=..$SALT$HASH`; make one with: wardgate-agent-auth hash-password USER"
        )
    ln, r, p = (int(number) for number in match.group(1, 2, 3))
    if not (
        1 <= p <= MAX_P and r >= 1 and ln >= 1 and 2**ln * r * p >= MIN_COST and 128 * 2**ln * r <= MAX_MEMORY_BYTES
    ):
        raise ValueError(
            f"ln={ln},r={r},p={p} is too cheap to be safe or too dear to be served; ln=15,r=8,p=3 is right"
        )
    try:
        return Hashed(ln, r, p, _bytes(match[4]), _bytes(match[5]))
    except binascii.Error:
        raise ValueError("salt or hash is no base64") from None


def check_user(user: str) -> str:
    """A name that can stand in the file, and in a request; ValueError else."""
    if not _USER.fullmatch(user):
        raise ValueError(f"{user[:60]!r} is no user name: 1 to 200 characters, no colon, no control characters")
    return user


class Passwords:
    """The names of a file with their hashes."""

    def __init__(self, rows: Iterable[tuple[int, str]]) -> None:
        """(line number, line) pairs; ValueError with the number in front for one that cannot be read."""
        self._rows: dict[str, Hashed] = {}
        for number, line in rows:
            user, colon, text = line.partition(":")
            if not colon or not _USER.fullmatch(user):
                raise ValueError(f"{number}: not `USER:$scrypt$...`")
            if user in self._rows:
                raise ValueError(f"{number}: {user!r} stands in the file already")
            try:
                self._rows[user] = parse_hash(text)
            except ValueError as error:
                raise ValueError(f"{number}: {error}") from None

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, user: str) -> Hashed | None:
        return self._rows.get(user)

    def decoy(self) -> Hashed:
        """To be compared with for a name that is not there: it costs what a name that is there costs."""
        first = next(iter(self._rows.values()), None)
        ln, r, p = first[:3] if first is not None else (DEFAULT_LN, DEFAULT_R, DEFAULT_P)
        return Hashed(ln, r, p, secrets.token_bytes(SALT_BYTES), secrets.token_bytes(HASH_BYTES))


def _scrypt(password: str, salt: bytes, ln: int, r: int, p: int, length: int) -> bytes:
    n = 2**ln
    return hashlib.scrypt(
        password.encode(), salt=salt, n=n, r=r, p=p, dklen=length, maxmem=128 * r * (n + p + 2) + 1_048_576
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
