"""proxy/cli/explain.py: `wardgate explain` as its user meets it."""

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.cli.explain import request_bytes
from shared.defaults import EXPLAIN_ROUTES_SHOWN

CONFIG = """
[server]
listen = ["127.0.0.1:0"]
trusted_proxies = ["10.0.0.0/8"]
max_body_bytes = 1000000
[[upstreams]]
name = "app"
targets = [{ address = "127.0.0.1:9000", weight = 2 }, { address = "unix:/run/app.sock" }]
[[upstreams]]
name = "spare"
targets = [{ address = "spare.example:443" }]
tls = { verify = false }
[[agents]]
name = "waf"
protocol = "zmq-v2"
events = ["request_headers", "request_body_chunk"]
max_request_body_bytes = 1000
[[agents]]
name = "scan"
protocol = "zmq-v1"
endpoint = "ipc:///run/scan.sock"
events = ["request_headers", "request_body_chunk"]
failure_mode = "open"
timeout_ms = 500
[[routes]]
name = "api"
upstream = "app"
match = { hosts = ["api.example.com"], path_prefix = "/v1/", methods = ["GET", "POST"] }
order = "sequential"
fallback_upstreams = ["spare"]
rate_limits = [{ name = "per-client", key = "client_ip", capacity = 20, refill_rate = 0.5 }]
filters = [{ agent = "waf" }, { agent = "scan" }]
[[routes]]
name = "chat"
upstream = "spare"
match = { path_prefix = "/chat" }
websocket = { enabled = false }
[[routes]]
name = "default"
upstream = "app"
match = { hosts = ["*.example.com", "[::1]"] }
"""

GOLDEN = """\
POST /v1/orders of api.example.com from 192.0.2.1
takes route api to upstream app

Routes
ROUTE    RESULT  WHY
api      chosen  api.example.com, /v1/, GET, POST
chat     lost    path: not /chat or below it
default  lost    less specific: *.example.com; api has api.example.com

Route api
SETTING...

Agents
EVENT               WITHIN  AGENT  MODE     ON FAILURE  TIMEOUT  NOTE
request_headers     700 ms  waf    enforce  refuse      200 ms   in sequence
request_headers     700 ms  scan   enforce  go on       500 ms   in sequence
request_body_chunk  200 ms  waf    enforce  refuse      200 ms   step 1 of 2, up to 1000 bytes, this body is longer: 413
request_body_chunk  500 ms  scan   enforce  go on       500 ms   step 2 of 2, up to 1048576 bytes

Limits
LIMIT                    KEY        MOST            THIS REQUEST
server.max_header_bytes  -          32768           130
server.max_headers       -          100             5
request_target           -          8192            10
server.max_body_bytes    -          1000000         2000
api/per-client           client_ip  20, then 0.5/s

Header fields
RESULT    FIELD              VALUE                                          WHY
passed    Host               api.example.com
dropped   Connection         X-Gone                                         hop-by-hop
dropped   X-Gone             1                                              named by Connection
replaced  Content-Length     2000                                           framing is written anew
replaced  X-Forwarded-For    9.9.9.9                                        not from a trusted proxy
added     content-length     2000
added     x-forwarded-for    192.0.2.1
added     x-forwarded-proto  http
added     x-forwarded-host   api.example.com
added     forwarded          for=192.0.2.1;proto=http;host=api.example.com
added     traceparent        <new for each request>
added     via                1.1 wardgate
added     x-correlation-id   <new for each request>

Upstream app
127.0.0.1:9000  weight 2, plain HTTP
unix:/run/app.sock  weight 1, plain HTTP
if it fails: spare

Goes upstream, before agents change it
  POST /v1/orders HTTP/1.1
  Host: api.example.com
  content-length: 2000
  x-forwarded-for: 192.0.2.1
  x-forwarded-proto: http
  x-forwarded-host: api.example.com
  forwarded: for=192.0.2.1;proto=http;host=api.example.com
  traceparent: <new for each request>
  via: 1.1 wardgate
  x-correlation-id: <new for each request>
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.delenv("WARDGATE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("w.toml").write_text(CONFIG)
    return lambda *arguments: CliRunner().invoke(main, ["explain", "-c", "w.toml", *arguments])


def test_the_whole_view(run):
    result = run(
        *("POST", "http://api.example.com/v1/orders", "-H", "Content-Length: 2000", "-H", "Connection: X-Gone"),
        *("-H", "X-Gone: 1", "-H", "X-Forwarded-For: 9.9.9.9"),
    )
    assert result.exit_code == 0, result.output
    # The route's settings are whatever the schema has.
    shown = re.sub(r"(?m)^SETTING .*\n(?:\S+ .*\n)+", "SETTING...\n", result.stdout)
    assert shown == GOLDEN


def test_the_settings_of_the_route(run):
    rows = dict(
        line.split(None, 1) for line in run("GET", "http://api.example.com/v1/").stdout.splitlines() if " " in line
    )
    assert rows["order"] == "sequential"
    assert rows["request_body"] == "buffer"
    assert rows["decode_bodies"] == "false"
    assert rows["websocket.enabled"] == "true"


def test_json_has_everything(run):
    result = run(
        "GET", "http://api.example.com/v1/x?y=1", "--client-ip", "10.0.0.1", "-H", "Forwarded: for=1.2.3.4", "--json"
    )
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert list(found) == [
        "refused",
        "request",
        "routes",
        "route",
        "phases",
        "bounds",
        "limits",
        "fields",
        "upstream",
        "upstream_head",
    ]
    assert found["refused"] is None
    assert found["request"] == {
        "method": "GET",
        "target": "/v1/x?y=1",
        "path": "/v1/x",
        "host": "api.example.com",
        "peer_ip": "10.0.0.1",
        "peer_is_trusted": True,
        "client_ip": "1.2.3.4",
        "body": "none",
        "content_length": None,
        "expects_100": False,
        "is_websocket": False,
        "keep_alive": True,
    }
    assert found["routes"][0] == {
        "route": "api",
        "is_chosen": True,
        "fits": True,
        "why": "api.example.com, /v1/, GET, POST",
    }
    assert [phase["event"] for phase in found["phases"]] == ["request_headers", "request_body_chunk"]
    assert found["phases"][1]["skipped"] == "the request has no body"
    assert found["upstream"]["targets"][0] == {"address": "127.0.0.1:9000", "weight": 2}
    assert found["upstream_head"].startswith("GET /v1/x?y=1 HTTP/1.1\r\nHost: api.example.com\r\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("DELETE", "http://api.example.com/v1/x"), "405: method is not allowed on this route; allowed: GET, POST"),
        (("GET", "http://other.example.org/"), "404: no route"),
        (("GET", "http://api.example.com//v1/x"), "400: path is ambiguous"),
        (("GET", "http://api.example.com/v1/../x"), "400: dot segment in the path"),
        (("GET", "http://api.example.com/v1/%2f"), "400: encoded slash or NUL in the path"),
        (("GET", "/v1/x"), "400: no Host"),
        (("GET", "/v1/#x", "-H", "Host: a"), "400: fragment in the request target"),
        (("BREW", "http://a/"), "501: method is not known"),
        (("CONNECT", "http://a/"), "405: method CONNECT is not proxied"),
        (("GET", "http://a/", "-H", "X_A: 1"), "400: underscore in a header name"),
        (("GET", "http://a/", "-H", "X A: 1"), "400: malformed request"),
        (("GET", "http://a/", "-H", f"X-A: {'a' * 40_000}"), "431: head is over max_header_bytes = 32768"),
        (("GET", f"http://a/{'a' * 9_000}"), "414: request target is over 8192 bytes"),
        (("PUT", "http://a/", "-H", "Content-Length: 1000001"), "413: body of 1000001 bytes"),
        (("PUT", "http://a/", "-H", "Content-Length: 1", "-H", "Transfer-Encoding: chunked"), "400: malformed request"),
        (("GET", "http://a/", "-H", "Expect: tea"), "417: an expectation other than 100-continue"),
        (("GET", "http://a/chat", "--websocket"), "403: WebSocket is not"),
        (
            ("GET", "http://x.example.com/", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket"),
            "400: Sec-WebSocket-Key",
        ),
        (("POST", "http://x.example.com/", "--websocket"), "400: a WebSocket upgrade that is not a GET"),
    ],
)
def test_what_the_proxy_would_refuse(run, arguments, said):
    """Exit code 1, with status and reason; no agent and no upstream in it."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert f"refused with {said}" in result.stdout
    assert "Upstream" not in result.stdout
    found = run(*arguments, "--json")
    assert found.exit_code == 1
    document = json.loads(found.stdout)
    assert f"{document['refused']['status']}: {document['refused']['reason']}".startswith(said.partition(";")[0])
    assert document["phases"] == []


def test_405_and_404_say_why_of_every_route(run):
    assert (
        "api      chosen  api.example.com, /v1/, but only GET, POST" in run("PUT", "http://api.example.com/v1/").stdout
    )
    shown = run("GET", "http://h/").stdout
    assert "api      lost    host: only api.example.com" in shown
    assert "chat     lost    path: not /chat or below it" in shown
    assert "default  lost    host: only *.example.com, [::1]" in shown


def test_an_ipv6_literal_wildcards_and_https(run):
    assert "takes route default to upstream app" in run("GET", "http://[::1]:8080/x").stdout
    shown = run("GET", "https://x.EXAMPLE.com:443/x").stdout
    assert "takes route default" in shown
    assert "  Host: x.EXAMPLE.com\n" in shown
    assert "spare.example:443  weight 1, TLS, not verified" in run("GET", "http://h/chat").stdout


def test_a_websocket_upgrade(run):
    result = run("GET", "http://x.example.com/ws", "--websocket", "-H", "Sec-WebSocket-Protocol: chat", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["request"]["is_websocket"] is True


def test_an_upgrade_to_something_else_is_an_ordinary_request(run):
    shown = run("GET", "http://x.example.com/", "-H", "Connection: Upgrade", "-H", "Upgrade: h2c").stdout
    assert re.search(r"dropped +Upgrade +h2c +hop-by-hop", shown)


def test_who_connects(run):
    shown = run("GET", "http://x.example.com/", "--client-ip", "10.2.3.4", "-H", "X-Forwarded-For: 2001:db8::1").stdout
    assert "from 10.2.3.4, a trusted proxy, for 2001:db8::1" in shown
    shown = run("GET", "http://x.example.com/", "--client-ip", "unix").stdout
    assert "from a unix socket" in shown
    assert "x-forwarded-for: unknown" in shown


def test_a_proxy_that_listens_on_a_unix_socket_only(run):
    Path("w.toml").write_text(CONFIG.replace('"127.0.0.1:0"', '"unix:/run/wg.sock"'))
    assert "from a unix socket" in run("GET", "http://x.example.com/").stdout
    assert "from 192.0.2.1" in run("GET", "http://x.example.com/", "--client-ip", "192.0.2.1").stdout


def test_http_1_0_needs_no_host(run):
    Path("w.toml").write_text(CONFIG + '[[routes]]\nname = "any"\nupstream = "app"\n')
    shown = run("GET", "/x", "--http1.0").stdout
    assert "takes route any" in shown
    assert "  host: 127.0.0.1:9000\n" in shown
    assert "  via: 1.0 wardgate\n" in shown


def test_of_many_routes_only_those_that_come_close(run):
    more = "".join(
        f'[[routes]]\nname = "r{i}"\nupstream = "app"\nmatch = {{ hosts = ["h{i}.example.net"] }}\n'
        for i in range(EXPLAIN_ROUTES_SHOWN)
    )
    Path("w.toml").write_text(CONFIG + more)
    shown = run("GET", "http://api.example.com/v1/").stdout
    assert "h7.example.net" not in shown
    assert f"{EXPLAIN_ROUTES_SHOWN + 1} more, whose host or path does not fit" in shown
    assert len(json.loads(run("GET", "http://h/", "--json").stdout)["routes"]) == EXPLAIN_ROUTES_SHOWN + 3


def test_what_would_act_on_a_terminal_is_shown_harmlessly(run):
    shown = run("GET", "http://x.example.com/", "-H", "X-A: \x9b31m").stdout
    assert "\x9b" not in shown
    result = run("GET", "http://x.example.com/", "-H", "X-A: \x1b[31m")
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("GET",),
        ("GET", "api.example.com/x"),
        ("GET", "ftp://h/"),
        ("GET", "http:///x"),
        ("GET", "http://user:pw@h/"),
        ("", "http://h/"),
        ("GET", "http://h/\r\nX: 1"),
        ("GET", "http://h/", "-H", "no colon"),
        ("GET", "http://h/", "-H", ": empty"),
        ("GET", "http://h/", "-H", "X: 1\nY: 2"),
        ("GET", "http://h/", "--client-ip", "h"),
    ],
)
def test_usage_errors(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_configuration_that_is_refused(run):
    Path("w.toml").write_text("x = 1\n")
    result = run("GET", "http://h/")
    assert result.exit_code == 2
    assert "w.toml:1: x: unknown key" in result.stderr
    assert CliRunner().invoke(main, ["explain", "-c", "absent.toml", "GET", "http://h/"]).exit_code == 2


def test_the_request_as_a_client_would_send_it():
    assert request_bytes("GET", "http://h:80?x", ()) == b"GET /?x HTTP/1.1\r\nHost: h\r\n\r\n"
    assert request_bytes("GET", "HTTPS://h:80/a#b", ()) == b"GET /a HTTP/1.1\r\nHost: h:80\r\n\r\n"
    assert request_bytes("OPTIONS", "*", ("Host: h",)) == b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"
    assert request_bytes("GET", "http://h/", ("A:b", "hOST:  other")) == (
        b"GET / HTTP/1.1\r\nA: b\r\nhOST: other\r\n\r\n"
    )
    assert request_bytes("GET", "http://h/\udcff", ()) == b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n"
    with pytest.raises(click.UsageError):
        request_bytes("GET", "", ())


def test_help_says_what_it_does_and_its_exit_codes(run):
    result = run("--help")
    assert result.exit_code == 0
    for text in ("--client-ip", "--header", "--json", "Examples", "Exit codes: 0 explained, 1 the proxy would refuse"):
        assert text in result.stdout
    assert "explain" in CliRunner().invoke(main, ["--help"]).stdout
