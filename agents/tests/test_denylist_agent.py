"""The agent denylist: which requests it refuses, with what, and which configurations it takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import until
from wardgate_agent.testing import AsyncTestClient, TestClient
from wardgate_agents.denylist.agent import DenylistAgent
from wardgate_agents.settings import ConfigRejected

LISTS = {
    "networks": "# bad ones\n192.0.2.0/24 ; SBL1\n2001:db8::/32 # two\n",
    "allow_networks": "192.0.2.7\n",
    "paths": "prefix /.git\nexact /wp-login.php\n",
    "allow_paths": "prefix /.git/info\n",
    "user_agents": "contains sqlmap\nabsent\n",
    "allow_user_agents": "contains our-own sqlmap\n",
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    return {name: [str(tmp_path / name)] for name in LISTS}


@pytest.fixture
def client(config: dict[str, Any]) -> Iterator[TestClient]:
    with TestClient(DenylistAgent) as made:
        made.configure(config)
        yield made


UA = {"User-Agent": "Mozilla"}


@pytest.mark.parametrize(
    ("uri", "ip", "agent", "rule"),
    [
        ("/", "198.51.100.1", "Mozilla", None),
        ("/", "192.0.2.1", "Mozilla", "networks:2"),
        ("/", "::ffff:192.0.2.1", "Mozilla", "networks:2"),
        ("/", "192.0.2.7", "Mozilla", None),
        ("/", "2001:db8::1", "Mozilla", "networks:3"),
        ("/.git/config?x=1", "198.51.100.1", "Mozilla", "paths:1"),
        ("/%2egit", "198.51.100.1", "Mozilla", "paths:1"),
        ("//wp-login.php", "198.51.100.1", "Mozilla", "paths:2"),
        ("http://any.example/wp-login.php;a=b", "198.51.100.1", "Mozilla", "paths:2"),
        ("/.git/info/refs", "198.51.100.1", "Mozilla", None),
        ("/.git/info/../config", "198.51.100.1", "Mozilla", "paths:1"),
        ("/.git/info/x", "192.0.2.1", "Mozilla", "networks:2"),  # an exception is about its own kind
        ("/", "198.51.100.1", "SQLMap/1", "user_agents:1"),
        ("/", "198.51.100.1", "our-own sqlmap", None),
        ("/", "198.51.100.1", None, "user_agents:2"),
    ],
)
def test_requests(client: TestClient, uri: str, ip: str, agent: str | None, rule: str | None) -> None:
    """Refused by the rule that is named in the audit, or let through without a word."""
    headers = {} if agent is None else {"User-Agent": agent}
    answer = client.request_headers("GET", uri, headers, client_ip=ip)
    if rule is None:
        answer.assert_allowed()
        assert answer.verdict == {"decision": "allow"}
    else:
        answer.assert_blocked(403)
        assert answer.body == b"forbidden\n"
        assert answer.audit["rule_ids"][0].endswith("/" + rule)
        assert answer.tags[0] == "denylist"


def test_no_exception_for_what_was_not_looked_at(config: dict[str, Any], tmp_path: Path) -> None:
    """Too long is a hit of a rule and of no exception; a second User-Agent that is excused excuses none."""
    (tmp_path / "paths").write_text("glob /**/*.bak\n")
    (tmp_path / "allow_paths").write_text("glob /**/*.txt\n")
    with TestClient(DenylistAgent) as client:
        client.configure(config)
        client.request_headers("GET", "/" + "a" * 5000, UA).assert_blocked()
        client.request_headers("GET", "/", {"User-Agent": "our-own sqlmap" + "a" * 5000}).assert_blocked()
        client.request_headers("GET", "/", {"User-Agent": ["sqlmap", "our-own sqlmap"]}).assert_blocked()
        client.request_headers("GET", "/", {"User-Agent": ["Mozilla", "our-own sqlmap"]}).assert_allowed()


def test_the_answer_can_be_chosen(config: dict[str, Any]) -> None:
    with TestClient(DenylistAgent) as client:
        client.configure({**config, "status": 404, "body": "<p>no</p>", "headers": {"Content-Type": "text/html"}})
        answer = client.request_headers("GET", "/.git", UA).assert_blocked(404)
        assert (answer.body, answer.headers) == (b"<p>no</p>", {"content-type": ["text/html"]})


def test_who_has_no_address_is_not_let_through(client: TestClient) -> None:
    """An error, which ends as the failure mode says; without networks the address does not matter."""
    client.request_headers("GET", "/", UA, client_ip="").assert_error("no_address")


def test_before_it_is_configured_it_decides_nothing() -> None:
    with TestClient(DenylistAgent) as client:
        client.request_headers().assert_error("not_configured")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"networks": ["/nowhere/list"]}, "/nowhere/list: No such file or directory"),
        ({"networks": [], "paths": [], "user_agents": []}, "config.allow_networks: an exception from nothing"),
        ({"network": []}, "did you mean networks?"),
        ({"headers": {"a b": "c"}}, "config.headers: 'a b' is no header name"),
        ({"check_interval_s": 0}, "config.check_interval_s"),
    ],
)
def test_configurations_that_are_rejected(client: TestClient, config: dict[str, Any], change: Any, says: str) -> None:
    """With the key or the file; and the lists in force stay as they are."""
    with pytest.raises(ConfigRejected) as caught:
        client.configure({**config, **change})
    assert says in caught.value.message
    client.request_headers("GET", "/.git", UA).assert_blocked()


def test_an_empty_table_is_rejected() -> None:
    with TestClient(DenylistAgent) as client, pytest.raises(ConfigRejected, match="nothing would be refused"):
        client.configure()


def test_a_bad_line_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "paths").write_text("prefix /a\n\n# x\n/admin\n")
    with TestClient(DenylistAgent) as client, pytest.raises(ConfigRejected) as caught:
        client.configure(config)
    assert caught.value.message.startswith(f"{tmp_path}/paths:4: '/admin' is not `exact /path`")


async def test_a_list_that_changes_is_in_force_soon(config: dict[str, Any], tmp_path: Path) -> None:
    """Replaced, broken, deleted: each as the operator does it, with the agent running."""
    async with AsyncTestClient(DenylistAgent) as client:
        await client.configure({**config, "check_interval_s": 0.01})
        session = client.agent.session

        async def refuses(uri: str) -> bool:
            return (await client.request_headers("GET", uri, UA)).is_block

        def has(path: str) -> bool:
            return client.agent._lists.paths.find(path) is not None

        def said(what: bytes) -> bool:
            return what in b"".join(session.greeting()[0] if session.greeting() else [])

        (tmp_path / "new").write_text("exact /new\n")
        (tmp_path / "new").rename(tmp_path / "paths")
        await until(lambda: has("/new"), 20)
        assert await refuses("/new")
        assert not await refuses("/.git")
        (tmp_path / "paths").write_text("nonsense\n")
        await until(lambda: said(b"degraded"), 20)
        assert said(b"paths:1: 'nonsense' is not")
        assert await refuses("/new")
        (tmp_path / "paths").unlink()
        await until(lambda: said(b"No such file"), 20)
        assert await refuses("/new")
        (tmp_path / "paths").write_text("exact /newer\n")
        await until(lambda: has("/newer"), 20)
        assert said(b"healthy")
        client.agent._files.stop()


def test_it_counts(client: TestClient) -> None:
    client.request_headers("GET", "/.git", UA)
    snapshot = client.agent.session.metrics.snapshot()
    assert {"name": "denied_total", "labels": {"kind": "path"}, "value": 1} in snapshot["counters"]
    assert {"name": "rules", "labels": {"kind": "network"}, "value": 2} in snapshot["gauges"]
