"""A JWKS file (RFC 7517) as keys, each pinned to the one algorithm that it may be used with.

A token's own `alg` chooses nothing: it is only compared with the key's. So a public RSA key is never the secret of an
HMAC, and `none` is no algorithm of any key. A key's algorithm is its `alg`; without one, what its type says (P-256:
ES256, Ed25519: EdDSA, RSA: RS256); a secret (`oct`) has to name it.

Kind: pure.
"""

import json
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MIN_RSA_BITS: Final = 2048
_BY_CURVE: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
_TYPE_OF: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"}
_HASH_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}  # RFC 7518 3.2: no secret shorter than the hash


class PinnedKey(NamedTuple):
    """A key with the only algorithm that it verifies."""

    kid: str
    algorithm: str
    key: Any  # what PyJWT made of it


class Keys:
    """The keys of one file by their `kid`."""

    def __init__(self, keys: Collection[PinnedKey], skipped: Collection[str] = ()) -> None:
        self._by_kid = {key.kid: key for key in keys}
        self._only = next(iter(keys)) if len(keys) == 1 else None
        self.skipped = tuple(skipped)  # "kid: why", of keys for something else

    def __len__(self) -> int:
        return len(self._by_kid)

    def find(self, kid: str | None) -> PinnedKey | None:
        """By name; a token without one can only mean the only key."""
        if kid is None:
            return self._only
        return self._by_kid.get(kid)


def read_jwks(text: str, algorithms: Collection[str]) -> Keys:
    """The keys that may verify with one of `algorithms`. ValueError says which key will not do, and why."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    rows = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError('no JWKS: expected {"keys": [{...}, ...]}')
    keys: list[PinnedKey] = []
    skipped: list[str] = []
    for at, row in enumerate(rows):
        kid = row.get("kid", "")
        name = f"key {kid!r}" if kid else f"keys[{at}]"
        if not isinstance(kid, str) or (not kid and len(rows) > 1):
            raise ValueError(f"{name}: among several keys each needs a kid")
        reason = _other_purpose(row, algorithms)
        if reason:
            skipped.append(f"{name}: {reason}")
            continue
        try:
            keys.append(_pinned(kid, row))
        except (ValueError, jwt.PyJWTError) as error:
            raise ValueError(f"{name}: {error}") from None
    if len({key.kid for key in keys}) != len(keys):
        raise ValueError("two keys have the same kid")
    if not keys:
        hint = f" ({'; '.join(skipped)})" if skipped else ""
        raise ValueError(f"no key for {', '.join(algorithms)}{hint}")
    return Keys(keys, skipped)


def _algorithm_of(row: dict[str, Any]) -> str:
    """What this key may be used with; "" if that cannot be known."""
    stated = row.get("alg")
    if stated is not None:
        return {"Ed25519": "EdDSA"}.get(stated, stated) if isinstance(stated, str) else ""
    if row.get("kty") == "RSA":
        return "RS256"
    return _BY_CURVE.get(str(row.get("crv")), "")


def _other_purpose(row: dict[str, Any], algorithms: Collection[str]) -> str:
    """Why a key is not for verifying tokens here; "" if it is."""
    if row.get("use", "sig") != "sig":
        return f"use is {row['use']!r}"
    operations = row.get("key_ops")
    if isinstance(operations, list) and "verify" not in operations:
        return "key_ops has no verify"
    algorithm = _algorithm_of(row)
    if algorithm not in algorithms:
        return f"{algorithm or 'a key without alg'} is not in algorithms"
    return ""


def _pinned(kid: str, row: dict[str, Any]) -> PinnedKey:
    algorithm = _algorithm_of(row)
    if _TYPE_OF.get(algorithm[:2]) != row.get("kty"):
        raise ValueError(f"kty {row.get('kty')!r} does not go with {algorithm}")
    if row["kty"] != "oct" and "d" in row:
        raise ValueError("its private part (d) is in the file: put the public key alone here")
    curve = row.get("crv")
    if row["kty"] in ("EC", "OKP") and _BY_CURVE.get(str(curve)) != algorithm:
        raise ValueError(f"crv {curve!r} does not go with {algorithm}")
    key = jwt.PyJWK(row, algorithm=algorithm).key
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise ValueError(f"an RSA key of {key.key_size} bits; at least {MIN_RSA_BITS}")
    if isinstance(key, bytes) and len(key) < _HASH_BYTES[algorithm]:
        raise ValueError(f"a secret of {len(key)} bytes; {algorithm} needs {_HASH_BYTES[algorithm]}")
    return PinnedKey(kid, algorithm, key)
