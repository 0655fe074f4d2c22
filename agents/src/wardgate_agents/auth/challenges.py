"""What somebody is answered who is not known: how to prove it, and never more about why not than they need.

Kind: pure.
"""

from typing import Final

from wardgate_agent import Block, Challenge, HttpVerdict
from wardgate_agents.auth.settings import AuthSettings
from wardgate_agents.budget import busy

_TEXT: Final = "authentication required\n"


class Challenges:
    """The refusals of one configuration; all but the audit part is made once."""

    def __init__(self, settings: AuthSettings) -> None:
        realm = settings.realm
        quoted = realm.replace("\\", "\\\\").replace('"', '\\"')
        self._schemes: dict[str, str] = {}  # in the order in which they are offered
        if settings.jwt is not None:
            self._schemes["bearer"] = f'Bearer realm="{quoted}"'
        if settings.basic is not None:
            self._schemes["basic"] = f'Basic realm="{quoted}", charset="UTF-8"'
        if settings.api_keys is not None:  # no registered scheme, but a 401 must name one (RFC 9110 15.5.2)
            self._schemes["apikey"] = f'ApiKey realm="{quoted}", header="{settings.api_keys.header}"'
        self._realm = realm
        self._plain = {scheme: self._made(scheme) for scheme in self._schemes}
        self._first = next(iter(self._plain.values()))
        # RFC 6750 3.1. What is wrong with the token is for the audit: who made it can find out for himself.
        self._bad_token = Challenge("bearer", realm=realm, error="invalid_token")
        self.ambiguous = Block(400, "more than one credential\n")
        self.busy = busy("too many logins at the moment\n")
        self.busy_client = busy("too many logins at the moment\n", 429)

    def nobody(self) -> HttpVerdict:
        """There was no credential: every way to give one."""
        return self._first

    def refused(self, scheme: str) -> HttpVerdict:
        """There was one of this scheme and it will not do."""
        if scheme == "bearer" and "bearer" in self._schemes:
            return self._bad_token
        return self._plain.get(scheme, self._first)

    def _made(self, scheme: str) -> HttpVerdict:
        """A challenge of this scheme, and of the others that there are."""
        others = [text for other, text in self._schemes.items() if other != scheme]
        verdict: HttpVerdict
        if scheme == "bearer":
            verdict = Challenge("bearer", realm=self._realm)
        elif scheme == "basic":
            verdict = Challenge("basic", realm=self._realm, charset="UTF-8")
        else:
            return Block(401, _TEXT, {"WWW-Authenticate": [self._schemes[scheme], *others]})
        for text in others:
            verdict = verdict.add_response_header("WWW-Authenticate", text)
        return verdict
