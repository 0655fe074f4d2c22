"""The configuration as a plan per route, and a plan's verdict about one head.

Three layers, and what a later one says about a field replaces what the earlier ones said: preset, the table's own
changes, the route's. Within a layer a field stands in one place only.

A verdict depends on the plan, on which of its default fields the response has already, and on https: there are few of
them, so each is made once. A verdict that was made before costs nothing to encode, here and in agentd.

Kind: pure.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeVar

from msgspec import UNSET, UnsetType

from wardgate_agent import Allow
from wardgate_agents.header_names import check_name, check_value
from wardgate_agents.headers.presets import PRESETS, Preset
from wardgate_agents.headers.settings import HeadersSettings, RequestSettings, ResponseSettings, RouteSettings
from wardgate_agents.settings import ConfigRejected

HSTS: Final = "strict-transport-security"
MAX_VERDICTS: Final = 256  # per plan: 2 to the number of default fields, of which a site has a handful
T = TypeVar("T")


class Change(NamedTuple):
    """What happens to one field. `name` as it is written out."""

    action: str  # set, default, add, remove
    name: str
    values: tuple[str, ...] = ()


_Changes = dict[str, Change]  # by lower-case name


class Plan:
    """What happens on one route."""

    def __init__(self, request: _Changes, response: _Changes, hsts: str) -> None:
        self._hsts = hsts
        self._changes = tuple(change for change in response.values() if change.action != "default")
        self._defaults = tuple((name, change) for name, change in response.items() if change.action == "default")
        self._names = tuple(name for name, _ in self._defaults)
        self._made: dict[tuple[bool, frozenset[str]], Allow] = {}
        allow = Allow()
        for change in request.values():
            allow = _on_request(allow, change)
        self._request = allow
        self._request_https = allow.set_response_header("Strict-Transport-Security", hsts) if hsts else allow

    def on_request(self, is_https: bool) -> Allow:
        """The request's verdict. Only here it is known whether it came over https."""
        return self._request_https if is_https else self._request

    def on_response(self, is_https: bool, there: Mapping[str, object]) -> Allow:
        """The response's verdict; `there` has its fields by lower-case name."""
        taken = frozenset(name for name in self._names if name in there)
        verdict = self._made.get((is_https, taken))
        if verdict is None:
            if len(self._made) >= MAX_VERDICTS:
                self._made.clear()
            verdict = self._made[is_https, taken] = self._make(is_https, taken)
        return verdict

    def _make(self, is_https: bool, taken: frozenset[str]) -> Allow:
        verdict = Allow()
        for change in self._changes:
            verdict = _on_response(verdict, change)
        for name, change in self._defaults:
            if name not in taken:
                verdict = verdict.set_response_header(change.name, change.values[0])
        if is_https and self._hsts:
            verdict = verdict.set_response_header("Strict-Transport-Security", self._hsts)
        return verdict


class Plans:
    """The plans of one configuration."""

    def __init__(self, settings: HeadersSettings) -> None:
        """Raises ConfigRejected."""
        request = _layer("config.request", settings.request, may_set_host=True)
        response = _layer("config.response", settings.response)
        self._general = Plan(request, _preset(settings) | response, _hsts(settings))
        self._by_route: dict[str, Plan] = {}
        for name, route in settings.routes.items():
            place = f"config.routes.{name}"
            own_request = _layer(f"{place}.request", route.request, may_set_host=True)
            own_response = _layer(f"{place}.response", route.response)
            self._by_route[name] = Plan(
                request | own_request, _preset(settings, route) | response | own_response, _hsts(settings, route)
            )

    def of(self, route_id: str) -> Plan:
        return self._by_route.get(route_id, self._general)


def _said(route: T | UnsetType, general: T) -> T:
    return general if isinstance(route, UnsetType) else route


def _preset_of(settings: HeadersSettings, route: RouteSettings | None) -> Preset:
    return PRESETS[_said(route.preset if route is not None else UNSET, settings.preset)]


def _hsts(settings: HeadersSettings, route: RouteSettings | None = None) -> str:
    """The route's own value, else that of its own preset, else the general one."""
    if route is not None and not isinstance(route.hsts, UnsetType):
        return check_value("config.routes: hsts", route.hsts)
    if route is not None and not isinstance(route.preset, UnsetType):
        return PRESETS[route.preset].hsts
    return check_value("config.hsts", _said(settings.hsts, PRESETS[settings.preset].hsts))


def _preset(settings: HeadersSettings, route: RouteSettings | None = None) -> _Changes:
    preset = _preset_of(settings, route)
    rows = [Change("set", name, (value,)) for name, value in preset.set]
    rows += [Change("default", name, (value,)) for name, value in preset.default]
    rows += [Change("remove", name) for name in preset.remove]
    return {row.name.lower(): row for row in rows}


def _layer(place: str, given: RequestSettings, may_set_host: bool = False) -> _Changes:
    """The changes of one table; ConfigRejected names the key that will not do."""
    found: _Changes = {}
    for action, rows in _rows(given):
        for name, values in rows:
            lower = check_name(f"{place}.{action}", name).lower()
            where = f"{place}.{action}: {name}"
            for value in values:
                check_value(where, value)
            if lower == "host" and not (may_set_host and action == "set"):
                raise ConfigRejected(f"{where} can only be set, and only on requests; leave it out")
            if lower == HSTS:
                raise ConfigRejected(f"{where} belongs to https alone; say hsts = {'/'.join(values) or ''!r} instead")
            if lower in found:
                raise ConfigRejected(f"{where} stands in {place}.{found[lower].action} as well; say one thing")
            found[lower] = Change(action, name, values)
    return found


def _rows(given: RequestSettings) -> Iterable[tuple[str, list[tuple[str, tuple[str, ...]]]]]:
    yield "set", [(name, (value,)) for name, value in given.set.items()]
    if isinstance(given, ResponseSettings):
        yield "default", [(name, (value,)) for name, value in given.default.items()]
    yield "add", [(name, (one,) if isinstance(one, str) else tuple(one)) for name, one in given.add.items()]
    yield "remove", [(name, ()) for name in given.remove]


def _on_request(verdict: Allow, change: Change) -> Allow:
    if change.action == "set":
        return verdict.set_request_header(change.name, change.values[0])
    for value in change.values:
        verdict = verdict.add_request_header(change.name, value)
    return verdict if change.values else verdict.remove_request_header(change.name)


def _on_response(verdict: Allow, change: Change) -> Allow:
    if change.action == "set":
        return verdict.set_response_header(change.name, change.values[0])
    for value in change.values:
        verdict = verdict.add_response_header(change.name, value)
    return verdict if change.values else verdict.remove_response_header(change.name)
