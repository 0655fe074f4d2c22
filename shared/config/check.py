"""Checks the relations between keys: what one value means for another, and for the machine's capacity.

Each check is a row of CHECKS, a generator of findings over a typed configuration. Shapes and syntaxes
are checked before (shared/config/build.py), the machine's users and files after
(shared/config/host.py). A finding that touches a broken key is dropped by the caller.

Kind: pure.
"""

import ipaddress
import os
from collections.abc import Callable

from shared import defaults as d
from shared.config.build import closest
from shared.config.check_phases import bodies, guardrails, guardrails_of, plans, websockets
from shared.config.finding import Finding, Findings, error, repeated, warning
from shared.config.schema import Agent, Config
from shared.config.schema_routes import Route
from shared.config.syntax import split_port
from shared.config.tree import Path

# The longest names of sockets in runtime.dir; shared/runtime.py makes them.
_SOCKETS = ("/agents/v2", "/workers.sock", "/admin.sock")


Facts = Callable[[str], int | None]  # the uid of a user name, None if there is no such user


# --- the whole ------------------------------------------------------------------------------------


def capacities(config: Config) -> Findings:
    """Tables in the segments have fixed sizes."""
    rows = (
        ("agents", len(config.agents), d.AGENT_ROWS),
        ("routes", len(config.routes), d.ROUTE_ROWS),
        ("upstreams", len(config.upstreams), d.UPSTREAM_ROWS),
    )
    for name, count, most in rows:
        if count > most:
            yield error((name,), f"there are {count}, at most {most} are possible")
    for i, upstream in enumerate(config.upstreams):
        if len(upstream.targets) > d.TARGETS_PER_UPSTREAM:
            text = f"there are {len(upstream.targets)}, at most {d.TARGETS_PER_UPSTREAM} are possible"
            yield error(("upstreams", i, "targets"), text)
    for i, route in enumerate(config.routes):
        if len(route.rate_limits) > d.RATE_LIMITS_PER_ROUTE:
            text = f"there are {len(route.rate_limits)}, at most {d.RATE_LIMITS_PER_ROUTE} are possible"
            yield error(("routes", i, "rate_limits"), text)
        if len(route.filters) > d.FILTERS_PER_ROUTE:
            text = f"there are {len(route.filters)}, at most {d.FILTERS_PER_ROUTE} are possible"
            yield error(("routes", i, "filters"), text)


def unique_names(config: Config) -> Findings:
    """A name is one thing's, also over several files."""
    named: dict[str, list[str]] = {
        "agents": [agent.name for agent in config.agents],
        "upstreams": [upstream.name for upstream in config.upstreams],
        "routes": [route.name for route in config.routes],
    }
    for table, names in named.items():
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            other = first.setdefault(name, i)
            if other != i:
                where = (table, other, "name")
                text = f'"{name}" is already the name of another entry'
                yield Finding(((table, i, "name"), where), text, see=where)


def references(config: Config) -> Findings:
    """What routes name exists; what no route names does nothing."""
    agents = {agent.name for agent in config.agents}
    upstreams = {upstream.name for upstream in config.upstreams}
    # Where some name could not be read, nobody knows what is missing; one more entry stands for a broken table.
    agent_names: tuple[Path, ...] = tuple(("agents", i, "name") for i in range(len(config.agents) + 1))
    upstream_names: tuple[Path, ...] = tuple(("upstreams", i, "name") for i in range(len(config.upstreams) + 1))
    for i, route in enumerate(config.routes):
        if route.upstream not in upstreams:
            text = f'there is no upstream "{route.upstream}"'
            yield error(("routes", i, "upstream"), text, _near(route.upstream, upstreams), *upstream_names)
        for j, item in enumerate(route.filters):
            if item.agent not in agents:
                text = f'there is no agent "{item.agent}"'
                yield error(("routes", i, "filters", j, "agent"), text, _near(item.agent, agents), *agent_names)
        for j, name in enumerate(route.fallback_upstreams):
            if name not in upstreams:
                text = f'there is no upstream "{name}"'
                yield error(("routes", i, "fallback_upstreams", j), text, _near(name, upstreams), *upstream_names)
            elif name == route.upstream:
                where: Path = ("routes", i, "fallback_upstreams", j)
                yield error(where, f'"{name}" is the upstream that it stands in for', "", ("routes", i, "upstream"))
        for part, guardrail in guardrails_of(route):
            for j, name in enumerate(guardrail.agents):
                if name not in agents:
                    where = ("routes", i, "guardrails", part, "agents", j)
                    yield error(where, f'there is no agent "{name}"', _near(name, agents), *agent_names)
    asked = {item.agent for route in config.routes for item in route.filters}
    asked |= {name for route in config.routes for _, guardrail in guardrails_of(route) for name in guardrail.agents}
    used = {route.upstream for route in config.routes}
    used |= {name for route in config.routes for name in route.fallback_upstreams}
    for i, agent in enumerate(config.agents):
        if agent.name not in asked:
            yield warning(("agents", i), "no route names this agent; it is never asked")
    for i, upstream in enumerate(config.upstreams):
        if upstream.name not in used:
            yield warning(("upstreams", i), "no route names this upstream")
    if not config.routes:
        yield warning(("routes",), "there are none; every request is answered 404")


def _near(name: str, names: set[str]) -> str:
    near = closest(name, names)
    if near:
        return f'did you mean "{near}"?'
    return f"there are: {', '.join(sorted(names)[:10])}" if names else "there are none"


# --- server, runtime, admin, audit ----------------------------------------------------------------


def sockets(config: Config) -> Findings:
    """Paths of unix sockets fit, and no address is asked for twice."""
    if not config.runtime.dir.startswith("/"):
        yield error(("runtime", "dir"), f'"{config.runtime.dir}" is not an absolute path')
    longest = max(len(os.fsencode(config.runtime.dir + name)) for name in _SOCKETS)
    if longest > d.SUN_PATH_MAX:
        text = f"too long by {longest - d.SUN_PATH_MAX} bytes: a unix socket's path has at most {d.SUN_PATH_MAX}"
        yield error(("runtime", "dir"), text)
    seen: set[str] = set()
    for table, texts in (("server", config.server.listen), ("admin", config.admin.listen)):
        for i, text in enumerate(texts):
            found = split_port(text)
            if text in seen and not (found and found[1] == 0):
                yield error((table, "listen", i), f'"{text}" is listened on twice')
            seen.add(text)
    for i, text in enumerate(config.admin.listen):
        host = (split_port(text) or ("localhost", 0))[0]
        if not _is_loopback(host):
            hint = "everybody who reaches it can read health, metrics and names"
            yield warning(("admin", "listen", i), f'"{text}" is not a loopback address', hint)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxies(config: Config) -> Findings:
    """Believing everybody is allowed, but hardly meant."""
    for i, text in enumerate(config.server.trusted_proxies):
        if text.endswith("/0"):
            path: Path = ("server", "trusted_proxies", i)
            yield warning(path, f'"{text}" believes X-Forwarded-For of every client')
    yield from repeated(("server", "trusted_proxies"), config.server.trusted_proxies)


def audit(config: Config) -> Findings:
    """Where records go."""
    yield from repeated(("audit", "sinks"), config.audit.sinks)
    if config.audit.sinks and not config.audit.path:
        yield error(("audit", "path"), "is needed by the file sink")


# --- upstreams ------------------------------------------------------------------------------------


def upstreams(config: Config) -> Findings:
    """Targets are different, and TLS is what it looks like."""
    for i, upstream in enumerate(config.upstreams):
        yield from repeated(("upstreams", i, "targets"), [target.address for target in upstream.targets])
        if upstream.tls is None:
            continue
        if not upstream.tls.sni and any(target.address.startswith("unix:") for target in upstream.targets):
            tls: Path = ("upstreams", i, "tls")
            yield error(tls, "sni is needed: a unix socket has no name to verify", "", tls)
        if not upstream.tls.verify:
            text = "certificates are not verified; whoever is on the way can read and change everything"
            yield warning(("upstreams", i, "tls", "verify"), text)


# --- agents ---------------------------------------------------------------------------------------


def agents(config: Config) -> Findings:
    """Keys that belong to a protocol stand only there."""
    for i, agent in enumerate(config.agents):
        protocol: Path = ("agents", i, "protocol")
        if agent.protocol == "zmq-v1":
            if not agent.endpoint:
                hint = 'e.g. endpoint = "ipc:///run/agent.sock"'
                yield error(("agents", i, "endpoint"), "is needed with zmq-v1", hint, protocol)
            if agent.secret_file:
                yield error(("agents", i, "secret_file"), "has no effect with zmq-v1", "leave it out", protocol)
            if agent.allow_users is not None:
                yield error(("agents", i, "allow_users"), "has no effect with zmq-v1", "leave it out", protocol)
        else:
            if agent.endpoint:
                hint = "leave it out, or use zmq-v1"
                text = "has no effect with zmq-v2, where the agent dials in"
                yield error(("agents", i, "endpoint"), text, hint, protocol)
            if agent.connections != d.V1_CONNECTIONS:
                yield error(("agents", i, "connections"), "has no effect with zmq-v2", "leave it out", protocol)
        if agent.events == ():
            text = "an agent without events is never asked"
            yield error(("agents", i, "events"), text, "leave the key out to ask it about everything")
        if agent.allow_users == ():
            text = "nobody could register as this agent"
            yield error(("agents", i, "allow_users"), text, "leave the key out to allow agentd's own user")
        yield from repeated(("agents", i, "events"), agent.events)
        yield from repeated(("agents", i, "allow_users"), agent.allow_users)


def identities(config: Config, uid_of: Facts) -> Findings:
    """Agents that one user may register need secrets, or each could answer for the other.

    Where agents share a user, every one of them needs a secret: the one without could be registered by
    any of the others.
    """
    holders: dict[str, list[int]] = {}
    for i, agent in enumerate(config.agents):
        if agent.protocol == "zmq-v2":
            for user in _users(agent, uid_of):
                holders.setdefault(user, []).append(i)
    told: set[int] = set()
    for user, numbers in holders.items():
        for i in numbers:
            others = [j for j in numbers if j != i and config.agents[j].name != config.agents[i].name]
            if others and not config.agents[i].secret_file and i not in told:
                told.add(i)
                other = config.agents[others[0]].name
                who = "agentd's own user" if user == _OWN else f"user {user}"
                text = f'is needed: {who} may also register as "{other}"'
                needs: list[Path] = [("agents", j, key) for j in (i, others[0]) for key in ("allow_users", "protocol")]
                hint = "give each of them a secret, or a user of its own in allow_users"
                yield error(("agents", i, "secret_file"), text, hint, *needs)


_OWN = ""  # stands for agentd's own user


def _users(agent: Agent, uid_of: Facts) -> set[str]:
    """Who may register, by uid where it is known (two names may be one user)."""
    if agent.allow_users is None:
        return {_OWN}
    return {f"uid {uid}" if (uid := uid_of(user)) is not None else user for user in agent.allow_users}


# --- routes ---------------------------------------------------------------------------------------


def filters(config: Config) -> Findings:
    """A chain asks each agent once, and an observer's failure means nothing."""
    for i, route in enumerate(config.routes):
        seen: set[str] = set()
        for j, item in enumerate(route.filters):
            path: Path = ("routes", i, "filters", j)
            if item.agent in seen:
                yield error((*path, "agent"), f'"{item.agent}" is already in this chain')
            seen.add(item.agent)
            if item.mode == "observe" and item.failure_mode is not None:
                text = "has no effect on an observer"
                yield error((*path, "failure_mode"), text, "leave it out", (*path, "mode"))
        yield from repeated(("routes", i, "match", "hosts"), route.match.hosts)
        yield from repeated(("routes", i, "match", "methods"), route.match.methods)
        yield from repeated(("routes", i, "fallback_upstreams"), route.fallback_upstreams)


def limits(config: Config) -> Findings:
    """Names are one limit's, and what an agent has to say can be said by one."""
    deciding = {agent.name for agent in config.agents if agent.events is None or "request_headers" in agent.events}
    count = sum(len(route.rate_limits) + 2 for route in config.routes) + 2
    if count > d.LIMIT_ROWS:
        yield error(("routes",), f"there are {count} limits, at most {d.LIMIT_ROWS} are possible")
    for i, route in enumerate(config.routes):
        seen: set[str] = set()
        for j, limit in enumerate(route.rate_limits):
            path: Path = ("routes", i, "rate_limits", j)
            if limit.name in seen:
                yield error((*path, "name"), f'"{limit.name}" is already a limit of this route')
            if limit.name in ("max_concurrent", "max_concurrent_per_client"):
                yield error((*path, "name"), f'"{limit.name}" is the name of the route\'s key')
            seen.add(limit.name)
            if limit.key == "identity" and not any(
                item.mode == "enforce" and item.agent in deciding for item in route.filters
            ):
                text = "no agent decides on this route, so nobody can tell the identity"
                yield error((*path, "key"), text, "name one in `filters`", ("routes", i, "filters"))


def ties(config: Config) -> Findings:
    """Semantics 14: two routes that are equally specific for some request are an error.

    For a host and a prefix there is one winner; a method that it does not take is 405 and goes to no
    other route. So beside a route with `methods`, one without, for the same host and prefix, is never
    reached there: a warning if that leaves it nothing.
    """
    taken: dict[tuple[str, str, bool], int] = {}
    for i, route in enumerate(config.routes):
        reported: set[int] = set()
        for host in _hosts(route):
            other = taken.setdefault((host, route.match.path_prefix, bool(route.match.methods)), i)
            if other != i and other not in reported:
                reported.add(other)
                where = f"host {host}" if host else "any host"
                text = f'as specific as route "{config.routes[other].name}": {where}, prefix {route.match.path_prefix}'
                hint = "one route with both methods' filters, or different prefixes" if route.match.methods else ""
                here, there = ("routes", i, "match"), ("routes", other, "match")
                yield Finding((here, here, there), text, hint, see=there)
    for i, route in enumerate(config.routes):
        if route.match.methods:
            continue
        winners = [taken.get((host, route.match.path_prefix, True)) for host in _hosts(route)]
        if None not in winners:
            name = config.routes[winners[0] or 0].name
            text = f'is never reached: route "{name}" takes the same host and prefix and answers other methods 405'
            yield warning(("routes", i, "match"), text)


def _hosts(route: Route) -> tuple[str, ...]:
    return route.match.hosts or ("",)


CHECKS: tuple[Callable[[Config], Findings], ...] = (
    capacities,
    unique_names,
    references,
    sockets,
    proxies,
    audit,
    upstreams,
    agents,
    filters,
    bodies,
    websockets,
    guardrails,
    plans,
    limits,
    ties,
)


def findings(config: Config, uid_of: Facts) -> Findings:
    """Everything that the relations between keys have wrong."""
    for check in CHECKS:
        yield from check(config)
    yield from identities(config, uid_of)
