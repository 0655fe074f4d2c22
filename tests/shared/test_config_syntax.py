"""shared/config/syntax.py: strings with a syntax; what is accepted, what is refused, what is suggested."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config.schema import Config
from shared.config.shape import fields_of, shape_of
from shared.config.syntax import CHECKS, split_port

ACCEPTED = {
    "name": ["a", "waf", "A1._-b", "9", "x" * 63],
    "listen": ["127.0.0.1:80", "localhost:0", "[::1]:8080", "0.0.0.0:65535", "unix:/run/a.sock", "my-host.example:1"],
    "tcp_listen": ["127.0.0.1:80", "[::]:9900"],
    "address": ["127.0.0.1:1", "app.internal:443", "[2001:db8::1]:80", "unix:/run/app.sock"],
    "network": ["127.0.0.1/32", "10.0.0.0/8", "::1/128", "192.0.2.1", "2001:db8::/32"],
    "endpoint": ["ipc:///run/a.sock", "tcp://127.0.0.1:5555", "tcp://[::1]:1"],
    "host_name": ["app.internal", "a"],
    "host_pattern": ["api.example.com", "*.example.com", "localhost", "10.0.0.1", "[::1]", "xn--bcher-kva.example"],
    "path_prefix": ["/", "/v1", "/v1/", "/ü", "/a b", "/100%", "/a.b/..c"],
    "method": ["GET", "PROPFIND", "M-SEARCH"],
    "limit_key": ["client_ip", "global", "identity", "header:X-Api-Key", "cookie:a_b"],
    "user": ["root", "wardgate-agent", "me@example"],
    "file": ["", "/etc/x", "credential-name"],
    "directory": ["", "/run/wardgate"],
}

# name -> text -> part of the hint ("" = none)
REFUSED = {
    "name": {"": "", "a b": "", "-a": "", "x" * 64: "", "ä": "", "a/b": "", "a[1]": ""},
    "listen": {
        "8080": '"127.0.0.1:8080"',
        ":8080": '"127.0.0.1:8080"',
        "*:80": '"0.0.0.0:80"',
        "http://127.0.0.1:80/": '"127.0.0.1:80"',
        "::1:80": '"[::1]:80"',
        "127.0.0.1": "",
        "127.0.0.1:65536": "",
        "127.0.0.1:-1": "",
        "127.1:80": "",
        "1.2.3.4.5:80": "",
        "host name:80": "",
        "unix:relative": "",
        "unix:/" + "x" * 107: "",
        "unix:/a/": "",
        "[127.0.0.1]:80": "",
        "a:٣": "",
    },
    "tcp_listen": {"unix:/run/a": "", "": ""},
    "address": {"http://app:80": '"app:80"', "app:0": "", "80": "", "unix:": "", "app": ""},
    "network": {"*": "0.0.0.0/0", "10.0.0.1/8": '"10.0.0.0/8"', "x": "", "": "", "10.0.0.0/33": ""},
    "endpoint": {"/run/a.sock": '"ipc:///run/a.sock"', "ipc://a": "", "tcp://a": "", "tcp://a:0": "", "inproc://x": ""},
    "host_name": {"": "", "a b": "", "a..b": "", "-a": "", "a/b": ""},
    "host_pattern": {
        "API.example": '"api.example"',
        "*": "leave `hosts` out",
        "a.example:80": '"a.example"',
        "a.example.": '"a.example"',
        "::1": '"[::1]"',
        "a.*.example": "",
        "*example.com": "",
        "": "",
        "http://a": "",
        "[1.2.3.4]": "",
    },
    "path_prefix": {
        "v1": '"/v1"',
        "": '"/"',
        "/a?b=1": '"/a"',
        "/a%20b": '"/a b"',
        "//a": "",
        "/a;b": "",
        "/a/*": "",
        "/a/../b": "",
        "/.": "",
        "/a\\b": "",
    },
    "method": {"get": '"GET"', "G T": "", "": "", "CONNECT": "", "TRACE": "", "GET,POST": ""},
    "limit_key": {
        "": "",
        "ip": "",
        "client_ip:x": "",
        "header:": 'e.g. "header:X-Api-Key"',
        "header:a_b": 'e.g. "header:X-Api-Key"',
        "cookie:a b": 'e.g. "cookie:session"',
        "Global": "",
    },
    "user": {"": "", "a:b": "", "a b": ""},
    "file": {"relative/path": "", ".": "", "..": "", "./a": ""},
    "directory": {"run": "", "./run": ""},
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in ACCEPTED.items() for text in texts])
def test_accepted(name, text):
    assert CHECKS[name](text) is None


@pytest.mark.parametrize(
    ("name", "text", "hint"), [(name, text, hint) for name, texts in REFUSED.items() for text, hint in texts.items()]
)
def test_refused_with_a_hint(name, text, hint):
    finding = CHECKS[name](text)
    assert finding is not None
    assert finding[0]
    assert hint in finding[1]
    assert bool(hint) == bool(finding[1])


def test_every_syntax_is_used_by_the_schema_and_tested_here():
    used = set()

    def walk(shape):
        used.add(shape.note("syntax"))
        if shape.kind == "table":
            for field in fields_of(shape.table).values():
                walk(field)
        elif shape.item is not None:
            walk(shape.item)

    walk(shape_of(Config, None))
    assert used - {""} == set(CHECKS) == set(ACCEPTED) == set(REFUSED)


@given(st.sampled_from(sorted(CHECKS)), st.text(max_size=40) | st.text("[]:./*%-0123456789afx", max_size=25))
def test_no_text_makes_a_check_raise_and_what_is_suggested_is_accepted(name, text):
    finding = CHECKS[name](text)
    if finding is not None and finding[1].startswith("did you mean"):
        suggested = finding[1].partition('"')[2].rpartition('"')[0]
        again = CHECKS[name](suggested)
        # One slip at a time: a suggestion may still hold another one, but never the same.
        assert again is None or again != finding


def test_an_address_is_taken_apart():
    assert split_port("[::1]:80") == ("::1", 80)
    assert split_port("a:0") == ("a", 0)
    assert split_port("a") is None
