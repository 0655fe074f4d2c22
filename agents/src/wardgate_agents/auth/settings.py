"""The `config` table of the agent `auth`: every key with type, range and default.

Kind: table.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, field

from wardgate_agents.settings import Settings

Text = Annotated[str, Meta(min_length=1)]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"
]
DEFAULT_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")


class JwtSettings(Settings, frozen=True, kw_only=True):
    """Bearer tokens that are JWT."""

    jwks_file: Text
    issuer: Text
    audience: Text | Annotated[list[Text], Meta(min_length=1)]
    algorithms: Annotated[list[Algorithm], Meta(min_length=1)] = field(default_factory=lambda: list(DEFAULT_ALGORITHMS))
    leeway_s: Annotated[int, Meta(ge=0, le=300)] = 30
    user_claim: Text = "sub"
    claim_headers: dict[Text, Text] = field(default_factory=dict)  # header = claim
    cache_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000


class ApiKeySettings(Settings, frozen=True, kw_only=True):
    """Keys of programs."""

    file: Text
    header: Text = "X-API-Key"


class BasicSettings(Settings, frozen=True, kw_only=True):
    """Names with passwords."""

    file: Text
    max_concurrent: Annotated[int, Meta(ge=1, le=64)] = 2
    max_waiting: Annotated[int, Meta(ge=1, le=10_000)] = 32
    max_waiting_per_client: Annotated[int, Meta(ge=1, le=10_000)] = 4
    cache_ttl_s: Annotated[int, Meta(ge=0, le=86_400)] = 300
    cache_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000


class AuthSettings(Settings, frozen=True, kw_only=True):
    """The whole table."""

    realm: Text = "wardgate"
    user_header: Text = "X-User"
    method_header: Text = "X-Auth-Method"
    strip_headers: list[Text] = field(default_factory=list)
    forward_credentials: bool = False
    optional_routes: list[Text] = field(default_factory=list)
    check_interval_s: Annotated[float, Meta(ge=0.01, le=3600)] = 1.0
    jwt: JwtSettings | None = None
    api_keys: ApiKeySettings | None = None
    basic: BasicSettings | None = None
