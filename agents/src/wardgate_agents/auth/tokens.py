"""A bearer token: its signature by one of our keys, its claims, and what it says about its bearer.

Every refusal has a code of its own for the audit; the client only learns that the token is invalid.
Signatures are PyJWT's matter. What is decided here is which key and algorithm it may use, and that issuer, audience,
expiry and user must be there.

Kind: pure.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jwt

from wardgate_agents.auth.identity import visible
from wardgate_agents.auth.jwks import Keys
from wardgate_agents.auth.settings import JwtSettings


class InvalidToken(Exception):
    """Not a token of ours. `code` for the audit."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Claims(NamedTuple):
    """What a valid token says."""

    user: str
    until_s: float  # Unix time; leeway included
    headers: tuple[tuple[str, str], ...]  # of claim_headers; a claim that is absent is not among them


# In the order in which they are asked: the first class that fits names the reason.
_CODES: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.InvalidAudienceError, "wrong_audience"),
    (jwt.InvalidIssuerError, "wrong_issuer"),
    (jwt.MissingRequiredClaimError, "missing_claim"),
    (jwt.InvalidSignatureError, "bad_signature"),
)


def verify(token: str, keys: Keys, settings: JwtSettings) -> Claims:
    """The claims of a token that is valid now; InvalidToken else."""
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError:
        raise InvalidToken("malformed") from None
    kid = header.get("kid")
    key = keys.find(kid if isinstance(kid, str) or kid is None else "")
    if key is None:
        raise InvalidToken("unknown_key")
    if header.get("alg") != key.algorithm:
        raise InvalidToken("wrong_algorithm")
    if "crit" in header or header.get("b64", True) is not True:
        raise InvalidToken("unknown_extension")
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=settings.leeway_s,
            options={"require": ["exp", "iss", "aud"], "verify_sub": False, "verify_jti": False},
        )
    except jwt.PyJWTError as error:
        raise InvalidToken(next((code for kind, code in _CODES if isinstance(error, kind)), "malformed")) from None
    except (ValueError, OverflowError, TypeError):  # an expiry that is no time
        raise InvalidToken("malformed") from None
    user = claims.get(settings.user_claim)
    if not isinstance(user, str) or not user:
        raise InvalidToken("no_user")
    return Claims(user, float(claims["exp"]) + settings.leeway_s, _headers(claims, settings.claim_headers))


def _headers(claims: Mapping[str, Any], wanted: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (header, text) for header, claim in wanted.items() if (text := _text_of(claims.get(claim))) is not None
    )


def _text_of(value: object) -> str | None:
    """A claim as a header's value; a list with commas. Tables, and what is absent, have none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return visible(str(value))
    if isinstance(value, list) and all(isinstance(one, (str, int)) for one in value):
        return ",".join(visible(str(one)).replace(",", "%2C") for one in value)
    return None
