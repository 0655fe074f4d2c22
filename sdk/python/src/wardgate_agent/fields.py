"""Header fields and metadata of an event, decoded when they are looked at.

Kind: pure.
"""

from collections.abc import Iterator, Mapping
from typing import Any


class MalformedEvent(Exception):
    """The event cannot be read; answered with the error code `malformed`."""


class Headers(Mapping[str, str]):
    """Header fields by name, case-insensitive. Iterates over lower-case names.

    `headers["x-a"]` and `get` give the first value, `get_all` every one in order.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: dict[str, list[str]]) -> None:
        self.raw = raw

    def _values(self, name: str) -> list[str] | None:
        values = self.raw.get(name)
        if values is None:
            values = self.raw.get(name.lower())
            if values is None:
                return None
        if type(values) is not list:
            raise MalformedEvent(f"the values of header {name!r} are no list")
        return values

    def __getitem__(self, name: str) -> str:
        values = self._values(name)
        if not values:
            raise KeyError(name)
        return values[0]

    def get(self, name: str, default: Any = None) -> Any:
        """The first value, or `default`."""
        values = self._values(name)
        return values[0] if values else default

    def get_all(self, name: str) -> list[str]:
        """Every value in order, empty when the field is absent."""
        return list(self._values(name) or ())

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(name, value) for every value of every field."""
        for name in self.raw:
            for value in self._values(name) or ():
                yield name, value

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        raw = self.raw
        if name not in raw and name.lower() not in raw:
            return False
        return bool(self._values(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"Headers({self.raw!r})"


class Metadata:
    """Who asks, over which connection, on which route."""

    __slots__ = ("raw",)

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    @property
    def correlation_id(self) -> str:
        """Wardgate's own id of this request; it is in the logs and in X-Correlation-Id."""
        return text_of(self.raw, "correlation_id")

    @property
    def request_id(self) -> str:
        """The client's own id where it may be believed, else the correlation id."""
        return text_of(self.raw, "request_id")

    @property
    def client_ip(self) -> str:
        return text_of(self.raw, "client_ip")

    @property
    def client_port(self) -> int | None:
        return self.raw.get("client_port")

    @property
    def server_name(self) -> str | None:
        return self.raw.get("server_name")

    @property
    def protocol(self) -> str:
        """`HTTP/1.1` or `HTTP/1.0`."""
        return text_of(self.raw, "protocol")

    @property
    def tls_version(self) -> str | None:
        return self.raw.get("tls_version")

    @property
    def tls_cipher(self) -> str | None:
        return self.raw.get("tls_cipher")

    @property
    def client_cert_subject(self) -> str | None:
        return self.raw.get("client_cert_subject")

    @property
    def route_id(self) -> str:
        return text_of(self.raw, "route_id")

    @property
    def upstream_id(self) -> str | None:
        return self.raw.get("upstream_id")

    @property
    def timestamp(self) -> str:
        """RFC 3339 in UTC with milliseconds."""
        return text_of(self.raw, "timestamp")

    @property
    def traceparent(self) -> str | None:
        return self.raw.get("traceparent")

    def __repr__(self) -> str:
        return f"Metadata({self.raw!r})"


def text_of(raw: dict[str, Any], name: str) -> str:
    """A member that is text; empty when it is absent or something else."""
    value = raw.get(name)
    return value if isinstance(value, str) else ""
