"""wardgate_agents/denylist: networks, paths, user agents against plain models of them."""

import fnmatch
import ipaddress
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardgate_agents.denylist.addresses import Networks, parse_network
from wardgate_agents.denylist.paths import Paths, normalised
from wardgate_agents.denylist.patterns import MAX_LITERALS, MAX_TEXT_CHARS, TOO_LONG, Literals, Patterns
from wardgate_agents.denylist.user_agents import UserAgents


def rows(*texts: str) -> list[tuple[str, str]]:
    return [(text, f"list:{number}") for number, text in enumerate(texts, 1)]


# --- networks -----------------------------------------------------------------------------------------

ipv4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
# Few addresses, so that networks hit each other and what is asked.
near4 = st.integers(0xC0000200, 0xC0000240).map(ipaddress.IPv4Address)
near6 = st.integers(0x20010DB8 << 96, (0x20010DB8 << 96) + 64).map(ipaddress.IPv6Address)
address = ipv4 | ipv6 | near4 | near6
network = st.builds(
    lambda one, bits: ipaddress.ip_network((one, min(bits, one.max_prefixlen)), strict=False),
    address,
    st.integers(0, 128),
)


@given(st.lists(network, max_size=30), st.lists(address, min_size=1, max_size=10))
def test_networks_are_what_ipaddress_says(networks: list, addresses: list) -> None:
    """Whatever nests or repeats; the rule that is named does contain the address."""
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    networks = [one for one in networks if one.version == 4 or not one.overlaps(mapped)]
    made = Networks([(str(one), str(one)) for one in networks])
    for one in [*addresses, *(n.network_address for n in networks), *(n.broadcast_address for n in networks)]:
        if one.version == 6 and one in mapped:
            continue
        where = made.find(str(one))
        assert (where is not None) == any(one in each for each in networks if each.version == one.version)
        if where is not None:
            assert one in ipaddress.ip_network(where)


@given(ipv4)
def test_ipv4_written_as_ipv6_is_ipv4(one: ipaddress.IPv4Address) -> None:
    made = Networks(rows(f"{one}/32"))
    assert made.find(f"::ffff:{one}") == "list:1"
    assert Networks(rows(f"::ffff:{one}/128")).find(str(one)) == "list:1"


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-f:./%]{1,30}", fullmatch=True))
def test_any_text_is_a_network_or_a_message(text: str) -> None:
    """And what is one, ipaddress takes as well."""
    try:
        bits, first, last = parse_network(text)
    except ValueError as error:
        assert str(error)
        return
    assert 0 <= first <= last < 2**bits
    ipaddress.ip_network(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.1/8", "bits set behind its prefix"),
        ("10.0.0.0/33", "not from 0 to 32"),
        ("10.0.0.0/-1", "not from 0 to 32"),
        ("10.0.0.0/8.", "not from 0 to 32"),
        ("10.0.0", "no address or network"),
        ("010.0.0.1", "no address or network"),
        ("2001:db8::/129", "not from 0 to 128"),
        ("fe80::1%eth0", "without a zone"),
        ("example.com", "no address or network"),
        ("::ffff:0:0/95", "write networks of IPv4 as IPv4"),
    ],
)
def test_a_network_that_is_none(text: str, says: str) -> None:
    """File and line, and what is wrong."""
    with pytest.raises(ValueError, match=r"^list:2: ") as caught:
        Networks(rows("10.0.0.0/8", text))
    assert says in str(caught.value)


def test_what_is_no_address_is_never_looked_up() -> None:
    """The proxy says "" where there is none, as on a unix socket: not the same as "in no network"."""
    made = Networks(rows("10.0.0.0/8"))
    for text in ("", "unix:", "10.0.0.1:80", "10.0.0.1\0"):
        with pytest.raises(ValueError, match="no IP address"):
            made.find(text)
    assert Networks(rows("fe80::/10")).find("fe80::1%eth0") == "list:1"


# --- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/admin", "/admin/", "//admin", "/./admin", "/x/../admin", "/admin;a=b", "/;x/admin", "\\admin", "/admin/;/",
     "///admin//", "/x\\..\\admin", "/x/..;a/admin", "/../admin"],
)  # fmt: skip
def test_spellings_of_one_path(path: str) -> None:
    """A lenient server reads all of them as /admin."""
    assert normalised(path) == "/admin"


@given(st.text(alphabet="ab/.;\\*%", max_size=30).map(lambda text: "/" + text))
def test_a_normalised_path_is_even(path: str) -> None:
    """No parameters, no dots, no empty segments; doing it again changes nothing."""
    once = normalised(path)
    assert normalised(once) == once
    assert once.startswith("/")
    assert once == "/" or not any(part in ("", ".", "..") for part in once[1:].split("/"))
    assert ";" not in once
    assert "\\" not in once
    assert once == posixpath.normpath(once)


def test_rules_about_paths() -> None:
    paths = Paths(rows("exact /status", "prefix /.git", "glob /**/*.bak", "glob /a/*/c", "glob /v?/**", "exact /100%"))
    for path, where in {
        "/status": "list:1",
        "/status/x": None,
        "/Status": None,
        "/.git": "list:2",
        "/.git/config": "list:2",
        "/.gitignore": None,
        "/x.bak": "list:3",
        "/d/e/x.bak": "list:3",
        "/x.bak/y": None,
        "/a/b/c": "list:4",
        "/a/b/b/c": None,
        "/v1/x/y": "list:5",
        "/v1": None,
        "/v12/x": None,
        "/100%": "list:6",
        "/": None,
        "*": None,
        "/\n.bak": "list:3",
    }.items():
        assert paths.find(path) == where, path


def test_upper_and_lower_case() -> None:
    paths = Paths(rows("exact /Status", "prefix /Admin", "glob /**/*.BAK"), ignores_case=True)
    assert [paths.find(path) for path in ("/STATUS", "/aDMIN/x", "/x.bAk")] == ["list:1", "list:2", "list:3"]


def test_the_root_as_a_prefix_is_everything() -> None:
    paths = Paths(rows("prefix /"))
    assert paths.find("/") == paths.find("/x/y") == paths.find("*") == "list:1"


segment = st.text(alphabet="ab.", min_size=1, max_size=4).filter(lambda s: s.strip("."))
pattern = st.lists(segment | st.just("**") | st.text(alphabet="a*?", min_size=1, max_size=3), min_size=1, max_size=4)


def model(pattern: list[str], path: list[str]) -> bool:
    """Globs as one would explain them."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return len(path) >= 1 and len("/".join(path)) >= 1
        return any(model(pattern[1:], path[at:]) for at in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and model(pattern[1:], path[1:])


@given(pattern, st.lists(segment, min_size=1, max_size=5))
def test_globs_are_what_a_model_says(glob: list[str], path: list[str]) -> None:
    text = "/" + "/".join(glob)
    try:
        made = Paths(rows(f"glob {text}"))
    except ValueError as error:
        assert "**" in str(error) or "normalised" in str(error)
        return
    assert (made.find("/" + "/".join(path)) is not None) == model(glob, path)


@given(st.text(max_size=30), st.sampled_from(["exact ", "prefix ", "glob ", ""]))
def test_any_text_is_a_rule_or_a_message(text: str, kind: str) -> None:
    try:
        paths = Paths(rows(kind + text))
    except ValueError as error:
        assert str(error).startswith("list:1: ")
    else:
        paths.find("/some/path")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("/admin", "is not `exact /path`"),
        ("exact admin", "does not begin with /"),
        ("exact /a%20b", "paths are decoded"),
        ("prefix /admin/", "write '/admin'"),
        ("exact /a//b", "write '/a/b'"),
        ("exact /a?b=c", "leave the query out"),
        ("glob /a**", "whole segments"),
        ("regex /a", "is not `exact /path`"),
    ],
)
def test_a_rule_that_could_never_fit(rule: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"^list:1: ") as caught:
        Paths(rows(rule))
    assert says in str(caught.value)


# --- user agents and patterns ---------------------------------------------------------------------------


def test_rules_about_user_agents() -> None:
    agents = UserAgents(rows("contains SQLmap", r"regex ^curl/7\.", "absent", "contains a.b", "regex (?i)bot\\b"))
    for value, where in (
        ("Mozilla sqlmap/1", "list:1"),
        ("curl/7.1", "list:2"),
        ("xcurl/7.1", None),
        ("", "list:3"),
        ("axb", None),
        ("a.b", "list:4"),
        ("GoogleBOT 1", "list:5"),
        ("robots", None),
    ):
        assert agents.find(value) == where, value


@pytest.mark.parametrize("rule", ["contains", "contains ", "regex (", "regex a(?=b)", "regex a)|(b", "present", ""])
def test_a_rule_about_user_agents_that_is_none(rule: str) -> None:
    with pytest.raises(ValueError, match=r"^list:1: "):
        UserAgents(rows(rule))


def test_no_pattern_can_hold_up_the_agent() -> None:
    """Exponential with a backtracking engine; it would never end."""
    made = Patterns(rows("(a+)+$", "(a|aa)+b", "(x*)*y"))
    assert made.find("a" * MAX_TEXT_CHARS) == "list:1"
    assert made.find("a" * (MAX_TEXT_CHARS - 1) + "!") is None
    globs = Paths(rows("glob /**/a*/**/b*/**/c*/**/d"))
    assert globs.find("/a/b/c" * 600) is None


def test_a_text_that_is_too_long_is_a_hit() -> None:
    """Where there is a rule that would have to look at it."""
    long = "x" * (MAX_TEXT_CHARS + 1)
    assert UserAgents(rows("contains y")).find(long) == TOO_LONG
    assert UserAgents(rows("regex y")).find(long) == TOO_LONG
    assert UserAgents(rows("absent")).find(long) is None
    assert Paths(rows("glob /*")).find("/" + long) == TOO_LONG
    assert Paths(rows("exact /a", "prefix /b")).find("/" + long) is None


def test_too_many_patterns() -> None:
    """Said with the line that is one too many; literals and globs with ends of their own are many."""
    UserAgents([(f"contains bot{number}", "x") for number in range(MAX_LITERALS)])
    Paths([(f"glob /**/*.e{number}", "x") for number in range(3000)])
    Paths([(f"glob /a{number}/*", "x") for number in range(3000)])
    for make, kind in (
        (UserAgents, "contains bot{}"),
        (UserAgents, "regex a.*b{}"),
        (Paths, "glob /{}*.bak"),
        (Paths, "glob /a/*{}*"),
        (Paths, "glob /**/{}*"),
    ):
        with pytest.raises(ValueError, match=r"^list:\d+: (more than|too many)"):
            make(rows(*(kind.format(number) for number in range(MAX_LITERALS + 1))))


@given(
    st.lists(st.from_regex(r"[a-c.*+?|()]{1,6}", fullmatch=True), max_size=6), st.text(alphabet="abc\n", max_size=12)
)
def test_many_patterns_are_each_of_them(patterns: list[str], text: str) -> None:
    """All at once finds what the first of them finds alone."""
    good = []
    for pattern in patterns:
        try:
            Patterns([(pattern, "x")])
        except ValueError:
            continue
        good.append(pattern)
    expected = next((p for p in good if Patterns([(p, "x")]).find(text)), None)
    assert Patterns([(p, p) for p in good]).find(text) == expected


@given(
    st.lists(st.text(alphabet="abAB.s\u017f", min_size=1, max_size=4), max_size=6),
    st.text(alphabet="abAB.xs", max_size=12),
)
def test_literals_are_found_in_any_case(literals: list[str], text: str) -> None:
    """One that does stand in it is named."""
    found = Literals([(one, one) for one in literals]).find(text)
    fitting = [one for one in literals if one.casefold() in text.casefold()]
    assert (found is not None) == bool(fitting)
    assert found is None or found.casefold() in [one.casefold() for one in fitting]
