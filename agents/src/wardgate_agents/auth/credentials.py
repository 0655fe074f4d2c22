"""What a request offers to prove who it is: one credential, none, or something that is not to be guessed at.

Kind: pure.
"""

import base64
import binascii
import re
from typing import Final, NamedTuple

from wardgate_agent import Headers

MAX_CREDENTIAL_CHARS: Final = 8_192
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Bearer(NamedTuple):
    token: str


class ApiKey(NamedTuple):
    key: str


class Basic(NamedTuple):
    user: str
    password: str


class Unusable(NamedTuple):
    """A credential that cannot be read. `code` for the audit, `is_ambiguous`: there was more than one."""

    scheme: str
    code: str
    is_ambiguous: bool = False


Credential = Bearer | ApiKey | Basic | Unusable


def credential_of(headers: Headers, api_key_header: str | None) -> Credential | None:
    """The one credential of a request. None: it offers none."""
    authorizations = headers.get_all("authorization")
    keys = headers.get_all(api_key_header) if api_key_header is not None else []
    if not authorizations and not keys:
        return None
    if len(authorizations) + len(keys) > 1:
        return Unusable("", "several_credentials", is_ambiguous=True)
    if keys:
        return ApiKey(keys[0]) if 0 < len(keys[0]) <= MAX_CREDENTIAL_CHARS else Unusable("apikey", "malformed")
    scheme, _, value = authorizations[0].partition(" ")
    scheme = scheme.lower()
    value = value.strip(" ")
    if not value or len(value) > MAX_CREDENTIAL_CHARS:
        return Unusable(scheme, "malformed")
    if scheme == "bearer":
        return Bearer(value)
    if scheme == "basic":
        return _basic(value)
    return Unusable(scheme, "unknown_scheme")


def _basic(value: str) -> Basic | Unusable:
    """RFC 7617: base64 of `user:password`, in UTF-8 as our challenge asks for."""
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        return Unusable("basic", "malformed")
    user, colon, password = text.partition(":")
    if not colon or not user or _CONTROL.search(text):
        return Unusable("basic", "malformed")
    return Basic(user, password)
