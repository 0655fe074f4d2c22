"""Opens connections to an upstream's targets, and says in our words why one could not be opened.

One call, one attempt, one target: which target, how long and how often is the pool's (pool.py). The
connection counts as made with the protocol's `connection_made` (after the TLS handshake), not when the
call returns. Names are resolved by the loop, never blocking it.

Kind: IO.
"""

import asyncio
import socket
import ssl

from proxy.upstream.balance import Endpoint
from proxy.upstream.tls import client_context
from shared.config.schema import Upstream
from shared.defaults import UPSTREAM_TLS_CLOSE_S
from shared.errors import ConfigError, UpstreamFailed


class Connector:
    """Of one upstream; ConfigError if its TLS settings cannot be used."""

    __slots__ = ("_handshake_timeout_s", "_loop", "_sni", "_tls")

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handshake_timeout_s = upstream.connect_timeout_s
        self._tls: ssl.SSLContext | None = None
        self._sni = ""
        if upstream.tls is not None:
            self._tls = client_context(upstream.tls, upstream.name)
            self._sni = upstream.tls.sni
            if not self._sni and any(target.address.startswith("unix:") for target in upstream.targets):
                raise ConfigError(f'upstream "{upstream.name}": TLS over a unix socket needs tls.sni')

    async def connect(self, endpoint: Endpoint, protocol: asyncio.Protocol) -> None:
        """One attempt. UpstreamFailed if there is no connection."""
        tls = self._tls
        name = (self._sni or endpoint.host) if tls is not None else None
        timeouts = (self._handshake_timeout_s, UPSTREAM_TLS_CLOSE_S) if tls is not None else (None, None)
        try:
            if endpoint.path:
                await self._loop.create_unix_connection(
                    lambda: protocol,
                    endpoint.path,
                    ssl=tls,
                    server_hostname=name,
                    ssl_handshake_timeout=timeouts[0],
                    ssl_shutdown_timeout=timeouts[1],
                )
            else:
                await self._loop.create_connection(
                    lambda: protocol,
                    endpoint.host,
                    endpoint.port,
                    ssl=tls,
                    server_hostname=name,
                    ssl_handshake_timeout=timeouts[0],
                    ssl_shutdown_timeout=timeouts[1],
                )
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise failure_of(error, is_tls=tls is not None) from error


def failure_of(error: Exception, *, is_tls: bool) -> UpstreamFailed:
    """The status and the word for what `create_connection` raised."""
    if isinstance(error, ssl.SSLError):
        return UpstreamFailed(502, "tls_failed", f"TLS failed: {error}")
    if isinstance(error, TimeoutError):
        return UpstreamFailed(504, "connect_timeout", "no connection within the system's own time")
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return UpstreamFailed(502, "name_not_resolved", f"the name cannot be resolved: {error}")
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
        return UpstreamFailed(502, "connect_refused", "connection refused")
    if is_tls and isinstance(error, ConnectionError):
        return UpstreamFailed(502, "tls_failed", f"closed during the TLS handshake: {error}")
    return UpstreamFailed(502, "connect_failed", f"cannot connect: {error}")
