"""The ways in of one configuration: tokens, keys, logins; each with its file and the verdicts that it has made.

A verdict is made once and kept as long as what it rests on: a token's until it expires or the keys change, an API
key's by its owner. So the common request costs a hash and a look-up.

Kind: IO (reads the files; holds the gate's threads).
"""

from collections.abc import Awaitable, Callable
from hashlib import sha256

from wardgate_agent import Allow
from wardgate_agents.auth.api_keys import ApiKeys
from wardgate_agents.auth.challenges import Challenges
from wardgate_agents.auth.credentials import Basic
from wardgate_agents.auth.gate import Gate
from wardgate_agents.auth.identity import Identities
from wardgate_agents.auth.jwks import Keys, read_jwks
from wardgate_agents.auth.passwords import Hashed, Passwords
from wardgate_agents.auth.recent import Recent
from wardgate_agents.auth.settings import ApiKeySettings, AuthSettings, BasicSettings, JwtSettings
from wardgate_agents.auth.tokens import verify
from wardgate_agents.files import BadFile, Looked, Watched, lines_of, read_text
from wardgate_agents.header_names import check_names, check_value
from wardgate_agents.settings import ConfigRejected


class Tokens:
    """Bearer tokens: the keys in force, and the verdicts about tokens that were verified with them."""

    def __init__(self, settings: JwtSettings, identities: Identities, clock_s: Callable[[], float]) -> None:
        self._settings = settings
        self._identities = identities
        self._clock_s = clock_s
        self._verified: Recent[Allow]
        self._keys: Keys
        self.files: Watched[Keys] = Watched("jwt.jwks_file", [settings.jwks_file], self._read, self._take)

    def _read(self) -> Keys:
        path = self._settings.jwks_file
        try:
            return read_jwks(read_text(path), self._settings.algorithms)
        except ValueError as error:
            raise BadFile(f"{path}: {error}") from None

    def _take(self, keys: Keys) -> None:
        self._keys = keys
        self._verified = Recent(self._settings.cache_size, self._clock_s)  # a key that is gone vouches for nothing

    def verdict(self, token: str) -> Allow:
        """For a valid token; InvalidToken else."""
        digest = sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None:
            return known
        claims = verify(token, self._keys, self._settings)
        made = self._identities.allow("jwt", claims.user, claims.headers)
        self._verified.put(digest, made, claims.until_s)
        return made


class KeyRing:
    """API keys: those in force."""

    def __init__(self, settings: ApiKeySettings, identities: Identities) -> None:
        self._path = settings.file
        self._identities = identities
        self.header = settings.header
        self.files: Watched[ApiKeys] = Watched("api_keys.file", [settings.file], self._read)

    def _read(self) -> ApiKeys:
        try:
            return ApiKeys(lines_of(self._path))
        except ValueError as error:
            raise BadFile(f"{self._path}:{error}") from None

    def verdict(self, key: str) -> Allow | None:
        """For a key that is known; None else."""
        name = self.files.value.owner(key)
        return None if name is None else self._identities.known("api_key", name)


class Logins:
    """Names with passwords: those in force, and the gate in front of the comparison."""

    def __init__(self, settings: BasicSettings, identities: Identities) -> None:
        self._path = settings.file
        self._identities = identities
        self._decoy = Passwords(()).decoy()
        self.gate = Gate(settings)
        self.files: Watched[Passwords] = Watched("basic.file", [settings.file], self._read, self._take)

    def _read(self) -> Passwords:
        try:
            return Passwords(lines_of(self._path))
        except ValueError as error:
            raise BadFile(f"{self._path}:{error}") from None

    def _take(self, passwords: Passwords) -> None:
        self._decoy = passwords.decoy()

    def verdict(self, offered: Basic, client: str) -> Allow | Awaitable[Allow | None]:
        """For the right password of a known name; None else. At once where the answer is known."""
        hashed = self.files.value.find(offered.user)
        question = self.gate.question(offered.user, offered.password, hashed or self._decoy)
        if hashed is not None and self.gate.is_known(question):
            return self._identities.known("basic", offered.user)
        return self._compared(question, offered, hashed, client)

    async def _compared(self, question: bytes, offered: Basic, hashed: Hashed | None, client: str) -> Allow | None:
        """Of a name that is not there nothing is told by the time that it takes."""
        is_right = await self.gate.ask(question, offered.password, hashed or self._decoy, client)
        return self._identities.known("basic", offered.user) if is_right and hashed is not None else None


class Ways:
    """One configuration, ready to be asked: swapped as a whole."""

    def __init__(self, settings: AuthSettings, clock_s: Callable[[], float]) -> None:
        jwt, api_keys = settings.jwt, settings.api_keys
        check_value("config.realm", settings.realm)
        claim_headers = jwt.claim_headers if jwt is not None else {}
        names = [settings.user_header, settings.method_header, *settings.strip_headers, *claim_headers]
        credentials = ["Authorization", *([api_keys.header] if api_keys is not None else [])]
        _check_headers(names, credentials)
        identities = Identities(
            settings.user_header,
            settings.method_header,
            [*settings.strip_headers, *claim_headers],
            credentials,
            settings.forward_credentials,
        )
        self.identities = identities
        self.challenges = Challenges(settings)
        self.optional_routes = frozenset(settings.optional_routes)
        self.tokens = Tokens(jwt, identities, clock_s) if jwt is not None else None
        self.key_ring = KeyRing(api_keys, identities) if api_keys is not None else None
        self.logins = Logins(settings.basic, identities) if settings.basic is not None else None
        self.api_key_header = api_keys.header if api_keys is not None else None

    def watched(self) -> list[Looked]:
        """The files that it lives by."""
        return [way.files for way in (self.tokens, self.key_ring, self.logins) if way is not None]


def _check_headers(names: list[str], credentials: list[str]) -> None:
    """Identity headers have to be names that an agent may set, and each to mean one thing."""
    check_names("config", [*names, *credentials])
    lower = [name.lower() for name in names]
    for name in lower:
        if name == "host" or name in (one.lower() for one in credentials):
            raise ConfigRejected(f"config: {name} cannot be an identity header; choose a name of its own, like X-User")
    if len(set(lower)) != len(lower):
        twice = next(name for name in lower if lower.count(name) > 1)
        raise ConfigRejected(f"config: {twice} is named twice among the identity headers")
