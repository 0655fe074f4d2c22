"""The TLS settings of an upstream become a context that verifies, or are refused."""

import ssl
from pathlib import Path

import pytest

from proxy.upstream.connector import Connector
from proxy.upstream.tls import client_context
from shared.config.schema import Target, Upstream, UpstreamTls
from shared.errors import ConfigError

CA = Path(__file__).parent.parent / "data" / "tls" / "ca.pem"


def test_verifies_by_default() -> None:
    context = client_context(UpstreamTls(), "app")
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_only_the_given_authorities() -> None:
    """With `ca_file` the system's are not trusted beside it."""
    context = client_context(UpstreamTls(ca_file=str(CA)), "app")
    assert len(context.get_ca_certs()) == 1


def test_not_verified_when_told_so() -> None:
    context = client_context(UpstreamTls(verify=False, ca_file="/nowhere"), "app")
    assert not context.check_hostname
    assert context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_ca_file_that_cannot_be_used(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"upstream \"app\": tls.ca_file"):
        client_context(UpstreamTls(ca_file=str(path)), "app")


async def test_a_unix_socket_has_no_name_to_verify() -> None:
    import asyncio

    upstream = Upstream(name="app", targets=(Target(address="unix:/run/a"),), tls=UpstreamTls())
    with pytest.raises(ConfigError, match=r"tls\.sni"):
        Connector(upstream, asyncio.get_running_loop())
