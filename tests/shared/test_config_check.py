"""shared/config/check.py: relations between keys; every row of CHECKS with what it refuses and what not."""

import os
from pathlib import Path

import pytest

from shared import defaults as d
from shared.config.check import findings
from shared.config.check_phases import plans
from shared.config.load import load
from shared.config.schema import Agent, Config, Upstream
from shared.config.schema_routes import Filter, Guardrail, Guardrails, Match, Route
from shared.config.write import write
from shared.errors import ConfigError

UPSTREAM = '[[upstreams]]\nname = "app"\ntargets = [{ address = "127.0.0.1:9000" }]\n'
ROUTE = '[[routes]]\nname = "all"\nupstream = "app"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(text):
    """(problems, warnings) without their places."""
    Path("w.toml").write_text(text)
    try:
        loaded = load("w.toml", {})
    except ConfigError as error:
        return [problem.split(": ", 1)[1] for problem in error.problems], []
    return [], [warning.split(": ", 1)[1] for warning in loaded.warnings]


def agent(name, *lines, protocol="zmq-v2"):
    return "\n".join([f'[[agents]]\nname = "{name}"\nprotocol = "{protocol}"', *lines]) + "\n"


def chain(*names):
    entries = ", ".join('{ agent = "%s" }' % name for name in names)  # noqa: UP031
    return ROUTE + f"filters = [{entries}]\n"


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (Config(upstreams=tuple(Upstream(f"u{i}", ()) for i in range(d.UPSTREAM_ROWS + 1))), ("upstreams",)),
        (
            Config(routes=tuple(Route(f"r{i}", "u", Match((f"h{i}",))) for i in range(d.ROUTE_ROWS + 1))),
            ("routes",),
        ),
        (
            Config(routes=(Route("r", "u", filters=tuple(Filter(f"a{i}") for i in range(d.FILTERS_PER_ROUTE + 1))),)),
            ("routes", 0, "filters"),
        ),
    ],
)
def test_more_than_the_segments_hold_is_refused(config, path):
    texts = [
        finding.text for finding in findings(config, lambda _: None) if finding.paths == (path,) and finding.is_error
    ]
    assert len(texts) == 1
    assert "at most" in texts[0]


def many(routes, filters, order="parallel", events=None, name="a"):
    """A configuration with long chains everywhere."""
    agents = tuple(Agent(f"{name}{i}", "zmq-v2", events=events) for i in range(filters))
    chain = tuple(Filter(item.name) for item in agents)
    made = (Route(f"r{i}", "u", Match((f"h{i}",)), order=order, filters=chain) for i in range(routes))
    return Config(agents=agents, routes=tuple(made))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        # A body chunk has a stage for each of 64: 64 plans of a route.
        (many(1_023, 64, "sequential", ("request_body_chunk",)), None),
        (many(1_024, 64, "sequential", ("request_body_chunk",)), "their chains make 65536 plans "),
        (many(1_024, 64, "parallel", ("request_body_chunk",)), None),
        (many(1_024, 64, "parallel", name="long-name-of-an-agent"), "at most 15728640 are possible"),
    ],
)
def test_plans_fit_into_their_number_and_into_a_message(config, text):
    found = list(plans(config))
    assert [finding.paths for finding in found] == ([(("routes",), ("agents",))] if text else [])
    assert not text or text in found[0].text


def test_plans_of_agents_that_do_not_exist_are_not_counted():
    config = Config(routes=(Route("r", "u", filters=(Filter("nobody"),)),))
    assert list(plans(config)) == []
    guardrails = Guardrails(prompt=Guardrail(agents=("nobody",)))
    assert list(plans(Config(routes=(Route("r", "u", guardrails=guardrails),)))) == []


def test_names_are_unique_in_their_table_only():
    assert told(UPSTREAM + ROUTE.replace("all", "app")) == ([], [])
    problems, _ = told(UPSTREAM + UPSTREAM + ROUTE)
    assert problems == ['upstreams[1].name: "app" is already the name of another entry (see w.toml:2)']


def test_what_no_route_names_is_a_warning():
    _, warnings = told(UPSTREAM + UPSTREAM.replace("app", "spare") + agent("waf") + ROUTE)
    assert warnings == [
        "upstreams[spare]: no route names this upstream",
        "agents[waf]: no route names this agent; it is never asked",
    ]


def test_no_route_is_a_warning():
    assert told("") == ([], ["routes: there are none; every request is answered 404"])


def test_a_name_that_nothing_resembles_gets_the_list_of_those_that_exist():
    problems, _ = told(UPSTREAM + agent("waf") + chain("zzz"))
    assert problems == ['routes[all].filters[0].agent: there is no agent "zzz"; there are: waf']
    problems, _ = told(UPSTREAM + chain("zzz"))
    assert problems == ['routes[all].filters[0].agent: there is no agent "zzz"; there are none']


# --- server, runtime, admin, audit ----------------------------------------------------------------


def test_the_longest_socket_in_runtime_dir_must_fit():
    room = d.SUN_PATH_MAX - len("/workers.sock")
    assert told(UPSTREAM + ROUTE + f'[runtime]\ndir = "/{"x" * (room - 1)}"\n') == ([], [])
    problems, _ = told(UPSTREAM + ROUTE + f'[runtime]\ndir = "/{"x" * room}"\n')
    assert problems == ["runtime.dir: too long by 1 bytes: a unix socket's path has at most 107"]
    problems, _ = told(UPSTREAM + ROUTE + f'[runtime]\ndir = "/{"é" * (room // 2)}"\n')
    assert "too long" in problems[0]


@pytest.mark.parametrize(
    ("server", "admin", "problem"),
    [
        ('["127.0.0.1:1", "127.0.0.1:1"]', "[]", 'server.listen[1]: "127.0.0.1:1" is listened on twice'),
        ('["127.0.0.1:1"]', '["127.0.0.1:1"]', 'admin.listen[0]: "127.0.0.1:1" is listened on twice'),
        ('["127.0.0.1:0", "127.0.0.1:0"]', '["127.0.0.1:0"]', None),
        ('["[::1]:1", "127.0.0.1:1", "unix:/a"]', "[]", None),
        ('["unix:/a", "unix:/a"]', "[]", 'server.listen[1]: "unix:/a" is listened on twice'),
        ("[]", "[]", "server.listen: expected array of strings, at least 1"),
    ],
)
def test_no_address_is_asked_for_twice(server, admin, problem):
    problems, _ = told(UPSTREAM + ROUTE + f"[server]\nlisten = {server}\n[admin]\nlisten = {admin}\n")
    assert problems == ([problem] if problem else [])


def test_an_admin_api_that_others_reach_is_a_warning():
    for address, count in (("0.0.0.0:1", 1), ("[::]:1", 1), ("[::1]:1", 0), ("localhost:1", 0), ("127.9.9.9:1", 0)):
        _, warnings = told(UPSTREAM + ROUTE + f'[admin]\nlisten = ["{address}"]\n')
        assert len(warnings) == count


def test_believing_everybody_is_a_warning_and_twice_is_an_error():
    _, warnings = told(UPSTREAM + ROUTE + '[server]\ntrusted_proxies = ["0.0.0.0/0"]\n')
    assert warnings == ['server.trusted_proxies[0]: "0.0.0.0/0" believes X-Forwarded-For of every client']
    problems, _ = told(UPSTREAM + ROUTE + '[server]\ntrusted_proxies = ["10.0.0.0/8", "10.0.0.0/8", "*"]\n')
    assert problems == [
        'server.trusted_proxies[2]: "*": expected a network like 10.0.0.0/8; everybody is "0.0.0.0/0" and "::/0"',
        'server.trusted_proxies[1]: "10.0.0.0/8" is there twice',
    ]


def test_the_file_sink_needs_a_path():
    assert told(UPSTREAM + ROUTE + '[audit]\npath = ""\nsinks = []\n') == ([], [])
    problems, _ = told(UPSTREAM + ROUTE + '[audit]\npath = ""\n')
    assert problems == ["audit.path: is needed by the file sink"]


# --- upstreams ------------------------------------------------------------------------------------


def test_targets_are_different_and_few():
    targets = '[{ address = "a:1" }, { address = "a:1" }]'
    problems, _ = told(f'[[upstreams]]\nname = "app"\ntargets = {targets}\n' + ROUTE)
    assert problems == ['upstreams[app].targets[1]: "a:1" is there twice']
    targets = ", ".join(f'{{ address = "a:{i}" }}' for i in range(1, d.TARGETS_PER_UPSTREAM + 2))
    problems, _ = told(f'[[upstreams]]\nname = "app"\ntargets = [{targets}]\n' + ROUTE)
    assert problems == ["upstreams[app].targets: there are 129, at most 128 are possible"]
    problems, _ = told('[[upstreams]]\nname = "app"\ntargets = []\n' + ROUTE)
    assert problems == ["upstreams[app].targets: expected array of tables, at least 1"]


def test_tls_that_verifies_nothing_is_a_warning():
    _, warnings = told(UPSTREAM + "tls = { verify = false }\n" + ROUTE)
    assert len(warnings) == 1
    assert told(UPSTREAM + "tls = {}\n" + ROUTE) == ([], [])


def test_tls_over_a_unix_socket_needs_a_name():
    unix = UPSTREAM.replace("127.0.0.1:9000", "unix:/run/app.sock")
    problems, _ = told(unix + "tls = {}\n" + ROUTE)
    assert problems == ["upstreams[app].tls: sni is needed: a unix socket has no name to verify"]
    assert told(unix + 'tls = { sni = "app.internal" }\n' + ROUTE) == ([], [])


# --- agents ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "line", "problem"),
    [
        ("zmq-v1", "", "endpoint: is needed with zmq-v1; "),
        ("zmq-v1", 'endpoint = "ipc:///a"\nsecret_file = "/etc/hostname"', "secret_file: has no effect with zmq-v1; "),
        ("zmq-v1", 'endpoint = "ipc:///a"\nallow_users = ["root"]', "allow_users: has no effect with zmq-v1; "),
        ("zmq-v2", 'endpoint = "ipc:///a"', "endpoint: has no effect with zmq-v2, where the agent dials in; "),
        ("zmq-v2", "connections = 2", "connections: has no effect with zmq-v2; "),
        ("zmq-v2", "events = []", "events: an agent without events is never asked; "),
        ("zmq-v2", "allow_users = []", "allow_users: nobody could register as this agent; "),
        ("zmq-v2", 'allow_users = ["root", "root"]', 'allow_users[1]: "root" is there twice'),
        ("zmq-v2", 'events = ["request_headers", "request_headers"]', 'events[1]: "request_headers" is there twice'),
    ],
)
def test_keys_stand_where_they_act(protocol, line, problem):
    problems, _ = told(UPSTREAM + agent("waf", line, protocol=protocol) + chain("waf"))
    assert len(problems) == 1
    assert problems[0].startswith(f"agents[waf].{problem}")


@pytest.mark.parametrize(
    ("first", "second", "lacking"),
    [
        ("", "", ["a", "b"]),  # both agentd's own user
        ("", 'allow_users = ["root"]', []),
        ('allow_users = ["x"]', 'allow_users = ["y"]', []),
        ('allow_users = ["x"]', 'allow_users = ["y", "x"]', ["a", "b"]),
        ('allow_users = ["x"]\nsecret_file = "{secret}"', 'allow_users = ["x"]', ["b"]),
        ('secret_file = "{secret}"', 'secret_file = "{secret}"', []),
    ],
)
def test_agents_that_one_user_may_register_need_secrets(first, second, lacking):
    Path("secret").write_bytes(b"s")
    os.chmod("secret", 0o600)
    lines = [line.format(secret=Path("secret").absolute()) for line in (first, second)]
    problems, _ = told(UPSTREAM + agent("a", lines[0]) + agent("b", lines[1]) + chain("a", "b"))
    assert [problem.split(":")[0] for problem in problems] == [f"agents[{name}].secret_file" for name in lacking]
    # zmq-v1 agents register nothing, so they share a user with nobody.
    v1 = agent("b", 'endpoint = "ipc:///b"', protocol="zmq-v1")
    assert told(UPSTREAM + agent("a") + v1 + chain("a", "b"))[0] == []


def test_two_names_of_one_user_are_one_user():
    config = load_config(agent("a", 'allow_users = ["x"]') + agent("b", 'allow_users = ["y"]') + chain("a", "b"))
    errors = [finding for finding in findings(config, lambda _: 7) if finding.is_error]
    assert [finding.paths[0] for finding in errors] == [("agents", 0, "secret_file"), ("agents", 1, "secret_file")]
    assert not [finding for finding in findings(config, {"x": 7, "y": 8}.get) if finding.is_error]


def load_config(text):
    Path("w.toml").write_text(UPSTREAM + text)
    return load("w.toml", {}).config


# --- routes ---------------------------------------------------------------------------------------


def test_a_chain_asks_each_agent_once():
    problems, _ = told(UPSTREAM + agent("waf") + chain("waf", "waf"))
    assert problems == ['routes[all].filters[1].agent: "waf" is already in this chain']


def test_an_observers_failure_means_nothing():
    filters = 'filters = [{ agent = "waf", mode = "observe", failure_mode = "closed" }]\n'
    problems, _ = told(UPSTREAM + agent("waf") + ROUTE + filters)
    assert problems == ["routes[all].filters[0].failure_mode: has no effect on an observer; leave it out"]


# --- bodies, WebSocket, guardrails ----------------------------------------------------------------

SEES = 'events = ["request_headers", "{}"]'
NO_WEBSOCKET = "websocket = { enabled = false }\n"


@pytest.mark.parametrize(("protocol", "most"), [("zmq-v2", 15 * 1024 * 1024), ("zmq-v1", 15 * 1024 * 1024 // 4 * 3)])
@pytest.mark.parametrize("side", ["request", "response"])
def test_a_buffered_body_fits_into_a_message(protocol, most, side):
    def with_limit(limit, mode):
        lines = [SEES.format(f"{side}_body_chunk"), f"max_{side}_body_bytes = {limit}"]
        if protocol == "zmq-v1":
            lines.append('endpoint = "ipc:///a"')
        route = chain("waf") + NO_WEBSOCKET + f'{side}_body = "{mode}"\n'
        return told(UPSTREAM + agent("waf", *lines, protocol=protocol) + route)

    assert with_limit(most, "buffer") == ([], [])
    assert with_limit(most + 1, "stream") == ([], [])
    problems, _ = with_limit(most + 1, "buffer")
    assert problems == [
        f'routes[all].{side}_body: a message to agent "waf" holds {most} bytes, and its max_{side}_body_bytes is more; '
        f'`{side}_body = "stream"`, or a lower max_{side}_body_bytes'
    ]


def test_a_limit_for_bodies_that_an_agent_is_not_shown_matters_to_nobody():
    lines = ('events = ["request_headers"]', "max_request_body_bytes = 1000000000")
    assert told(UPSTREAM + agent("waf", *lines) + chain("waf")) == ([], [])


def test_decoding_for_nobody_is_a_warning():
    text = "routes[all].decode_bodies: no agent that decides on this route sees bodies"
    decode = "decode_bodies = true\n"
    observer = ROUTE + 'filters = [{ agent = "waf", mode = "observe" }]\n'
    for route in (chain("waf"), observer):
        _, warnings = told(UPSTREAM + agent("waf", 'events = ["request_headers"]') + route + decode)
        assert warnings == [text]
    assert told(UPSTREAM + agent("waf") + observer + decode)[1] == [text]
    for events in ("request_body_chunk", "response_body_chunk"):
        lines = SEES.format(events)
        assert told(UPSTREAM + agent("waf", lines) + chain("waf") + NO_WEBSOCKET + decode) == ([], [])
    assert told(UPSTREAM + agent("waf") + chain("waf") + decode) == ([], [])


def test_bodies_that_are_looked_at_beside_a_websocket_that_is_not_is_a_warning():
    sees = SEES.format("request_body_chunk")
    _, warnings = told(UPSTREAM + agent("waf", sees) + chain("waf"))
    assert warnings == [
        "routes[all].websocket: agents see the bodies of this route, but none of them its WebSocket messages, which "
        "pass; `websocket = { enabled = false }`, or an agent with the event websocket_frame"
    ]
    frames = agent("ws", 'events = ["websocket_frame"]', 'allow_users = ["root"]')
    for agents, route in (
        (agent("waf", sees), chain("waf") + NO_WEBSOCKET),
        (agent("waf", sees) + frames, chain("waf", "ws")),
        (agent("waf"), chain("waf")),
        (agent("waf", 'events = ["request_headers"]'), chain("waf")),
    ):
        assert told(UPSTREAM + agents + route) == ([], [])
    observed = ROUTE + 'filters = [{ agent = "waf" }, { agent = "ws", mode = "observe" }]\n'
    assert len(told(UPSTREAM + agent("waf", sees) + frames + observed)[1]) == 1


def test_guardrails_beside_a_websocket_that_nobody_looks_at_is_a_warning():
    guard = agent("guard", 'events = ["guardrail_inspect"]', 'allow_users = ["root"]')
    inspect = 'guardrails = { prompt = { agents = ["guard"] } }\n'
    _, warnings = told(UPSTREAM + guard + ROUTE + inspect)
    assert warnings == [
        "routes[all].websocket: guardrails inspect what is sent by HTTP, and not a WebSocket's messages, which pass; "
        "`websocket = { enabled = false }`"
    ]
    assert told(UPSTREAM + guard + ROUTE + NO_WEBSOCKET + inspect) == ([], [])
    frames = agent("ws", 'events = ["websocket_frame"]')
    assert told(UPSTREAM + guard + frames + chain("ws") + inspect) == ([], [])


def test_a_websocket_message_fits_into_one_to_an_agent():
    limit = f"websocket = {{ max_message_bytes = {15 * 1024 * 1024 + 1} }}\n"
    problems, _ = told(UPSTREAM + agent("waf") + chain("waf") + limit)
    assert problems == ['routes[all].websocket.max_message_bytes: a message to agent "waf" holds 15728640 bytes']
    assert told(UPSTREAM + agent("waf", 'events = ["request_headers"]') + chain("waf") + limit) == ([], [])


def test_a_filter_that_asks_about_nothing_is_a_warning():
    guard = agent("guard", 'events = ["guardrail_inspect"]')
    inspect = 'guardrails = { prompt = { agents = ["guard"] } }\n'
    _, warnings = told(UPSTREAM + guard + chain("guard") + NO_WEBSOCKET + inspect)
    assert len(warnings) == 1
    assert warnings[0].startswith('routes[all].filters[0].agent: agent "guard" is asked about guardrails alone')
    assert told(UPSTREAM + guard + ROUTE + NO_WEBSOCKET + inspect) == ([], [])


@pytest.mark.parametrize(
    ("guardrails", "problem"),
    [
        ("{}", "guardrails: needs `prompt` or `completion`"),
        ('{ prompt = { agents = ["nobody"] } }', 'guardrails.prompt.agents[0]: there is no agent "nobody"; '),
        ('{ prompt = { agents = ["gaurd"] } }', 'did you mean "guard"?'),
        ('{ prompt = { agents = ["guard", "guard"] } }', 'guardrails.prompt.agents[1]: "guard" is there twice'),
        ("{ completion = { agents = [] } }", "guardrails.completion.agents: expected array of strings, at least 1"),
        ("{ completion = {} }", "guardrails.completion.agents: is missing"),
        ('{ prompt = { agents = ["guard"], inspect = [] } }', "guardrails.prompt.inspect: expected array of "),
        (
            '{ prompt = { agents = ["guard"], inspect = ["pii_detection", "pii_detection"] } }',
            'guardrails.prompt.inspect[1]: "pii_detection" is there twice',
        ),
        (
            '{ prompt = { agents = ["guard", "waf"] } }',
            'guardrails.prompt.agents[1]: agent "waf" does not list the event guardrail_inspect',
        ),
        (
            '{ prompt = { agents = ["guard"], action = "redcat" } }',
            'expected "block", "redact", "log" or "ignore", got "redcat"; did you mean "redact"?',
        ),
        (
            '{ prompt = { agents = ["guard"], categories = { email = "lgo" } } }',
            'guardrails.prompt.categories.email: expected "block", "redact", "log" or "ignore", got "lgo"; '
            'did you mean "log"?',
        ),
        (
            '{ prompt = { agents = ["guard"], categories = { email = 1 } } }',
            "guardrails.prompt.categories.email: expected",
        ),
        (
            '{ prompt = { agents = ["guard"], categories = ["email"] } }',
            'guardrails.prompt.categories: expected table of "block", "redact", "log" or "ignore", got an array',
        ),
        (
            '{ prompt = { agents = ["guard"], categories = { "a\\u0007" = "log" } } }',
            "control characters are not allowed",
        ),
        ('{ prompt = { agents = ["guard"] }, max_text_bytes = 2097153 }', "integer from 1024 to 2097152"),
        ('{ prompt = { agents = ["guard"] }, window = 1 }', "guardrails.window: unknown key"),
    ],
)
def test_guardrails_inspect_something_and_know_their_agents(guardrails, problem):
    agents = agent("guard", 'allow_users = ["root"]') + agent("waf", 'events = ["request_headers"]')
    problems, _ = told(UPSTREAM + agents + chain("waf") + f"guardrails = {guardrails}\n")
    assert len(problems) == 1
    assert problem in problems[0]


def test_guardrails_as_they_should_be():
    guardrails = (
        "guardrails = { prompt = { agents = ['guard'], min_severity = 'high', categories = { email = 'log', "
        "'a b' = 'redact' } }, completion = { agents = ['guard'], inspect = ['pii_detection'] } }\n"
    )
    text = UPSTREAM + agent("guard") + ROUTE + NO_WEBSOCKET + guardrails
    assert told(text) == ([], [])
    Path("w.toml").write_text(text)
    loaded = load("w.toml", {})
    made = loaded.config.routes[0].guardrails
    assert made.prompt.categories == {"email": "log", "a b": "redact"}
    assert made.completion.categories == {}
    assert loaded.origins["routes[all].guardrails.prompt.categories"] == "w.toml:11"
    Path("again.toml").write_text(write(loaded.config))
    assert load("again.toml", {}).digest == loaded.digest


def test_no_more_inspect_a_text_than_a_mask_has_bits():
    names = tuple(f"a{i}" for i in range(d.FILTERS_PER_ROUTE + 1))
    agents = tuple(Agent(name, "zmq-v2") for name in names)
    route = Route("r", "u", guardrails=Guardrails(prompt=Guardrail(agents=names)))
    found = findings(Config(agents=agents, routes=(route,)), lambda _: None)
    paths = [finding.paths[0] for finding in found if finding.text == "there are 65, at most 64 are possible"]
    assert paths == [("routes", 0, "guardrails", "prompt", "agents")]


def test_fallback_upstreams_are_others_that_exist():
    spare = UPSTREAM + UPSTREAM.replace("app", "spare")
    assert told(spare + ROUTE + 'fallback_upstreams = ["spare"]\n') == ([], [])
    for names, problem in (
        ('["spar"]', '[0]: there is no upstream "spar"; did you mean "spare"?'),
        ('["spare", "spare"]', '[1]: "spare" is there twice'),
        ('["spare", "app"]', '[1]: "app" is the upstream that it stands in for'),
    ):
        problems, _ = told(spare + ROUTE + f"fallback_upstreams = {names}\n")
        assert problems == [f"routes[all].fallback_upstreams{problem}"]


def routes(*matches):
    return UPSTREAM + "".join(
        f'[[routes]]\nname = "r{i}"\nupstream = "app"\nmatch = {m}\n' for i, m in enumerate(matches)
    )


@pytest.mark.parametrize(
    ("one", "two", "is_tie"),
    [
        ("{}", "{}", True),
        ("{}", '{ path_prefix = "/" }', True),
        ('{ path_prefix = "/a" }', '{ path_prefix = "/a/" }', False),
        ('{ hosts = ["a"] }', '{ hosts = ["b", "a"] }', True),
        ('{ hosts = ["a"] }', '{ hosts = ["*.a"] }', False),
        ('{ hosts = ["*.a"] }', '{ hosts = ["*.a"] }', True),
        ('{ hosts = ["*.a"] }', '{ hosts = ["*.b.a"] }', False),
        ('{ hosts = ["a"] }', "{}", False),
        # One winner per host and prefix: methods do not tell two of them apart.
        ('{ methods = ["GET"] }', '{ methods = ["POST"] }', True),
    ],
)
def test_two_equally_specific_routes_are_refused(one, two, is_tie):
    problems, warnings = told(routes(one, two))
    assert len(problems) == (1 if is_tie else 0)
    assert warnings == []
    if is_tie:
        assert 'routes[r1].match: as specific as route "r0": ' in problems[0]
        assert "(see w.toml:7)" in problems[0]


def test_a_route_that_another_keeps_everything_from_is_a_warning():
    _, warnings = told(routes("{}", '{ methods = ["GET"] }'))
    assert warnings == [
        'routes[r0].match: is never reached: route "r1" takes the same host and prefix and answers other methods 405'
    ]
    assert told(routes('{ hosts = ["a", "b"] }', '{ hosts = ["a"], methods = ["GET"] }')) == ([], [])


def test_lists_in_a_match_hold_each_entry_once():
    problems, _ = told(routes('{ hosts = ["a", "a"], methods = ["GET", "GET"] }'))
    assert problems == [
        'routes[r0].match.hosts[1]: "a" is there twice',
        'routes[r0].match.methods[1]: "GET" is there twice',
    ]
