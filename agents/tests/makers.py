"""Keys, tokens and hashes for the tests of the agent auth, made while they run."""

import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from wardgate_agents.auth.passwords import Hashed, hash_password

ISSUER = "https://id.example"
AUDIENCE = "shop"
SECRET = b"0123456789abcdef0123456789abcdef"


@cache
def rsa_key(bits: int = 2048) -> Any:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> Any:
    return ed25519.Ed25519PrivateKey.generate()


def jwk(private: Any, **members: Any) -> dict[str, Any]:
    """The public half as a JWK."""
    public = private.public_key()
    if isinstance(private, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(public, as_dict=True)
    made.pop("key_ops", None)
    return {**made, **members}


def oct_jwk(secret: bytes = SECRET, **members: Any) -> dict[str, Any]:
    import base64

    return {"kty": "oct", "k": base64.urlsafe_b64encode(secret).decode().rstrip("="), **members}


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": keys})


def token(
    key: Any, algorithm: str, kid: str | None = None, headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    """A token that is valid for an hour, unless the claims say otherwise; a claim of None is left out."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 3600, **claims}
    payload = {name: value for name, value in payload.items() if value is not None}
    more = {**({"kid": kid} if kid is not None else {}), **(headers or {})}
    return jwt.encode(payload, key, algorithm, headers=more or None)


@cache
def cheap_hash(password: str) -> Hashed:
    """As cheap as the agent takes them: some 20 ms."""
    return hash_password(password, ln=13, r=8, p=1)
