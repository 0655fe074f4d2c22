"""`wardgate explain`: what the proxy would do with one request, and why; without a daemon.

Only the request's bytes and words are made here; what becomes of it is worked out in proxy/explain.py.

Kind: IO.
"""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import EXIT_OK, EXIT_REFUSED, config_option, json_option
from proxy.cli.table import show_table
from shared.defaults import EXPLAIN_CLIENT_IP, EXPLAIN_ROUTES_SHOWN

if TYPE_CHECKING:
    from proxy.explain import Asked, Explanation, Phase
    from shared.config.schema import Config

EPILOG = """\b
URL is what a client is given, http://host/path?query; Host is taken from it as a client
takes it. Or it is only /path?query (or *), sent as it is: then say -H 'Host: ...'. Nothing
is repaired or encoded, so what no browser would send can be tried as well. https is taken
as http: TLS ends in front of the proxy.

\b
What is shown:
  the route        chosen, and for each other one why not: host, path, methods, or less specific
  settings         of that route
  agents           who is asked about what, in order; what their failure means; within which time
  limits           bytes, rates, requests under way; what this request has of them
  header fields    which are passed on, dropped, replaced and added, and why
  upstream         its targets, and the head as it goes there if no agent changes it

\b
What only the running daemons know is not: which agents are there and what they registered
for ("if it registers for this"), how full a bucket is, which target is next. For these see
`wardgate agents` and `wardgate limits list`.

\b
Examples:
  wardgate explain GET http://api.example.com/v1/orders
  wardgate explain POST http://api.example.com/v1/orders -H 'Content-Length: 2000000'
  wardgate explain GET http://a.example/ --client-ip 10.0.0.7 -H 'X-Forwarded-For: 203.0.113.9'
  wardgate explain GET '/a/..;/admin' -H 'Host: api.example.com'
  wardgate explain GET http://api.example.com/chat --websocket
  wardgate explain -c new.toml DELETE http://api.example.com/v1/ --json | jq .refused

\b
Exit codes: 0 explained, 1 the proxy would refuse it (status and reason are shown), 2 usage
or configuration. No agent was asked: one may refuse what is explained with 0, and so may its
limit of body bytes (NOTE says so).
"""


@click.command(epilog=EPILOG, short_help="What becomes of a request, and why.")
@click.argument("method", metavar="METHOD")
@click.argument("url", metavar="URL")
@click.option("-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="A header field; repeatable.")
@click.option(
    "--client-ip",
    metavar="IP",
    help=f"Who connects: an address, or `unix` for a unix socket. Default: {EXPLAIN_CLIENT_IP}, a stranger.",
)
@click.option("--websocket", "is_websocket", is_flag=True, help="Add the fields of a WebSocket handshake.")
@click.option("-0", "--http1.0", "is_http_1_0", is_flag=True, help="An HTTP/1.0 request; it needs no Host.")
@config_option
@json_option
def command(
    method: str,
    url: str,
    headers: tuple[str, ...],
    client_ip: str | None,
    is_websocket: bool,
    is_http_1_0: bool,
    config_path: str | None,
    as_json: bool,
) -> None:
    """What the proxy would do with a request, and why.

    Reads the configuration as the daemons do and runs the request's head through the same rules. No daemon is
    needed and none is asked; nothing is sent.
    """
    data = request_bytes(method, url, (*headers, *_HANDSHAKE) if is_websocket else headers, is_http_1_0)

    from proxy.explain import explain
    from shared.config.load import load

    config = load(config_path, os.environ, needs_files=False).config
    found = explain(config, data, _peer(client_ip, config))
    if as_json:
        from shared.wire import admin as wire

        click.echo(wire.pretty(found))
    else:
        _show(found)
    sys.exit(EXIT_OK if found.refused is None else EXIT_REFUSED)


# RFC 6455 4.1; the key is 16 zero bytes.
_HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)

# --- the request ------------------------------------------------------------------------------------


def request_bytes(method: str, url: str, headers: tuple[str, ...], is_http_1_0: bool = False) -> bytes:
    """The head as a client would send it; raises click.UsageError for what cannot be one."""
    for text in (method, url, *headers):
        if "\r" in text or "\n" in text:
            raise click.UsageError("a line break ends a line of a request's head and cannot be in one")
    if not method or not url:
        raise click.UsageError("METHOD and URL may not be empty")
    host, target = _target(url)
    lines = [f"{method} {target} HTTP/{'1.0' if is_http_1_0 else '1.1'}"]
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name:
            raise click.UsageError(f"-H {header!r} is not 'Name: value'")
        fields.append(f"{name}: {value.strip(' ')}")
        if name.lower() == "host":
            host = ""
    if host:
        fields.insert(0, f"Host: {host}")
    return os.fsencode("\r\n".join([*lines, *fields, "", ""]))


def _target(url: str) -> tuple[str, str]:
    """(Host, request target); no Host for what is a target already."""
    if url.startswith("/") or url == "*":
        return "", url
    scheme, found, rest = url.partition("://")
    default_port = {"http": ":80", "https": ":443"}.get(scheme.lower())
    if not found or default_port is None:
        raise click.UsageError(f"{url!r} does not begin with http://, https:// or /")
    rest = rest.partition("#")[0]  # clients keep the fragment to themselves
    cut = min((at for at in map(rest.find, "/?") if at >= 0), default=len(rest))
    host, target = rest[:cut].removesuffix(default_port), rest[cut:]
    if not host:
        raise click.UsageError(f"{url!r} has no host")
    if "@" in host:
        raise click.UsageError("clients send user:password@ as -H 'Authorization: ...', not in the URL")
    return host, target if target.startswith("/") else f"/{target}"


def _peer(client_ip: str | None, config: "Config") -> str:
    """The address of who connects, "" for a unix socket."""
    if client_ip is None:
        return "" if all(one.startswith("unix:") for one in config.server.listen) else EXPLAIN_CLIENT_IP
    if client_ip == "unix":
        return ""
    from proxy.forwarded import parse_address

    address = parse_address(client_ip)
    if address is None:
        raise click.UsageError(f"--client-ip {client_ip!r} is no IP address")
    return str(address)


# --- for people -------------------------------------------------------------------------------------


def _show(found: "Explanation") -> None:
    if found.request is not None:
        request = found.request
        who = request.peer_ip or "a unix socket"
        trusted = ", a trusted proxy" if request.peer_is_trusted else ""
        client = f", for {request.client_ip}" if request.client_ip != request.peer_ip else ""
        host = f" of {request.host}" if request.host else ""
        click.echo(f"{_clean(request.method)} {_clean(request.path)}{host} from {who}{trusted}{client}")
    if found.refused is not None:
        allow = f"; allowed: {found.refused.allow}" if found.refused.allow else ""
        click.secho(f"refused with {found.refused.status}: {_clean(found.refused.reason)}{allow}", bold=True)
    elif found.route is not None:
        click.secho(f"takes route {found.route['name']} to upstream {found.route['upstream']}", bold=True)
    if found.routes:
        _show_routes(found)
    if found.route is not None:
        _show_settings(found.route)
        _show_agents(found)
    _show_limits(found)
    if found.fields is not None:
        _show_fields(found)
    if found.upstream is not None:
        _show_upstream(found)


def _heading(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _show_routes(found: "Explanation") -> None:
    _heading("Routes")
    is_long = len(found.routes) > EXPLAIN_ROUTES_SHOWN
    shown = [one for one in found.routes if one.fits] if is_long else found.routes
    if shown:
        rows = [(one.route, "chosen" if one.is_chosen else "lost", one.why) for one in shown]
        show_table(("ROUTE", "RESULT", "WHY"), rows)
    if is_long and len(shown) < len(found.routes):
        click.echo(f"{len(found.routes) - len(shown)} more, whose host or path does not fit (--json has them)")


def _show_settings(route: dict[str, Any]) -> None:
    _heading(f"Route {route['name']}")
    rows = [row for key, value in route.items() if key not in _SAID for row in _flat(key, value)]
    show_table(("SETTING", "VALUE"), rows)


_SAID = frozenset(("name", "match", "upstream", "fallback_upstreams"))  # elsewhere on the page


def _flat(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """One row for each value, named by its dotted path as in the configuration."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    elif isinstance(value, bool):
        yield key, "true" if value else "false"
    elif isinstance(value, list):
        yield key, ", ".join(map(str, value)) or "-"
    elif isinstance(value, float):
        yield key, f"{value:g}"
    else:
        yield key, str(value) if value not in ("", {}) else "-"


def _show_agents(found: "Explanation") -> None:
    _heading("Agents")
    rows = []
    for phase in found.phases:
        for number, stage in enumerate(phase.stages, 1):
            within = f"{stage.within_ms} ms" if stage.waits else "nobody waits"
            for agent in stage.agents:
                note = _note(phase, number, agent)
                failure = "nothing" if agent.mode == "observe" else _FAILURE[agent.failure_mode]
                name = f"{phase.event} ({phase.part})" if phase.part else phase.event
                rows.append((name, within, agent.agent, agent.mode, failure, f"{agent.timeout_ms} ms", note))
    if rows:
        show_table(("EVENT", "WITHIN", "AGENT", "MODE", "ON FAILURE", "TIMEOUT", "NOTE"), rows, ("TIMEOUT", "MODE"))
    else:
        click.echo("nobody is asked")


_FAILURE = {"closed": "refuse", "open": "go on"}


def _note(phase: "Phase", number: int, agent: "Asked") -> str:
    notes = []
    if phase.skipped:
        notes.append(f"not asked: {phase.skipped}")
    if len(phase.stages) > 1:
        notes.append(f"step {number} of {len(phase.stages)}")
    elif phase.order == "sequential" and phase.stages[0].waits and len(phase.stages[0].agents) > 1:
        notes.append("in sequence")
    if agent.max_body_bytes is not None and not phase.skipped:
        notes.append(f"up to {agent.max_body_bytes} bytes")
    if agent.is_over:
        is_fatal = agent.mode == "enforce" and agent.failure_mode == "closed"
        notes.append(f"this body is longer: {'413' if is_fatal else 'passes without it'}")
    if agent.by_hello:
        notes.append("if it registers for this")
    return ", ".join(notes)


def _show_limits(found: "Explanation") -> None:
    _heading("Limits")
    rows = []
    for bound in found.bounds:
        most = f"{bound.limit}" if bound.limit else "no limit"
        rows.append((bound.key, "-", most, "not known" if bound.now is None else str(bound.now)))
    for limit in found.limits:
        most = f"{limit.capacity:g}"
        if limit.refill_rate is None:
            most += " under way"
        else:
            most += f", then {limit.refill_rate:g}/s"
        rows.append((limit.name, limit.key or "-", most, ""))
    show_table(("LIMIT", "KEY", "MOST", "THIS REQUEST"), rows)


def _show_fields(found: "Explanation") -> None:
    _heading("Header fields")
    assert found.fields is not None
    fields = found.fields
    groups = (
        ("passed", fields.passed),
        ("dropped", fields.dropped),
        ("replaced", fields.replaced),
        ("added", fields.added),
    )
    rows = [(result, field.name, field.value, field.why) for result, group in groups for field in group]
    show_table(("RESULT", "FIELD", "VALUE", "WHY"), rows)


def _show_upstream(found: "Explanation") -> None:
    upstream, route = found.upstream, found.route
    assert upstream is not None
    assert route is not None
    _heading(f"Upstream {upstream['name']}")
    how = f"TLS{'' if upstream['tls']['verify'] else ', not verified'}" if "tls" in upstream else "plain HTTP"
    for target in upstream["targets"]:
        click.echo(f"{target['address']}  weight {target['weight']}, {how}")
    if fallbacks := route.get("fallback_upstreams"):
        click.echo(f"if it fails: {', '.join(fallbacks)}")
    _heading("Goes upstream, before agents change it")
    for line in found.upstream_head.removesuffix("\r\n\r\n").split("\r\n"):
        click.echo(f"  {_clean(line)}")


def _clean(text: str) -> str:
    from proxy.cli.terminal import clean

    return clean(text)
