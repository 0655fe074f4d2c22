"""The `config` table of the agent `headers`: every key with type, range and default.

Kind: table.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType, field

from wardgate_agents.headers.presets import PresetName
from wardgate_agents.settings import Settings

HttpsMode = Literal["auto", "always", "never"]


class RequestSettings(Settings, frozen=True, kw_only=True):
    """Changes to the request that goes upstream."""

    set: dict[str, str] = field(default_factory=dict)
    add: dict[str, str | Annotated[list[str], Meta(min_length=1)]] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)


class ResponseSettings(RequestSettings, frozen=True, kw_only=True):
    """Changes to the response that the client gets."""

    default: dict[str, str] = field(default_factory=dict)  # where the response has no such field


class RouteSettings(Settings, frozen=True, kw_only=True):
    """What is different on one route; what is not said here is as above."""

    preset: PresetName | UnsetType = UNSET
    hsts: str | UnsetType = UNSET  # instead of the preset's; "" = none
    request: RequestSettings = field(default_factory=RequestSettings)
    response: ResponseSettings = field(default_factory=ResponseSettings)


class HeadersSettings(Settings, frozen=True, kw_only=True):
    """The whole table."""

    preset: PresetName = "basic"
    https: HttpsMode = "auto"
    hsts: str | UnsetType = UNSET
    request: RequestSettings = field(default_factory=RequestSettings)
    response: ResponseSettings = field(default_factory=ResponseSettings)
    routes: dict[str, RouteSettings] = field(default_factory=dict)
