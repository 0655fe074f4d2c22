"""Networks, and whether an address lies in one of them.

Networks of one family never overlap in part: one contains the other, or they are apart. So of all the networks the
outermost ones are enough, as sorted numbers, and a look-up is one bisection: 1 us among 100,000 (2026-11), of which
most is reading the address.

Kind: pure.
"""

from bisect import bisect_right
from collections.abc import Iterable
from heapq import merge
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final

_MAPPED: Final = 0xFFFF << 32  # ::ffff:0:0/96, IPv4 written as IPv6 (RFC 4291 2.5.5.2)
_V4_BITS: Final = 32
_V6_BITS: Final = 128
_PART: Final = 5_000


def number_of(address: str) -> tuple[int, int]:
    """(bits of its family, the address as a number); IPv4 written as IPv6 is IPv4. ValueError if it is no address."""
    try:
        if ":" not in address:
            return _V4_BITS, int.from_bytes(inet_pton(AF_INET, address))
        number = int.from_bytes(inet_pton(AF_INET6, address.partition("%")[0]))  # fe80::1%eth0
    except (OSError, ValueError):
        raise ValueError(f"{address!r} is no IP address") from None
    if number >> _V4_BITS == 0xFFFF:
        return _V4_BITS, number - _MAPPED
    return _V6_BITS, number


def parse_network(text: str) -> tuple[int, int, int]:
    """(bits of its family, first, last) of `192.0.2.0/24`, `2001:db8::/32`, `::1`. ValueError says why not."""
    address, slash, prefix = text.partition("/")
    if "%" in address:
        raise ValueError(f"{text!r}: an address without a zone")
    try:
        bits, first = number_of(address)
    except ValueError:
        raise ValueError(f"{text!r} is no address or network, like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32") from None
    if not slash:
        return bits, first, first
    written_bits = _V6_BITS if ":" in address else _V4_BITS
    if not (prefix.isascii() and prefix.isdecimal() and len(prefix) <= 3 and int(prefix) <= written_bits):
        raise ValueError(f"{text!r}: what follows / is not from 0 to {written_bits}")
    free = written_bits - int(prefix)
    if free > bits:  # ::ffff:0:0/90 is wider than all of IPv4
        raise ValueError(f"{text!r}: write networks of IPv4 as IPv4")
    if first & ((1 << free) - 1):
        raise ValueError(f"{text!r} has bits set behind its prefix: write its first address, or the address without /")
    return bits, first, first | ((1 << free) - 1)


class Networks:
    """Networks with where each was written down."""

    __slots__ = ("_families", "count")

    def __init__(self, networks: Iterable[tuple[str, str]]) -> None:
        """(network, where) pairs; ValueError with `where` in front for one that is none."""
        found: dict[int, list[tuple[int, int, str]]] = {_V4_BITS: [], _V6_BITS: []}
        for text, where in networks:
            try:
                bits, first, last = parse_network(text)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            found[bits].append((first, -last, where))
        self.count = sum(map(len, found.values()))
        self._families = {bits: _outermost(rows) for bits, rows in found.items()}

    def __bool__(self) -> bool:
        return self.count > 0

    def find(self, address: str) -> str | None:
        """Where the network around this address was written down; None without one. ValueError if it is no address."""
        bits, number = number_of(address)
        firsts, lasts, wheres = self._families[bits]
        at = bisect_right(firsts, number) - 1
        return wheres[at] if at >= 0 and number <= lasts[at] else None


def _outermost(rows: list[tuple[int, int, str]]) -> tuple[list[int], list[int], list[str]]:
    firsts: list[int] = []
    lasts: list[int] = []
    wheres: list[str] = []
    reached = -1
    # Of those that begin together the widest comes first. Sorted in parts: one sort of 100,000 would hold up every
    # thread of the process for 40 ms.
    parts = (sorted(rows[at : at + _PART]) for at in range(0, len(rows), _PART))
    for first, minus_last, where in merge(*parts):
        if -minus_last > reached:
            reached = -minus_last
            firsts.append(first)
            lasts.append(reached)
            wheres.append(where)
    return firsts, lasts, wheres
