"""What `create_connection` raises, in our words. Real connects are in test_upstream_live.py."""

import errno
import socket
import ssl

import pytest

from proxy.upstream.connector import failure_of


@pytest.mark.parametrize(
    ("error", "is_tls", "status", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), False, 502, "connect_refused"),
        (FileNotFoundError(errno.ENOENT, "no such socket"), False, 502, "connect_refused"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), False, 504, "connect_timeout"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False, 502, "name_not_resolved"),
        (UnicodeError("label too long"), False, 502, "name_not_resolved"),
        (OSError(errno.ENETUNREACH, "unreachable"), False, 502, "connect_failed"),
        (OSError("Multiple exceptions: ..."), False, 502, "connect_failed"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False, 502, "connect_failed"),
        (ssl.SSLCertVerificationError("certificate has expired"), True, 502, "tls_failed"),
        (ssl.SSLError("wrong version number"), True, 502, "tls_failed"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True, 502, "tls_failed"),
        (ConnectionAbortedError("handshake"), True, 502, "tls_failed"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), True, 502, "connect_refused"),
    ],
)
def test_each_has_its_word(error: Exception, is_tls: bool, status: int, reason: str) -> None:
    failure = failure_of(error, is_tls=is_tls)
    assert (failure.status, failure.reason) == (status, reason)
