"""wardgate_agents/settings.py: what is wrong with a table is said in the words of the configuration file."""

import pytest

from wardgate_agents.auth.settings import AuthSettings
from wardgate_agents.denylist.agent import DenylistSettings
from wardgate_agents.headers.settings import HeadersSettings
from wardgate_agents.settings import ConfigRejected, settings_of


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        (DenylistSettings, {"network": []}, "config: there is no key 'network'; did you mean networks?"),
        (DenylistSettings, {"zzz": 1}, "config: there is no key 'zzz'; the keys are networks, allow_networks, "),
        (DenylistSettings, {"networks": "x"}, "config.networks: expected `array`, got `str`"),
        (DenylistSettings, {"networks": ["a", ""]}, "config.networks[1]: expected `str` of length >= 1"),
        (DenylistSettings, {"status": 200}, "config.status: expected `int` >= 400"),
        (DenylistSettings, {"status": "403"}, "config.status: expected `int`, got `str`"),
        (DenylistSettings, [], "config: expected `object`, got `array`"),
        (AuthSettings, {"jwt": {"issuer": "i"}}, "config.jwt: jwks_file is missing: add it"),
        (AuthSettings, {"basic": {"file": "f", "max_concurent": 1}}, "did you mean max_concurrent?"),
        (AuthSettings, {"user_header": ""}, "config.user_header: expected `str` of length >= 1"),
        (
            AuthSettings,
            {"jwt": {"jwks_file": "f", "issuer": "i", "audience": "a", "algorithms": ["none"]}},
            "[0]: 'none' is not one of ",
        ),
        (HeadersSettings, {"preset": "stict"}, "config.preset: 'stict' is not one of 'api', 'basic', 'none', 'strict'"),
        (HeadersSettings, {"routes": {"api": {"presets": 1}}}, "there is no key 'presets'; did you mean preset?"),
        (HeadersSettings, {"response": {"sett": {}}}, "config.response: there is no key 'sett'; did you mean set?"),
        (HeadersSettings, {"routes": {"a": {"response": {"dfault": {}}}}}, "did you mean default?"),
    ],
)
def test_a_table_that_will_not_do(kind: type, config: object, says: str) -> None:
    """The key, and how to mend it."""
    with pytest.raises(ConfigRejected) as caught:
        settings_of(kind, config)
    assert says in caught.value.message


def test_no_table_is_an_empty_one() -> None:
    """An agent without `config` gets every default."""
    assert settings_of(HeadersSettings, None).preset == "basic"
