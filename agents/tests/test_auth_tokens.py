"""wardgate_agents/auth: JWKS files and bearer tokens, the valid ones and every way of forging one."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from agents.tests.makers import AUDIENCE, ISSUER, SECRET, ec_key, ed_key, jwk, jwks, oct_jwk, rsa_key, token
from wardgate_agents.auth.identity import visible
from wardgate_agents.auth.jwks import Keys, read_jwks
from wardgate_agents.auth.settings import JwtSettings
from wardgate_agents.auth.tokens import InvalidToken, verify

ALL = ["RS256", "PS256", "ES256", "EdDSA", "HS256"]


def settings(**changes: Any) -> JwtSettings:
    return JwtSettings(**{"jwks_file": "x", "issuer": ISSUER, "audience": AUDIENCE, "algorithms": ALL, **changes})


@pytest.fixture(scope="module")
def keys() -> Keys:
    return read_jwks(
        jwks(jwk(rsa_key(), kid="r"), jwk(ec_key(), kid="e"), jwk(ed_key(), kid="d"), oct_jwk(kid="h", alg="HS256")),
        ALL,
    )


def code(offered: str, keys: Keys, **changes: Any) -> str:
    """Why it is refused; "" if it is not."""
    try:
        verify(offered, keys, settings(**changes))
    except InvalidToken as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(rsa_key, "RS256", "r"), (ec_key, "ES256", "e"), (ed_key, "EdDSA", "d"), (lambda: SECRET, "HS256", "h")],
)
def test_a_valid_token_of_every_kind(keys: Keys, key: Any, algorithm: str, kid: str) -> None:
    claims = verify(token(key(), algorithm, kid), keys, settings())
    assert claims.user == "alice"
    assert claims.until_s == pytest.approx(time.time() + 3630, abs=10)


def test_what_is_refused_and_why(keys: Keys) -> None:
    """The code is for the audit."""
    now = int(time.time())
    good = token(ec_key(), "ES256", "e")
    head, payload, signature = good.split(".")
    other = token(ec_key(), "ES256", "e", sub="mallory").split(".")[1]
    for offered, why in {
        good: "",
        token(ec_key(), "ES256", "e", exp=now - 10): "",  # leeway
        token(ec_key(), "ES256", "e", exp=now - 40): "expired",
        token(ec_key(), "ES256", "e", nbf=now + 40): "not_yet_valid",
        token(ec_key(), "ES256", "e", nbf=now + 10): "",
        token(ec_key(), "ES256", "e", iss="https://evil.example"): "wrong_issuer",
        token(ec_key(), "ES256", "e", aud="other"): "wrong_audience",
        token(ec_key(), "ES256", "e", aud=["other", AUDIENCE]): "",
        token(ec_key(), "ES256", "e", aud=None): "missing_claim",
        token(ec_key(), "ES256", "e", exp=None): "missing_claim",
        token(ec_key(), "ES256", "e", iss=None): "missing_claim",
        token(ec_key(), "ES256", "e", sub=None): "no_user",
        token(ec_key(), "ES256", "e", sub=""): "no_user",
        token(ec_key(), "ES256", "nobody"): "unknown_key",
        token(ec_key(), "ES256"): "unknown_key",  # four keys: which one?
        token(ec_key(), "ES256", "e", headers={"crit": ["b64"], "b64": False}): "malformed",
        token(ed_key(), "EdDSA", "e"): "wrong_algorithm",
        token(ec_key(), "ES256", "d"): "wrong_algorithm",
        token(rsa_key(), "PS256", "r"): "wrong_algorithm",
        f"{head}.{other}.{signature}": "bad_signature",
        f"{head}.{payload}.": "bad_signature",
        f"{head}.{payload}": "malformed",
        "": "malformed",
        "a.b.c": "malformed",
        "é": "malformed",
    }.items():
        found = code(offered, keys)
        assert found == why or (why == "malformed" and found in ("malformed", "unknown_extension")), (offered, found)


def forged(header: dict[str, Any], key: bytes) -> str:
    """A token signed with HMAC over any bytes, as no library would."""

    def text(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "mallory", "exp": now + 3600}
    signed = text(header) + b"." + text(claims)
    digest = hmac.new(key, signed, hashlib.sha256).digest() if header.get("alg") == "HS256" else b""
    return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def test_a_public_key_is_not_a_secret(keys: Keys) -> None:
    """The classic: HMAC with the published RSA key; none; and in other letters."""
    public = rsa_key().public_key()
    for form in (
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1),
    ):
        assert code(forged({"alg": "HS256", "kid": "r"}, form), keys) == "wrong_algorithm"
    for name in ("none", "None", "NONE", "", None, "RS256 ", 5):
        assert code(forged({"alg": name, "kid": "r"}, b""), keys) in ("wrong_algorithm", "malformed")
    assert code(forged({"alg": "HS256", "kid": "h"}, b"x"), keys) == "bad_signature"
    assert code(forged({"alg": "HS256", "kid": "h"}, SECRET), keys) == ""
    for kid in (["r"], {"r": 1}, 7, True):
        assert code(forged({"alg": "HS256", "kid": kid}, SECRET), keys) in ("unknown_key", "malformed")


def test_keys_that_a_token_brings_along_mean_nothing(keys: Keys) -> None:
    """jwk, jku, x5u: whoever signs must be in the file."""
    stranger = token(
        rsa_key(3072), "RS256", "r", headers={"jwk": jwk(rsa_key(3072)), "jku": "https://evil.example", "x5u": "x"}
    )
    assert code(stranger, keys) == "bad_signature"


def test_a_token_without_kid_means_the_only_key() -> None:
    alone = read_jwks(jwks(jwk(ec_key())), ALL)
    assert code(token(ec_key(), "ES256"), alone) == ""
    assert code(token(ec_key(), "ES256", "x"), alone) == "unknown_key"


def test_claims_become_headers(keys: Keys) -> None:
    """Text, numbers, lists; in visible ASCII that means one thing; what is absent is left out."""
    wanted = {
        "X-Mail": "mail",
        "X-Groups": "groups",
        "X-Level": "level",
        "X-Gone": "gone",
        "X-Deep": "deep",
        "X-B": "b",
    }
    offered = token(
        ec_key(), "ES256", "e", mail="é\r\nX-Admin: 1", groups=["a,b", "c d", 7], level=3, deep={"a": 1}, b=True
    )
    claims = verify(offered, keys, settings(claim_headers=wanted))
    assert dict(claims.headers) == {
        "X-Mail": "%C3%A9%0D%0AX-Admin:%201",
        "X-Groups": "a%2Cb,c%20d,7",
        "X-Level": "3",
        "X-B": "true",
    }


@given(st.text(max_size=50))
def test_a_visible_text_is_one_text(text: str) -> None:
    """No control characters, nothing but ASCII, and it can be read back."""
    from urllib.parse import unquote

    shown = visible(text)
    assert all("!" <= char <= "~" for char in shown)
    if not any(0xD800 <= ord(char) < 0xE000 for char in text):
        assert unquote(shown) == text


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_no_text_is_a_token(text: str) -> None:
    """Whatever it is: refused with a code, and no other exception."""
    keys = read_jwks(jwks(oct_jwk(alg="HS256")), ALL)
    head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
    for offered in (text, f"{head}.{text}.{text}", f"{text}.{head}.{text}", ".".join((text,) * 3)):
        assert code(offered, keys) != ""


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub"]),
)
def test_a_signed_claim_of_any_type_ends_in_a_code(value: Any, claim: str) -> None:
    """Issuers make mistakes as well."""
    keys = read_jwks(jwks(oct_jwk(alg="HS256")), ALL)
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": now + 60, claim: value}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "HS256"}, claims)]
    signed = b".".join(parts)
    signature = base64.urlsafe_b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).rstrip(b"=")
    code((signed + b"." + signature).decode(), keys)


# --- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON"),
        ("[]", "no JWKS"),
        ('{"keys": [1]}', "no JWKS"),
        ('{"keys": []}', "no key for"),
        (lambda: jwks(jwk(ec_key()), jwk(ed_key(), kid="d")), "among several keys each needs a kid"),
        (lambda: jwks(jwk(ec_key(), kid="k"), jwk(ed_key(), kid="k")), "two keys have the same kid"),
        (lambda: jwks(jwk(rsa_key(1024), kid="k")), "an RSA key of 1024 bits"),
        (lambda: jwks({**jwk(ec_key(), kid="k"), "d": "AA"}), "its private part (d) is in the file"),
        (lambda: jwks(oct_jwk(b"short", kid="k", alg="HS256")), "a secret of 5 bytes; HS256 needs 32"),
        (lambda: jwks(oct_jwk(kid="k")), "a key without alg is not in algorithms"),
        (lambda: jwks(jwk(rsa_key(), kid="k", alg="HS256")), "kty 'RSA' does not go with HS256"),
        (lambda: jwks(oct_jwk(kid="k", alg="RS256")), "kty 'oct' does not go with RS256"),
        (lambda: jwks(jwk(ec_key(), kid="k", alg="EdDSA")), "does not go with EdDSA"),
        (lambda: jwks({**jwk(ec_key(), kid="k"), "x": "!"}), "key 'k'"),
        (lambda: jwks({"kty": "EC", "crv": "P-256", "kid": "k"}), "key 'k'"),
        (lambda: jwks(jwk(rsa_key(), kid="k", use="enc")), "use is 'enc'"),
        (lambda: jwks(jwk(rsa_key(), kid="k", alg="RSA-OAEP")), "RSA-OAEP is not in algorithms"),
    ],
)
def test_a_file_that_will_not_do(text: Any, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_jwks(text if isinstance(text, str) else text(), ALL)
    assert says in str(caught.value)


def test_keys_for_something_else_are_left_out() -> None:
    """As identity providers publish them; it is known which and why."""
    keys = read_jwks(jwks(jwk(rsa_key(), kid="a", use="enc"), jwk(ec_key(), kid="b")), ALL)
    assert len(keys) == 1
    assert keys.skipped == ("key 'a': use is 'enc'",)
    assert keys.find("a") is None


def test_secrets_have_to_be_asked_for() -> None:
    """HS256 is not among the default algorithms."""
    with pytest.raises(ValueError, match="HS256 is not in algorithms"):
        read_jwks(jwks(oct_jwk(kid="h", alg="HS256")), JwtSettings(jwks_file="x", issuer="i", audience="a").algorithms)


@given(
    st.recursive(
        st.none()
        | st.integers()
        | st.text(max_size=6)
        | st.sampled_from(["RSA", "EC", "oct", "sig", "P-256", "HS256"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["keys", "kty", "kid", "alg", "use", "crv", "k", "x", "y", "n", "e"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_keys_or_a_message(document: Any) -> None:
    for text in (json.dumps(document), json.dumps({"keys": [document]})):
        try:
            read_jwks(text, ALL)
        except ValueError as error:
            assert str(error)
