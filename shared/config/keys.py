"""What a row of the configuration's schema is made of: tables, keys, strings with a syntax.

No key stands here, and no default: those are in shared/config/schema.py and schema_routes.py.

Kind: table.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

DAY_S = 86_400
HOUR_S = 3_600
GIB = 1 << 30


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TOML table."""


def key(doc: str, change: Literal["reload", "restart"] = "reload", **limits: Any) -> Meta:
    """The row of one key: documentation, when a change acts, range (ge, gt, le, min_length of `Meta`)."""
    return Meta(
        description=doc,
        extra={"change": change},
        extra_json_schema={"x-wardgate-change": change},
        **limits,
    )


def syntax(name: str) -> Meta:
    """The row of shared/config/syntax.py that a string must satisfy."""
    return Meta(extra={"syntax": name})


# Strings with a syntax of their own; each name is a row of shared/config/syntax.py.
Name = Annotated[str, syntax("name")]
Listen = Annotated[str, syntax("listen")]
TcpListen = Annotated[str, syntax("tcp_listen")]
Address = Annotated[str, syntax("address")]
Network = Annotated[str, syntax("network")]
Endpoint = Annotated[str, syntax("endpoint")]
HostPattern = Annotated[str, syntax("host_pattern")]
HostName = Annotated[str, syntax("host_name")]
PathPrefix = Annotated[str, syntax("path_prefix")]
Method = Annotated[str, syntax("method")]
User = Annotated[str, syntax("user")]
FilePath = Annotated[str, syntax("file")]
DirPath = Annotated[str, syntax("directory")]
LimitKey = Annotated[str, syntax("limit_key")]

FailureMode = Literal["closed", "open"]
