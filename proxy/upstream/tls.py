"""Builds the TLS context towards an upstream from its `tls` entry.

Verification is on unless the configuration says otherwise, by the system's authorities or those of
`ca_file`; TLS 1.2 is the least; HTTP/1.1 is the only protocol offered.

Nothing here connects.

Kind: pure (reads the CA file once).
"""

import ssl

from shared.config.schema import UpstreamTls
from shared.errors import ConfigError


def client_context(tls: UpstreamTls, name: str) -> ssl.SSLContext:
    """The context for the upstream `name`; ConfigError if its CA file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file:
        try:
            context.load_verify_locations(cafile=tls.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f'upstream "{name}": tls.ca_file "{tls.ca_file}" cannot be used: {error}') from None
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context
