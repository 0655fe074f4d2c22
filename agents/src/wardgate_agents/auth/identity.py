"""The verdict about somebody who is known: what the upstream is told, and what the client may not tell it.

Identity headers are this agent's alone. Each of them is set or removed in every request that passes, whatever the
client sent; a spelling that a server may take for the same name (`X.User` where everything but letters becomes `_`)
is removed as well. Names with an underscore never get here: the proxy refuses them.

Kind: pure.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from wardgate_agent import Allow, Headers

_ODD: Final = re.compile(r"[^a-z0-9\-\n]")
_NOT_WORD: Final = re.compile(r"[^a-z0-9]")
MAX_KEPT: Final = 10_000  # verdicts about users: those of the files, whose size is the operator's
_PLAIN: Final = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # of visible ASCII everything but %


def visible(text: str) -> str:
    """As visible ASCII, unambiguously: what is not, and %, becomes %XX of its UTF-8."""
    return quote(text, safe=_PLAIN, errors="replace")


class Identities:
    """Makes the verdicts, and knows which header names are nobody else's."""

    def __init__(
        self,
        user_header: str,
        method_header: str,
        others: Iterable[str],
        credentials: Iterable[str],
        is_forwarding: bool,
    ) -> None:
        """`others`: more names that only this agent sets. `credentials`: removed unless `is_forwarding`."""
        self._user = user_header
        self._method = method_header
        self._names = tuple(dict.fromkeys(name.lower() for name in (user_header, method_header, *others)))
        self._alike = {_NOT_WORD.sub("-", name) for name in self._names}
        self._credentials = () if is_forwarding else tuple(credentials)
        nobody = Allow()
        for name in (*self._names, *self._credentials):
            nobody = nobody.remove_request_header(name)
        self.nobody = nobody
        self._kept: dict[tuple[str, str], Allow] = {}

    def known(self, method: str, user: str) -> Allow:
        """The verdict for a user about whom nothing else is told; made once, and kept."""
        verdict = self._kept.get((method, user))
        if verdict is None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            verdict = self._kept[method, user] = self.allow(method, user)
        return verdict

    def allow(self, method: str, user: str, headers: Iterable[tuple[str, str]] = ()) -> Allow:
        """The verdict for this user, with more headers. Its JSON is made once, so keep it as long as it is true."""
        given = {self._user: visible(user), self._method: method, **dict(headers)}
        set_names = {name.lower() for name in given}
        verdict = Allow()
        for name in (*self._names, *self._credentials):
            if name not in set_names:
                verdict = verdict.remove_request_header(name)
        for name, value in given.items():
            verdict = verdict.set_request_header(name, value)
        return verdict.routing(identity=f"{method}:{user}")

    def stripped(self, verdict: Allow, headers: Headers) -> Allow:
        """The verdict, and spellings of our names removed that this request has besides."""
        names = headers.raw
        if _ODD.search("\n".join(names)) is None:  # nearly always: 0.6 us
            return verdict
        for name in names:
            if name not in self._names and _NOT_WORD.sub("-", name) in self._alike:
                verdict = verdict.remove_request_header(name)
        return verdict
