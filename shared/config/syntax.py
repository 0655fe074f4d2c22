"""The syntax of strings that are more than strings: addresses, networks, names, paths.

One function per name used in shared/config/schema.py; each answers None, or what is wrong and a hint.
Nothing here looks at other keys, files or the network.

Kind: pure.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import unquote

from shared import defaults as d

Finding = tuple[str, str]  # what is wrong, what to do about it ("" = nothing to say)

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{d.NAME_MAX_CHARS - 1}}}\Z")
_LABELS = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\Z")
_METHOD = re.compile(r"[A-Z][A-Z-]*\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # and lone surrogates: bytes that were not UTF-8
_UNHANDLED_METHODS = ("CONNECT", "TRACE")  # answered 405 before any route is chosen


def has_control(text: str) -> bool:
    """Whether there are control characters; no key outside an agent's `config` may hold one."""
    return _CONTROL.search(text) is not None


def name(text: str) -> Finding | None:
    """Of agents, routes, upstreams: safe in logs, metrics, file names and environment variables."""
    if _NAME.match(text):
        return None
    return (f"names have 1 to {d.NAME_MAX_CHARS} of A-Z a-z 0-9 . _ - and begin with a letter or digit", "")


def split_port(text: str) -> tuple[str, int] | None:
    """("host", port) of "host:port" or "[v6]:port"; None if it is neither."""
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.match(port) or int(port) > 65_535:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        return (host, int(port)) if _is_ip(host, 6) else None
    if _is_ip(host, 4):
        return host, int(port)
    # All digits and dots, but no address: the resolver would read 10.1 as 10.0.0.1.
    if not _is_host(host) or re.fullmatch(r"[0-9.]+", host):
        return None
    return host, int(port)


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    return len(text) <= 253 and _LABELS.match(text) is not None


def listen(text: str) -> Finding | None:
    """ "host:port" or "unix:/path"."""
    if text.startswith("unix:"):
        return _socket_path(text.removeprefix("unix:"), 'a unix socket is written "unix:/absolute/path"')
    return tcp_listen(text, ' or "unix:/path"')


def tcp_listen(text: str, other: str = "") -> Finding | None:
    """ "host:port"; port 0 = any free one."""
    if split_port(text) is not None:
        return None
    return (f'expected "host:port" or "[ipv6]:port"{other}', _guess_address(text, "127.0.0.1"))


def address(text: str) -> Finding | None:
    """ "host:port" or "unix:/path" of a server to connect to."""
    if text.startswith("unix:"):
        return _socket_path(text.removeprefix("unix:"), 'a unix socket is written "unix:/absolute/path"')
    found = split_port(text)
    if found is None:
        return ('expected "host:port", "[ipv6]:port" or "unix:/path"', _guess_address(text, ""))
    return None if found[1] else ("port 0 cannot be connected to", "")


def _guess_address(text: str, host: str) -> str:
    """A hint for the usual slips: a URL, a bare port, an IPv6 address without brackets."""
    guess = re.sub(r"\A(?:https?|tcp)://", "", text).rstrip("/")
    if re.fullmatch(r":?[0-9]{1,5}", guess) and host:
        guess = f"{host}:{guess.lstrip(':')}"
    elif guess.startswith("*:"):
        guess = "0.0.0.0" + guess[1:]  # noqa: S104
    elif guess.count(":") > 1 and not guess.startswith("["):
        guess = "[{}]:{}".format(*guess.rpartition(":")[::2])
    if guess == text or split_port(guess) is None:
        return ""
    return f'did you mean "{guess}"?'


def _socket_path(path: str, text: str) -> Finding | None:
    if not path.startswith("/") or path.endswith("/"):
        return (text, "")
    length = len(os.fsencode(path))
    if length > d.SUN_PATH_MAX:
        return (f"a unix socket's path has at most {d.SUN_PATH_MAX} bytes, this has {length}", "")
    return None


def endpoint(text: str) -> Finding | None:
    """Where a zmq-v1 agent listens."""
    if text.startswith("ipc://"):
        return _socket_path(text.removeprefix("ipc://"), 'expected "ipc:///absolute/path"')
    if text.startswith("tcp://"):
        host_port = split_port(text.removeprefix("tcp://"))
        return None if host_port and host_port[1] else ('expected "tcp://host:port"', "")
    hint = f'did you mean "ipc://{text}"?' if text.startswith("/") else ""
    return ('expected "ipc:///path" or "tcp://host:port"', hint)


def network(text: str) -> Finding | None:
    """A CIDR network, or one address."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            hint = f'did you mean "{ipaddress.ip_network(text, strict=False)}"?'
        except ValueError:
            hint = 'everybody is "0.0.0.0/0" and "::/0"' if text == "*" else ""
            return ("expected a network like 10.0.0.0/8", hint)
        return ("has bits set beyond its prefix length", hint)
    return None


def host_name(text: str) -> Finding | None:
    """The name of one host."""
    return None if _is_host(text) else ("not a host name", "")


def host_pattern(text: str) -> Finding | None:
    """What a route's `hosts` may hold: lower-case name, "*.name", address literal; never a port."""
    if text != text.lower():
        return ("host names are written in lower case", f'did you mean "{text.lower()}"?')
    if text == "*":
        return ("not a host name", "leave `hosts` out to fit any host")
    if text.startswith("[") and text.endswith("]"):
        return None if _is_ip(text[1:-1], 6) else ("not an IPv6 address", "")
    found = split_port(text)
    if found is not None:
        return ("hosts are matched without a port", f'did you mean "{text.rpartition(":")[0]}"?')
    if _is_ip(text, 6):
        return ("an IPv6 address stands in brackets", f'did you mean "[{text}]"?')
    if text.endswith(".") and _is_host(text[:-1]):
        return ("hosts are matched without the final dot", f'did you mean "{text[:-1]}"?')
    if not _is_host(text.removeprefix("*.")):
        return ('expected a host name, or "*." and a host name', "")
    return None


def path_prefix(text: str) -> Finding | None:
    """The decoded beginning of a path; what normalisation would refuse could never match."""
    if not text.startswith("/"):
        return ('must begin with "/"', f'did you mean "/{text}"?')
    if "?" in text or "#" in text:
        return ("a path has no query and no fragment", f'did you mean "{re.split("[?#]", text)[0]}"?')
    if "%" in text and unquote(text) != text:
        return ("written percent-decoded, as paths are matched", f'did you mean "{unquote(text)}"?')
    if "//" in text or ";" in text or "\\" in text or "*" in text:
        return ('no "//", ";", "*" or backslash can be matched', "")
    if {".", ".."} & set(text.split("/")):
        return ('"." and ".." never reach a route', "")
    return None


def method(text: str) -> Finding | None:
    """A method a route can take."""
    if not _METHOD.match(text):
        upper = text.upper()
        return ("expected a method in upper case", f'did you mean "{upper}"?' if _METHOD.match(upper) else "")
    if text in _UNHANDLED_METHODS:
        return (f"{text} is always refused", "")
    return None


_LIMIT_KEYS = ("client_ip", "global", "identity")
_FIELD = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]{1,100}\Z")  # RFC 9110 5.6.2, without "_" as in proxy/head.py
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}\Z")  # RFC 6265 4.1.1


def limit_key(text: str) -> Finding | None:
    """What a rate limit has a bucket for."""
    kind, _, field = text.partition(":")
    if text in _LIMIT_KEYS:
        return None
    if kind == "header":
        return None if _FIELD.match(field) else ("not the name of a header field", 'e.g. "header:X-Api-Key"')
    if kind == "cookie":
        return None if _COOKIE.match(field) else ("not the name of a cookie", 'e.g. "cookie:session"')
    return ('expected "client_ip", "header:NAME", "cookie:NAME", "identity" or "global"', "")


def user(text: str) -> Finding | None:
    """A user's name as the system knows it."""
    return None if text and not re.search(r"[:/\s]", text) else ("not the name of a user", "")


def file(text: str) -> Finding | None:
    """An absolute path, or the bare name of a systemd credential; "" = none."""
    if not text or text.startswith("/"):
        return None
    if "/" not in text and text not in (".", ".."):
        return None
    return ("expected an absolute path, or the bare name of a systemd credential", "")


def directory(text: str) -> Finding | None:
    """An absolute path."""
    return None if not text or text.startswith("/") else ("expected an absolute path", "")


CHECKS: dict[str, Callable[[str], Finding | None]] = {
    "name": name,
    "listen": listen,
    "tcp_listen": tcp_listen,
    "address": address,
    "network": network,
    "endpoint": endpoint,
    "host_name": host_name,
    "host_pattern": host_pattern,
    "path_prefix": path_prefix,
    "method": method,
    "limit_key": limit_key,
    "user": user,
    "file": file,
    "directory": directory,
}
