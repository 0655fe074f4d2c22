"""wardgate_agents/auth: credentials of a request, API keys, passwords, and the commands that make both."""

import base64
import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.tests.makers import cheap_hash
from wardgate_agent import Headers
from wardgate_agents.auth import agent, command
from wardgate_agents.auth.api_keys import ApiKeys, hash_key
from wardgate_agents.auth.credentials import ApiKey, Basic, Bearer, Unusable, credential_of
from wardgate_agents.auth.passwords import Passwords, hash_password, matches, parse_hash
from wardgate_agents.auth.recent import Recent


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


# --- what a request offers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "keys", "expected"),
    [
        ([], [], None),
        (["Bearer a.b.c"], [], Bearer("a.b.c")),
        (["bEARER  a.b.c "], [], Bearer("a.b.c")),
        ([basic("alice:pass:word")], [], Basic("alice", "pass:word")),
        ([basic("älice:wörd")], [], Basic("älice", "wörd")),
        ([basic("alice:")], [], Basic("alice", "")),
        ([], ["k"], ApiKey("k")),
        ([basic("alice")], [], Unusable("basic", "malformed")),
        ([basic(":x")], [], Unusable("basic", "malformed")),
        ([basic(b"\xff:x")], [], Unusable("basic", "malformed")),
        ([basic("a\x00b:x")], [], Unusable("basic", "malformed")),
        (["Basic !!!!"], [], Unusable("basic", "malformed")),
        (["Basic"], [], Unusable("basic", "malformed")),
        ([""], [], Unusable("", "malformed")),
        (["Digest x=y"], [], Unusable("digest", "unknown_scheme")),
        (["Bearer " + "x" * 9000], [], Unusable("bearer", "malformed")),
        ([], [""], Unusable("apikey", "malformed")),
        (["Bearer a", "Bearer a"], [], Unusable("", "several_credentials", is_ambiguous=True)),
        (["Bearer a"], ["k"], Unusable("", "several_credentials", is_ambiguous=True)),
        ([], ["k", "k"], Unusable("", "several_credentials", is_ambiguous=True)),
    ],
)
def test_credentials(authorization: list[str], keys: list[str], expected: object) -> None:
    """One, none, or nothing that is guessed at."""
    headers = {"authorization": authorization, "x-api-key": keys}
    assert credential_of(Headers({name: value for name, value in headers.items() if value}), "X-API-Key") == expected


def test_a_header_that_is_not_asked_for_is_no_credential() -> None:
    assert credential_of(Headers({"x-api-key": ["k"]}), None) is None


@given(st.text(max_size=60), st.sampled_from(["", "Basic ", "Bearer ", "basic "]))
def test_any_text_is_a_credential_or_unusable(text: str, scheme: str) -> None:
    assert credential_of(Headers({"authorization": [scheme + text]}), "x") is not None


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=":"), min_size=1), st.text(max_size=20)
)
def test_a_name_and_password_come_out_as_they_went_in(user: str, password: str) -> None:
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in password):
        return
    assert credential_of(Headers({"authorization": [basic(f"{user}:{password}")]}), None) == Basic(user, password)


# --- API keys ---------------------------------------------------------------------------------------------


def test_whose_key_it_is() -> None:
    """A name may have two, so that one can follow the other."""
    keys = ApiKeys([(1, f"ci {hash_key('one')}"), (2, f"ci  {hash_key('two')}"), (3, f"shop {hash_key('three')}")])
    assert [keys.owner(key) for key in ("one", "two", "three", "four", "")] == ["ci", "ci", "shop", None, None]
    assert keys.owner(hash_key("one")) is None
    assert len(keys) == 3


@pytest.mark.parametrize(
    "lines",
    [["ci"], ["ci abc"], [f"a b {hash_key('x')}"], [hash_key("x")], ["ci sha256:" + "A" * 64]],
)
def test_a_line_of_keys_that_is_none(lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^7: not `NAME sha256:HEX`"):
        ApiKeys([(7, line) for line in lines])


def test_one_key_for_two_names() -> None:
    with pytest.raises(ValueError, match=r"^2: a key that stands in the file already"):
        ApiKeys([(1, f"a {hash_key('x')}"), (2, f"b {hash_key('x')}")])


# --- passwords --------------------------------------------------------------------------------------------


def test_a_password_and_its_hash() -> None:
    hashed = cheap_hash("secret")
    assert matches("secret", hashed)
    assert not matches("Secret", hashed)
    assert parse_hash(str(hashed)) == hashed
    assert str(hash_password("secret", ln=13, p=1)) != str(hashed), "salted"


def test_the_default_is_worth_its_name() -> None:
    """N * r * p of OWASP's equivalents; slow, so it is made once."""
    hashed = hash_password("x")
    assert (hashed.ln, hashed.r, hashed.p, len(hashed.salt), len(hashed.digest)) == (15, 8, 3, 16, 32)
    assert matches("x", parse_hash(str(hashed)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice", "not `USER:"),
        (":$scrypt$x", "not `USER:"),
        ("alice:secret", "make one with: wardgate-agent-auth hash-password"),
        ("alice:$2y$05$abcdefghijklmnopqrstuv", "make one with"),
        (f"alice:{str(cheap_hash('x')).replace('ln=13', 'ln=10')}", "too cheap"),
        (f"alice:{str(cheap_hash('x')).replace('ln=13', 'ln=20')}", "too dear"),
        (f"alice:{str(cheap_hash('x')).replace('p=1', 'p=99')}", "too dear"),
        (f"alice:{str(cheap_hash('x')).replace('r=8', 'r=0')}", "too cheap"),
    ],
)
def test_a_line_of_passwords_that_is_none(text: str, says: str) -> None:
    """With its number, and never with what stands in it as a password."""
    with pytest.raises(ValueError, match=r"^3: ") as caught:
        Passwords([(3, text)])
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_name_twice() -> None:
    with pytest.raises(ValueError, match="2: 'a' stands in the file already"):
        Passwords([(1, f"a:{cheap_hash('x')}"), (2, f"a:{cheap_hash('y')}")])


@given(
    st.text(max_size=80)
    | st.from_regex(r"\$scrypt\$ln=\d\d?,r=\d,p=\d\$[A-Za-z0-9+/]{8,12}\$[A-Za-z0-9+/]{20,24}", fullmatch=True)
)
def test_any_text_is_a_hash_or_a_message(text: str) -> None:
    """What is taken is bounded: it can be compared with without taking the machine."""
    try:
        hashed = parse_hash(text)
    except ValueError:
        return
    assert 128 * 2**hashed.ln * hashed.r <= 128 * 1024 * 1024


def test_a_name_that_is_not_there_costs_the_same() -> None:
    assert Passwords([(1, f"a:{cheap_hash('x')}")]).decoy()[:3] == cheap_hash("x")[:3]


# --- what is remembered -----------------------------------------------------------------------------------


def test_recent_is_bounded_and_forgets() -> None:
    now = 0.0
    recent: Recent[str] = Recent(2, lambda: now)
    recent.put(b"a", "A", 10)
    recent.put(b"b", "B", 5)
    assert recent.get(b"a") == "A"
    recent.put(b"c", "C", 10)
    assert recent.get(b"b") is None, "the longest unused went"
    now = 10.0
    assert recent.get(b"a") is None
    assert len(recent) == 1
    none: Recent[str] = Recent(0, lambda: now)
    none.put(b"a", "A", 99)
    assert none.get(b"a") is None


# --- the commands -----------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, stdin: str, *argv: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    monkeypatch.setattr(sys, "argv", ["wardgate-agent-auth", *argv])
    return agent.main()


def test_hash_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints is a line of the file."""
    assert run(monkeypatch, "geheim\n", "hash-password", "alice", "--ln", "13") == 0
    hashed = Passwords([(1, capsys.readouterr().out.strip())]).find("alice")
    assert hashed is not None
    assert matches("geheim", hashed)


def test_hash_key_makes_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The line on standard output; the key itself beside it, for a person."""
    assert run(monkeypatch, "", "hash-key", "ci") == 0
    said = capsys.readouterr()
    key = said.err.split()[-1]
    assert ApiKeys([(1, said.out.strip())]).owner(key) == "ci"
    assert len(key) > 40
    assert key not in said.out


def test_hash_key_takes_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "x" * 32 + "\n", "hash-key", "ci", "--stdin") == 0
    assert ApiKeys([(1, capsys.readouterr().out.strip())]).owner("x" * 32) == "ci"


@pytest.mark.parametrize(
    ("stdin", "argv", "says"),
    [
        ("\n", ["hash-password", "alice"], "an empty password"),
        ("x\n", ["hash-password", "al:ice"], "is no user name"),
        ("x\n", ["hash-password", "alice", "--ln", "9"], "too cheap"),
        ("x\n", ["hash-password", "alice", "--ln", "99"], "not from 1 to 20"),
        ("short\n", ["hash-key", "ci", "--stdin"], "can be guessed"),
        ("", ["hash-key", "c i"], "not `NAME"),
    ],
)
def test_commands_that_refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stdin: str, argv: list[str], says: str
) -> None:
    assert run(monkeypatch, stdin, *argv) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def test_a_password_typed_wrongly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal it is asked for twice."""
    typed = iter(["one", "two"])
    monkeypatch.setattr(command.getpass, "getpass", lambda prompt: next(typed))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert command.main(["hash-password", "alice"]) == 2
    assert "two different ones" in capsys.readouterr().err
