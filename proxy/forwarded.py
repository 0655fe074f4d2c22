"""Decides who the client is and what we tell the upstream about it.

X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host and Forwarded of an untrusted peer are replaced;
those of a trusted proxy are continued. The client behind trusted proxies is found from the right of
X-Forwarded-For, past trusted hops; Forwarded counts only where there is no X-Forwarded-For.

Kind: pure.
"""

import ipaddress
import re
from collections.abc import Sequence

from proxy.head import Head
from shared.defaults import MAX_FORWARDED_HOPS

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_FOR = re.compile(rb'(?i)(?:^|;)[ \t]*for=("(?:[^"\\]|\\.)*"|[^;,"\s]+)')
_CACHE_MAX = 4_096


class Trust:
    """Which addresses are trusted proxies; answers are cached, bounded."""

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]
        self._known: dict[str, bool] = {}

    def is_trusted(self, address: str) -> bool:
        """`address`: an IP address in text; anything else (a unix socket's peer) is not trusted."""
        known = self._known.get(address)
        if known is None:
            parsed = parse_address(address)
            known = parsed is not None and any(parsed in network for network in self._networks)
            if len(self._known) < _CACHE_MAX:
                self._known[address] = known
        return known


def parse_address(text: str) -> Address | None:
    """An IP address, IPv4-mapped IPv6 as IPv4; None for anything else."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def client_of(head: Head, peer: str, trust: Trust) -> str:
    """The client's address as text; `peer` is a trusted proxy. Nonsense in the chain ends the walk at its right."""
    if head.forwarded_for:
        hops = b",".join(head.forwarded_for).split(b",")
        chain = [hop.strip() for hop in hops[-MAX_FORWARDED_HOPS:]]
    elif head.forwarded:
        elements = b",".join(head.forwarded).split(b",")
        chain = [_node(element) for element in elements[-MAX_FORWARDED_HOPS:]]
    else:
        return peer
    client = peer
    for hop in reversed(chain):
        address = parse_address(_without_port(hop.decode("latin-1")))
        if address is None:
            return client
        client = str(address)
        if not trust.is_trusted(client):
            return client
    return client


def _node(element: bytes) -> bytes:
    match = _FOR.search(element)
    return match[1].strip(b'"') if match else b""


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    if hop.count(":") == 1:
        return hop.partition(":")[0]
    return hop


def peer_lines(peer: str, scheme: str) -> tuple[bytes, bytes]:
    """What is one for a whole client connection: (lines up to X-Forwarded-Host's value, Forwarded up to host)."""
    address = parse_address(peer)
    text = str(address) if address is not None else "unknown"
    node = f'"[{text}]"' if ":" in text else text
    first = f"x-forwarded-for: {text}\r\nx-forwarded-proto: {scheme}\r\nx-forwarded-host: ".encode()
    second = f"\r\nforwarded: for={node};proto={scheme};host=".encode()
    return first, second


def untrusted_lines(host: bytes, parts: tuple[bytes, bytes]) -> bytes:
    """Our lines where the peer is the client; `host` is a validated Host, b"" if HTTP/1.0 sent none."""
    if b":" in host or not host:
        return b'%b%b%b"%b"\r\n' % (parts[0], host, parts[1], host)
    return b"%b%b%b%b\r\n" % (parts[0], host, parts[1], host)


def trusted_lines(head: Head, peer: str, scheme: str) -> bytes:
    """Our lines behind a trusted proxy: its own, continued by the peer's address."""
    address = parse_address(peer)
    text = (str(address) if address is not None else "unknown").encode()
    node = b'"[%b]"' % text if b":" in text else text
    before = b", ".join(head.forwarded_for)
    chain = b"%b, %b" % (before, text) if before else text
    proto = head.forwarded_proto or scheme.encode()
    host = head.forwarded_host or head.host
    element = b'for=%b;proto=%b;host="%b"' % (node, scheme.encode(), head.host)
    forwarded = b"%b, %b" % (b", ".join(head.forwarded), element) if head.forwarded else element
    return b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: %b\r\nforwarded: %b\r\n" % (
        chain,
        proto,
        host,
        forwarded,
    )
