"""shared/config/load.py: what is accepted, and everything that is refused, each with its place and a hint."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.config import former, later
from shared.config.load import load
from shared.config.reference import json_schema
from shared.errors import ConfigError
from shared.plan import compile_plans

EXAMPLE = Path(__file__).parents[1] / "data" / "wardgate.example.toml"

# A small valid file; tests put their lines before or after it.
UPSTREAM = '[[upstreams]]\nname = "app"\ntargets = [{ address = "127.0.0.1:9000" }]\n'
AGENT = '[[agents]]\nname = "waf"\nprotocol = "zmq-v2"\n'
ROUTE = '[[routes]]\nname = "all"\nupstream = "app"\nfilters = [{ agent = "waf" }]\n'
BASE = UPSTREAM + AGENT + ROUTE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def accept(text, environ=None, **options):
    Path("w.toml").write_text(text)
    return load("w.toml", environ or {}, **options)


def refuse(text, environ=None, **options):
    """The problems of a text that must be refused."""
    with pytest.raises(ConfigError) as caught:
        accept(text, environ, **options)
    return caught.value.problems


# --- what is accepted ------------------------------------------------------------------------------


def test_the_example_is_accepted_and_says_what_it_says():
    loaded = load(str(EXAMPLE), {})
    config = loaded.config
    assert config.server.workers == 2
    assert [agent.name for agent in config.agents] == ["waf", "tracer", "guardrail"]
    assert config.agents[0].config == {"paranoia": 1}
    assert config.routes[0].match.methods == ("GET", "POST")
    assert config.routes[0].filters[1].mode == "observe"
    assert config.routes[0].guardrails.completion.action == "redact"
    assert [(plan.route, plan.kind.wire_name, plan.part) for plan in compile_plans(config)] == [
        ("api", "request_headers", ""),
        ("api", "request_body_chunk", ""),
        ("api", "websocket_frame", ""),
        ("api", "guardrail_inspect", "prompt"),
        ("api", "guardrail_inspect", "completion"),
        ("api", "request_complete", ""),
        ("default", "request_headers", ""),
        ("default", "request_body_chunk", ""),
        ("default", "websocket_frame", ""),
        ("default", "request_complete", ""),
    ]
    assert loaded.files == [str(EXAMPLE)]
    # A user that may not exist on this machine is no reason to refuse.
    assert all("allow_users" in warning for warning in loaded.warnings)


def test_a_file_with_only_what_is_needed_is_accepted_with_the_defaults(folder):
    loaded = accept(BASE)
    assert loaded.config.server.listen == ("127.0.0.1:8080",)
    assert loaded.config.agents[0].circuit_breaker.failure_threshold == 5
    assert loaded.warnings == []
    assert loaded.origins["server.workers"] == "default"
    assert loaded.origins["agents[waf].circuit_breaker.window_seconds"] == "default"
    assert loaded.origins["agents[waf].protocol"] == "w.toml:6"
    assert loaded.origins["routes[all].filters[0].agent"] == "w.toml:10"
    assert "agents[waf].events" not in loaded.origins


def test_the_installed_default_is_accepted_without_a_warning():
    assert load(str(Path(__file__).parents[2] / "config" / "wardgate.toml"), {}).warnings == []


def test_the_digest_is_the_meaning_not_the_text(folder):
    one = accept(BASE)
    same = accept("# a comment\n" + BASE + "\n[server]\nheader_timeout_s = 10\nworkers = 2\n")
    other = accept(BASE + "\n[server]\nworkers = 3\n")
    assert re.fullmatch("[0-9a-f]{16}", one.digest)
    assert one.digest == same.digest != other.digest


def test_without_a_directory_the_daemons_meet_where_the_session_or_the_unit_says(folder):
    for environ, expected, origin in (
        ({}, "/run/wardgate", "default"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/wardgate", "environment XDG_RUNTIME_DIR"),
        (
            {"XDG_RUNTIME_DIR": "/run/user/7", "RUNTIME_DIRECTORY": "/run/a:/run/b"},
            "/run/a",
            "environment RUNTIME_DIRECTORY",
        ),
    ):
        loaded = accept(BASE, environ)
        assert (loaded.config.runtime.dir, loaded.origins["runtime.dir"]) == (expected, origin)
    assert accept(BASE + '[runtime]\ndir = "/x"\n', {"RUNTIME_DIRECTORY": "/run/a"}).config.runtime.dir == "/x"
    for directory in ("relative", "/run/\udcff", "/" + "x" * 120):
        assert "runtime.dir" in refuse(BASE, {"RUNTIME_DIRECTORY": directory})[0]


# --- where the file is ------------------------------------------------------------------------------


def test_the_file_is_the_given_one_else_the_environments(folder):
    Path("a.toml").write_text(BASE)
    Path("b.toml").write_text(BASE + "[server]\nworkers = 7\n")
    assert load("a.toml", {"WARDGATE_CONFIG": "b.toml"}).config.server.workers == 2
    assert load(None, {"WARDGATE_CONFIG": "b.toml"}).config.server.workers == 7


def test_a_file_that_cannot_be_read_is_one_problem(folder):
    for path in ("absent.toml", str(folder), "nul\0byte"):
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        assert len(caught.value.problems) == 1
        assert "cannot be read" in caught.value.problems[0]


def test_only_who_needs_the_files_must_be_able_to_read_them(folder):
    text = BASE + '[admin]\ntoken_file = "/no/such/token"\n'
    assert "cannot be read" in refuse(text)[0]
    assert accept(text, needs_files=False).config.admin.token_file == "/no/such/token"


# --- everything at once -----------------------------------------------------------------------------


def test_all_problems_are_told_at_once_with_line_path_and_hint(folder):
    text = """\
[server]
wokers = 4
listen = "0.0.0.0:80"
max_headers = "100"
header_timeout_s = 0
tls = {}

[[upstreams]]
name = "app"
targets = [{ address = "http://127.0.0.1:9000" }]
balance = "p2c"

[[agents]]
name = "waf"
protocol = "zmqv2"
timeout_ms = 0
events = ["request_headers",
  "request_body_chnk"]
circuit_breaker = { failure_treshold = 5 }

[[routes]]
name = "all"
upstream = "ap"
filters = [
  { agent = "wav" },
  { agent = "waf", mode = "obsrve" },
]
decode_bodys = true

[tracing]
sample_ratio = 0.1
"""
    assert refuse(text) == [
        "w.toml:2: server.wokers: unknown key; did you mean `workers`?",
        'w.toml:3: server.listen: expected array of strings, at least 1, got "0.0.0.0:80"; '
        'did you mean ["0.0.0.0:80"]?',
        'w.toml:4: server.max_headers: expected integer from 1 to 10000, got "100"; did you mean 100, without quotes?',
        "w.toml:5: server.header_timeout_s: expected number greater than 0, at most 3600, got 0",
        "w.toml:6: server.tls: is not supported yet (TLS on the listening side); leave it out",
        'w.toml:10: upstreams[app].targets[0].address: "http://127.0.0.1:9000": expected "host:port", "[ipv6]:port" '
        'or "unix:/path"; did you mean "127.0.0.1:9000"?',
        'w.toml:11: upstreams[app].balance: "p2c" is not supported yet (other balancing than round_robin); '
        'use "round_robin"',
        'w.toml:15: agents[waf].protocol: expected "zmq-v2" or "zmq-v1", got "zmqv2"; did you mean "zmq-v2"?',
        "w.toml:16: agents[waf].timeout_ms: expected integer from 1 to 600000, got 0",
        'w.toml:18: agents[waf].events[1]: expected "request_headers", "request_body_chunk", "response_headers", '
        '"response_body_chunk", "websocket_frame", "guardrail_inspect" or "request_complete", got "request_body_chnk"; '
        'did you mean "request_body_chunk"?',
        "w.toml:19: agents[waf].circuit_breaker.failure_treshold: unknown key; did you mean `failure_threshold`?",
        'w.toml:23: routes[all].upstream: there is no upstream "ap"; did you mean "app"?',
        'w.toml:25: routes[all].filters[0].agent: there is no agent "wav"; did you mean "waf"?',
        'w.toml:26: routes[all].filters[1].mode: expected "enforce" or "observe", got "obsrve"; '
        'did you mean "observe"?',
        "w.toml:28: routes[all].decode_bodys: unknown key; did you mean `decode_bodies`?",
        "w.toml:30: tracing: is not supported yet (tracing); leave it out",
    ]


def test_a_broken_key_brings_no_problem_of_another(folder):
    """An agent without a readable name is not also "no such agent", a bad prefix is not also a tie."""
    assert refuse(UPSTREAM + AGENT.replace('"waf"', "3") + ROUTE) == [
        "w.toml:5: agents[0].name: expected string, got 3",
    ]
    routes = ROUTE + ROUTE.replace('"all"', '"more"') + 'match = { path_prefix = "v1" }\n'
    assert refuse(UPSTREAM + AGENT + routes) == [
        'w.toml:15: routes[more].match.path_prefix: "v1": must begin with "/"; did you mean "/v1"?',
    ]
    assert refuse("agents = 3\nupstreams = [1]\n" + ROUTE) == [
        "w.toml:1: agents: expected array of tables, got 3",
        "w.toml:2: upstreams[0]: expected table, got 1",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server\n", "w.toml:1: not valid TOML: "),
        ("a = 1\na = 2\n", "w.toml:2: not valid TOML: Cannot overwrite a value"),
        ("a = [\n1,\n", "w.toml:3: not valid TOML: "),
        ("\n\nx = \xff", "w.toml:3: unknown key"),
        ("a = " + "[" * 5_000, "w.toml: nested too deeply"),
        ("a = " + "9" * 5_000, "w.toml:1: not valid TOML: "),
        ("[" + ".".join("a" * 40) + "]\n", "w.toml:1: a: nested deeper than 32 levels"),
    ],
)
def test_what_is_not_toml_is_one_problem_with_its_line(folder, text, problem):
    if "unknown" in problem:
        Path("w.toml").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConfigError) as caught:
            load("w.toml", {})
        assert caught.value.problems == ["w.toml:3: not UTF-8"]
    else:
        (found,) = refuse(text)
        assert found.startswith(problem)


def test_a_key_of_another_table_says_where_it_belongs(folder):
    assert refuse(BASE + "timeout_ms = 5\n") == [
        "w.toml:11: routes[all].timeout_ms: unknown key; did you mean `agents[].timeout_ms`?"
    ]


def test_what_is_missing_is_told_at_its_table(folder):
    assert refuse("[[agents]]\n\n[[upstreams]]\nname = 'app'\n[[routes]]\n") == [
        "w.toml:1: agents[0].name: is missing",
        "w.toml:1: agents[0].protocol: is missing",
        "w.toml:3: upstreams[app].targets: is missing",
        "w.toml:5: routes[0].name: is missing",
        "w.toml:5: routes[0].upstream: is missing",
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("nan", "expected number"),
        ("inf", "expected number"),
        ("true", "expected number"),
        ("1979-05-27", "expected number"),
        ('"x"', 'got "x"'),
        ("{}", "got a table"),
        ("[]", "got an array"),
        ("-0.5", "got -0.5"),
        ("10000000000000000000000000", "an integer beyond 64 bits"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(folder, line, text):
    (problem,) = refuse(f"[server]\nheader_timeout_s = {line}\n{BASE}")
    assert problem.startswith("w.toml:2: server.header_timeout_s: ")
    assert text in problem


def test_control_characters_are_refused_everywhere_but_in_an_agents_own_config(folder):
    assert refuse(BASE + '[audit]\npath = "/a\\u0000b"\n') == [
        "w.toml:12: audit.path: control characters are not allowed"
    ]
    agent = AGENT + 'config = { a = "x\\u0000", when = 1979-05-27T07:32:00Z, list = [1, { b = 2.0 }] }\n'
    assert accept(UPSTREAM + agent + ROUTE).config.agents[0].config == {
        "a": "x\0",
        "when": "1979-05-27T07:32:00+00:00",
        "list": [1, {"b": 2.0}],
    }


def test_an_agents_config_must_fit_into_json(folder):
    agent = AGENT + "config = { a = [1, nan], b = 18446744073709551616 }\n"
    assert refuse(UPSTREAM + agent + ROUTE) == [
        "w.toml:7: agents[waf].config.a[1]: nan cannot be handed over as JSON",
        "w.toml:7: agents[waf].config.b: an integer must fit into 64 bits",
    ]


# --- not supported yet ------------------------------------------------------------------------------

# How each key of the table is written; the tests below fail if a row is added without its line here.
LATER_KEYS = {
    "server.tls": '[server]\ntls = { cert_file = "a" }',
    "upstreams[].health_check": '[[upstreams]]\nhealth_check = { path = "/" }',
    "routes[].agents_may_choose": '[[routes]]\nagents_may_choose = ["a"]',
    "audit.retention_days": "[audit]\nretention_days = 1",
    "tracing": "[tracing]",
}
LATER_VALUES = {
    "upstreams[].balance": '[[upstreams]]\nbalance = "{}"',
    "agents[].protocol": '[[agents]]\nprotocol = "{}"',
    "audit.sinks[]": '[audit]\nsinks = ["{}"]',
    "audit.when_full": '[audit]\nwhen_full = "{}"',
}


@pytest.mark.parametrize("key", later.KEYS)
def test_keys_of_features_to_come_are_refused_by_name(folder, key):
    problems = refuse(LATER_KEYS[key])
    assert any(f"is not supported yet ({later.KEYS[key]})" in problem for problem in problems)
    assert not any("unknown" in problem for problem in problems)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in later.VALUES.items() for value in values])
def test_values_of_features_to_come_are_refused_by_name(folder, key, value):
    problems = refuse(LATER_VALUES[key].format(value))
    assert any(f'"{value}" is not supported yet ({later.VALUES[key][value]})' in problem for problem in problems)


def test_every_key_that_the_example_leaves_out_is_known_as_later(folder):
    """Uncomment every `# key = ...` of the example: what is not accepted is refused as "not supported yet"."""
    text = EXAMPLE.read_text()
    lines = []
    for line in text.splitlines():
        found = re.match(r"# ((?:[a-z_]+ = |\[[a-z_]+\]|  \{ name|\]).*)", line)
        lines.append(found[1] if found else line)
    problems = refuse("\n".join(lines).replace('"..."', '"/etc/hostname"'))
    told = [problem.split(": ")[1] for problem in problems if "not supported yet" in problem]
    assert len(told) == len(later.KEYS)
    rest = [problem for problem in problems if "not supported yet" not in problem]
    # The example's comments also hold keys that act, but not for the agent they stand at.
    assert all("endpoint" in problem or "connections" in problem for problem in rest), rest


# --- other names by now -----------------------------------------------------------------------------

FORMER_KEYS = {"runtime.hop_hwm": "[runtime]\nhop_hwm = 1000"}


@pytest.mark.parametrize("key", former.KEYS)
def test_a_former_name_is_refused_with_the_one_it_has_now(folder, key):
    """It counted something else: neither taken over in silence nor told as a mistyped key."""
    assert f"w.toml:2: {key}: unknown key; {former.KEYS[key]}" in refuse(FORMER_KEYS[key])


# --- conf.d ----------------------------------------------------------------------------------------


def test_conf_d_is_merged_in_the_order_of_names(folder):
    Path("conf.d").mkdir()
    Path("conf.d/20-b.toml").write_text('[server]\nworkers = 5\nlisten = ["127.0.0.1:2"]\n')
    Path("conf.d/10-a.toml").write_text(
        '[server]\nworkers = 4\nmax_headers = 7\n[[agents]]\nname = "more"\nprotocol = "zmq-v1"\n'
        'endpoint = "ipc:///run/more.sock"\n'
    )
    Path("conf.d/ignored.conf").write_text("x")
    loaded = accept(BASE + '[server]\nworkers = 3\nlisten = ["127.0.0.1:1"]\n')
    assert loaded.files == ["w.toml", "conf.d/10-a.toml", "conf.d/20-b.toml"]
    assert loaded.config.server.workers == 5
    assert loaded.config.server.listen == ("127.0.0.1:2",)
    assert loaded.config.server.max_headers == 7
    assert [agent.name for agent in loaded.config.agents] == ["waf", "more"]
    assert loaded.origins["server.workers"] == "conf.d/20-b.toml:2"
    assert loaded.origins["agents[more].protocol"] == "conf.d/10-a.toml:6"
    assert loaded.warnings == ["conf.d/10-a.toml:4: agents[more]: no route names this agent; it is never asked"]


def test_the_same_name_in_two_files_is_refused_with_both_places(folder):
    Path("conf.d").mkdir()
    Path("conf.d/a.toml").write_text(AGENT)
    assert refuse(BASE) == [
        'conf.d/a.toml:2: agents[1].name: "waf" is already the name of another entry (see w.toml:5)'
    ]


def test_a_table_in_one_file_and_a_value_in_another_is_refused(folder):
    Path("conf.d").mkdir()
    Path("conf.d/a.toml").write_text("server = 3\n")
    assert refuse(BASE + "[server]\nworkers = 3\n") == ["conf.d/a.toml:1: server: expected table, got 3"]


def test_a_broken_file_in_conf_d_is_refused(folder):
    Path("conf.d").mkdir()
    Path("conf.d/a.toml").write_text("=\n")
    Path("conf.d/b.toml").mkdir()
    problems = refuse(BASE)
    assert problems[0].startswith("conf.d/a.toml:1: not valid TOML")
    assert problems[1] == "conf.d/b.toml: cannot be read: Is a directory"


# --- environment -----------------------------------------------------------------------------------


def test_the_environment_wins_over_the_files(folder):
    environ = {
        "WARDGATE__SERVER__WORKERS": "4",
        "WARDGATE__SERVER__LISTEN": '["127.0.0.1:81", "unix:/run/x.sock"]',
        "WARDGATE__RUNTIME__DIR": "/run/other",
        "WARDGATE__AGENTS__WAF__TIMEOUT_MS": "50",
        "WARDGATE__AGENTS__WAF__CIRCUIT_BREAKER__WINDOW_SECONDS": "1.5",
        "WARDGATE__AGENTS__WAF__CONFIG": '{ a = "b" }',
        "WARDGATE__UPSTREAMS__APP__TARGETS": '[{ address = "127.0.0.1:1" }]',
        "WARDGATE__ROUTES__ALL__AGENTS_MAY_SET_HOST": "true",
        "WARDGATE__LOGGING": "{ level = 'debug' }",
        "WARDGATE__ADMIN__LISTEN": "[]",
        "OTHER__SERVER__WORKERS": "9",
    }
    loaded = accept(BASE + "[server]\nworkers = 2\n", environ)
    config = loaded.config
    assert config.server.workers == 4
    assert config.server.listen == ("127.0.0.1:81", "unix:/run/x.sock")
    assert config.runtime.dir == "/run/other"
    assert (config.agents[0].timeout_ms, config.agents[0].circuit_breaker.window_seconds) == (50, 1.5)
    assert config.agents[0].config == {"a": "b"}
    assert [target.address for target in config.upstreams[0].targets] == ["127.0.0.1:1"]
    assert config.routes[0].agents_may_set_host is True
    assert (config.logging.level, config.logging.format) == ("debug", "json")
    assert config.admin.listen == ()
    assert loaded.origins["server.workers"] == "environment WARDGATE__SERVER__WORKERS"
    assert loaded.origins["agents[waf].timeout_ms"] == "environment WARDGATE__AGENTS__WAF__TIMEOUT_MS"


def test_names_with_other_characters_and_common_beginnings_are_told_apart(folder):
    agents = AGENT.replace("waf", "a.b-c") + AGENT.replace("waf", "a.b-c__d") + AGENT.replace("waf", "x")
    environ = {
        "WARDGATE__AGENTS__A_B_C__MAX_QUEUE": "1",
        "WARDGATE__AGENTS__A_B_C__D__MAX_QUEUE": "2",
    }
    agents = agents.replace('"zmq-v2"', '"zmq-v1"\nendpoint = "ipc:///run/x"')
    config = accept(UPSTREAM + agents + ROUTE.replace("waf", "x"), environ).config
    assert [agent.max_queue for agent in config.agents] == [1, 2, 200]


def test_a_string_key_takes_the_text_as_it_is(folder):
    audit = accept(BASE, {"WARDGATE__AUDIT__PATH": "/a b"}).config.audit
    assert audit.path == "/a b"
    assert accept(BASE, {"WARDGATE__AUDIT__PATH": '"/quoted"'}).config.audit.path == "/quoted"
    assert accept(BASE, {"WARDGATE__LOGGING__LEVEL": "debug"}).config.logging.level == "debug"
    numbers = UPSTREAM.replace('"app"', '"12"') + AGENT + ROUTE.replace('"app"', '"11"')
    assert accept(numbers, {"WARDGATE__ROUTES__ALL__UPSTREAM": "12"}).config.routes[0].upstream == "12"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("SERVER__WORKRES", "4", "server.workres: unknown key; did you mean `workers`?"),
        ("SERVR__WORKERS", "4", "servr: unknown key; did you mean `server`?"),
        (
            "RUNTIME__HOP_HWM",
            "50",
            "runtime.hop_hwm: unknown key; it is `runtime.hop_unsent_bytes` now, in bytes instead of messages",
        ),
        ("SERVER__WORKERS", "many", 'server.workers: expected integer from 0 to 64, got "many"'),
        ("SERVER__WORKERS", "4\nx = 1", 'server.workers: expected integer from 0 to 64, got "4\\nx = 1"'),
        ("SERVER__WORKERS__X", "4", "server.workers: expected integer from 0 to 64, got a table"),
        ("SERVER__TLS", "4", "server.tls: is not supported yet (TLS on the listening side); leave it"),
        ("AGENTS__WFA__TIMEOUT_MS", "4", "agents: no entry of [[agents]] has the name that this variable asks for; "),
        ("AGENTS__WAF__TIMEOUT", "4", "agents[waf].timeout: unknown key; did you mean `timeout_ms`?"),
        ("AGENTS__WAF", "4", "agents: no entry of"),
        ("", "4", '"": unknown key'),
        ("AGENTS", "4", "agents: expected array of tables, got 4"),
    ],
)
def test_a_variable_that_fits_nothing_is_refused(folder, name, value, problem):
    problems = refuse(BASE, {f"WARDGATE__{name}": value})
    assert problems[0].startswith(f"environment WARDGATE__{name}: {problem}")


def test_a_variable_that_is_not_utf8_is_refused(folder):
    assert refuse(BASE, {"WARDGATE__AUDIT__PATH": "/\udcff"}) == ["environment: 'WARDGATE__AUDIT__PATH' is not UTF-8"]


# --- command line ----------------------------------------------------------------------------------


def test_the_command_line_wins_over_everything(folder):
    loaded = accept(
        BASE,
        {"WARDGATE__SERVER__WORKERS": "4"},
        overrides={"server.workers": 1, "server.listen": ("127.0.0.1:7",), "agents[waf].timeout_ms": 9},
    )
    assert loaded.config.server.workers == 1
    assert loaded.config.server.listen == ("127.0.0.1:7",)
    assert loaded.config.agents[0].timeout_ms == 9
    assert loaded.origins["server.workers"] == "command line"


def test_a_whole_table_can_come_from_the_command_line(folder):
    agents = [{"name": "demo", "protocol": "zmq-v2"}]
    routes = [{"name": "all", "upstream": "app", "filters": [{"agent": "demo"}]}]
    loaded = accept(UPSTREAM, overrides={"agents": agents, "routes": routes})
    assert loaded.config.routes[0].filters[0].agent == "demo"


@pytest.mark.parametrize("path", ["agents[nobody].timeout_ms", "", "server.workers.deeper"])
def test_an_override_that_fits_nothing_is_refused(folder, path):
    assert "command line" in refuse(BASE, overrides={path: 1})[0]


# --- whatever comes --------------------------------------------------------------------------------

_KEYS = ("server", "agents", "upstreams", "routes", "name", "targets", "filters", "config", "workers", "tls", "events")
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["waf", "zmq-v2", "/", "127.0.0.1:1", "a/b", "unix:/x", "\0", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_accepted_or_refused(folder, data):
    Path("w.toml").write_bytes(data)
    try:
        load("w.toml", {})
    except ConfigError:
        pass


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), _values, max_size=4))
def test_any_tree_is_accepted_or_refused(folder, tree):
    Path("w.toml").write_text(BASE)
    try:
        load("w.toml", {}, overrides=tree)
    except ConfigError as error:
        assert error.problems


# Lines that hold a whole key; `filters = [` of the example goes over several.
_lines = [n for n, line in enumerate(EXAMPLE.read_text().splitlines()) if re.match(r"[a-z_]+ = (?!\[$)", line)]
_odd = ['""', "-1", "[]", "{}", "nan", '"\\u0000"', "[[]]", "9e99", "[{}]", '["", "x"]', "1979-05-27", "true", '["é"]']


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_lines), st.sampled_from(_odd), max_size=5))
def test_the_example_with_any_values_replaced_is_accepted_or_refused(folder, changes):
    lines = EXAMPLE.read_text().splitlines()
    for number, value in changes.items():
        lines[number] = f"{lines[number].partition('=')[0]}= {value}"
    Path("w.toml").write_text("\n".join(lines))
    try:
        loaded = load("w.toml", {})
    except ConfigError:
        return
    compile_plans(loaded.config)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", max_size=30) | st.sampled_from(["AGENTS__WAF__CONFIG", "SERVER__LISTEN"]),
    st.text(st.characters(exclude_characters="\0"), max_size=30),
)
def test_any_variable_is_accepted_or_refused(folder, name, value):
    Path("w.toml").write_text(BASE)
    try:
        load("w.toml", {f"WARDGATE__{name}": value})
    except ConfigError:
        pass


def test_the_json_schema_knows_every_key_of_the_example():
    """No key is accepted that the schema does not list."""
    definitions = json_schema()["$defs"]
    document = tomllib.loads(EXAMPLE.read_text())
    assert set(document) <= set(definitions["Config"]["properties"])
    assert definitions["Server"]["additionalProperties"] is False
    for table, name in (("agents", "Agent"), ("routes", "Route"), ("upstreams", "Upstream")):
        for entry in document[table]:
            assert set(entry) <= set(definitions[name]["properties"])
    assert msgspec.json.encode(definitions)
