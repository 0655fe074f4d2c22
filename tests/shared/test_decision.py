"""Merging, failure modes and screening: an allow never outweighs a failure, framing is never an agent's."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.decision import (
    ALLOW,
    PROTECTED,
    Answer,
    ChunkAction,
    ChunkVerdict,
    Decision,
    FailureMode,
    Finding,
    HeaderOp,
    Inspection,
    OpAction,
    Outcome,
    Verb,
    block,
    challenge,
    is_header_name,
    is_header_value,
    merge,
    on_failure,
    redirect,
    screen_op,
)
from shared.events import EventKind

HEADERS = EventKind.REQUEST_HEADERS
OP = HeaderOp(OpAction.SET, "x-a", "1")
FAILURES = [outcome for outcome in Outcome if outcome not in (Outcome.DECISION, Outcome.CANCELLED)]


def said(verb: Verb, name: str = "a", status: int = 400) -> Answer:
    return Answer(Outcome.DECISION, Decision(verb, status, agent=name, reason=verb.word))


def merged(*answers: Answer | None, modes: list[FailureMode] | None = None) -> Decision:
    names = [chr(ord("a") + i) for i in range(len(answers))]
    return merge(answers, modes or ["closed"] * len(answers), names, HEADERS)


class TestOnFailure:
    @pytest.mark.parametrize("outcome", FAILURES)
    def test_open_skips(self, outcome: Outcome) -> None:
        """Whatever failed, a fail-open agent is left out."""
        assert on_failure(outcome, "open", HEADERS, "waf") is None

    @pytest.mark.parametrize(
        ("outcome", "kind", "status"),
        [
            (Outcome.TIMEOUT, HEADERS, 504),
            (Outcome.BREAKER_OPEN, HEADERS, 503),
            (Outcome.QUEUE_FULL, HEADERS, 503),
            (Outcome.DISCONNECTED, HEADERS, 503),
            (Outcome.MALFORMED, HEADERS, 503),
            (Outcome.AGENT_ERROR, EventKind.RESPONSE_HEADERS, 503),
            (Outcome.BODY_TOO_LARGE, EventKind.REQUEST_BODY_CHUNK, 413),
            (Outcome.BODY_TOO_LARGE, EventKind.RESPONSE_BODY_CHUNK, 502),
        ],
    )
    def test_closed_refuses(self, outcome: Outcome, kind: EventKind, status: int) -> None:
        """504 for a timeout, 413 and 502 for bodies, 503 for the rest; who and why are named."""
        decision = on_failure(outcome, "closed", kind, "waf")
        assert decision is not None
        assert (decision.verb, decision.status, decision.agent) == (Verb.FAIL, status, "waf")
        assert decision.reason == outcome.word
        assert b"waf" not in decision.body


class TestMerge:
    def test_all_allow(self) -> None:
        """Nobody says anything special: the shared allow itself."""
        assert merged(said(Verb.ALLOW), said(Verb.ALLOW)) is ALLOW
        assert merged() is ALLOW

    def test_precedence(self) -> None:
        """block > challenge > redirect > fail-closed failure > allow, in whatever order they stand."""
        ladder = [
            Answer(Outcome.DECISION, ALLOW),
            Answer(Outcome.TIMEOUT),
            said(Verb.REDIRECT),
            said(Verb.CHALLENGE),
            said(Verb.BLOCK),
        ]
        verbs = [Verb.ALLOW, Verb.FAIL, Verb.REDIRECT, Verb.CHALLENGE, Verb.BLOCK]
        for size in range(1, 6):
            for order in permutations(range(size)):
                assert merged(*[ladder[i] for i in order]).verb is verbs[size - 1]

    def test_ties_by_chain_order(self) -> None:
        """The first of two equal refusals stands."""
        assert merged(said(Verb.BLOCK, "a"), said(Verb.BLOCK, "b")).agent == "a"
        assert merged(Answer(Outcome.TIMEOUT), Answer(Outcome.MALFORMED)).reason == "timeout"

    def test_open_failures_are_as_if_not_asked(self) -> None:
        """They neither refuse nor hide another's refusal."""
        assert merged(Answer(Outcome.TIMEOUT), said(Verb.ALLOW), modes=["open", "closed"]) is ALLOW
        assert merged(Answer(Outcome.TIMEOUT), said(Verb.BLOCK), modes=["open", "closed"]).verb is Verb.BLOCK

    def test_operations_are_joined_in_chain_order(self) -> None:
        """Only where all allow; request and response operations apart."""
        first, second = HeaderOp(OpAction.ADD, "x", "1"), HeaderOp(OpAction.ADD, "x", "2")
        decision = merged(
            Answer(Outcome.DECISION, Decision(request_ops=(first,), response_ops=(second,))),
            None,
            Answer(Outcome.DECISION, Decision(request_ops=(second,))),
        )
        assert decision.verb is Verb.ALLOW
        assert decision.request_ops == (first, second)
        assert decision.response_ops == (second,)

    def test_a_refusal_carries_its_own_alone(self) -> None:
        """What others would have changed is not applied to it."""
        allow = Answer(Outcome.DECISION, Decision(request_ops=(OP,), response_ops=(OP,)))
        own = HeaderOp(OpAction.SET, "x-b", "1")
        refusal = Decision(Verb.BLOCK, 403, response_ops=(own,), agent="b", reason="block")
        assert merged(allow, Answer(Outcome.DECISION, refusal), allow) == refusal

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([None, Verb.ALLOW, Verb.REDIRECT, Verb.CHALLENGE, Verb.BLOCK, *FAILURES]),
                st.sampled_from(["open", "closed"]),
            ),
            max_size=6,
        )
    )
    def test_an_allow_never_outweighs_a_closed_failure(
        self, chain: "list[tuple[Verb | Outcome | None, FailureMode]]"
    ) -> None:
        """The result is the strongest of what was said; allow only if nobody refused and nothing closed failed."""
        answers: list[Answer | None] = []
        strengths = [Verb.ALLOW]
        for what, mode in chain:
            if what is None:
                answers.append(None)
            elif isinstance(what, Verb):
                answers.append(said(what))
                strengths.append(what)
            else:
                answers.append(Answer(what))
                if mode == "closed":
                    strengths.append(Verb.FAIL)
        assert merged(*answers, modes=[mode for _, mode in chain]).verb is max(strengths)


CHUNK = EventKind.REQUEST_BODY_CHUNK
DROP = Decision(chunk=ChunkVerdict(ChunkAction.DROP, 0))
HOLD = Decision(chunk=ChunkVerdict(hold=1))
SKIP = Decision(chunk=ChunkVerdict(skip=1))


def replace(body: bytes, skip: int = 0) -> Decision:
    return Decision(body=body, chunk=ChunkVerdict(ChunkAction.REPLACE, 0, 0, skip))


def of_chunk(*said: Decision | Outcome | None, modes: list[FailureMode] | None = None) -> Decision:
    """What the agents a, b, c ... say of one chunk, each as if it were alone."""
    answers = [
        None if one is None else Answer(one) if isinstance(one, Outcome) else Answer(Outcome.DECISION, one)
        for one in said
    ]
    names = [chr(ord("a") + i) for i in range(len(said))]
    return merge(answers, modes or ["closed"] * len(said), names, CHUNK)


class TestMergeOfChunks:
    def test_all_let_it_pass(self) -> None:
        """The shared allow itself."""
        assert of_chunk(ALLOW, ALLOW, None) is ALLOW

    def test_masks_name_agents_by_their_place(self) -> None:
        """Holding and skipping add up."""
        assert of_chunk(ALLOW, HOLD, SKIP, None, HOLD).chunk == ChunkVerdict(hold=0b10010, skip=0b00100)
        last = of_chunk(*[None] * 63, HOLD).chunk
        assert last is not None
        assert last.hold == 1 << 63

    def test_the_editor_is_named_by_its_place(self) -> None:
        """With its replacement; the others' masks beside it."""
        decision = of_chunk(SKIP, HOLD, replace(b"new", skip=1), ALLOW)
        assert decision == Decision(body=b"new", chunk=ChunkVerdict(ChunkAction.REPLACE, 2, 0b010, 0b101))
        assert of_chunk(ALLOW, DROP).chunk == ChunkVerdict(ChunkAction.DROP, 1)

    @pytest.mark.parametrize("second", [DROP, replace(b"second", skip=1)])
    @pytest.mark.parametrize("first", [DROP, replace(b"first")])
    def test_a_second_edit_of_a_closed_agent_refuses(self, first: Decision, second: Decision) -> None:
        """It is that agent's Malformed, and nobody may pass where a closed one failed."""
        decision = of_chunk(first, ALLOW, second)
        assert (decision.verb, decision.status, decision.agent) == (Verb.FAIL, 503, "c")
        assert (decision.reason, decision.chunk) == ("malformed", None)

    def test_a_second_edit_of_an_open_agent_is_left_out(self) -> None:
        """With all that it said: its operations and its masks too."""
        second = Decision(body=b"second", request_ops=(OP,), chunk=ChunkVerdict(ChunkAction.REPLACE, 0, 0, 1))
        decision = of_chunk(replace(b"first"), second, SKIP, modes=["closed", "open", "closed"])
        assert decision == Decision(body=b"first", chunk=ChunkVerdict(ChunkAction.REPLACE, 0, 0, 0b100))

    def test_refusals_outweigh_a_second_edit(self) -> None:
        """In whatever order they stand."""
        block = Decision(Verb.BLOCK, 403, agent="x", reason="block")
        for said_all in permutations((DROP, DROP, block)):
            assert of_chunk(*said_all) == block

    def test_a_failure_outweighs_edits(self) -> None:
        """And an open one does not count."""
        assert of_chunk(DROP, Outcome.TIMEOUT).status == 504
        assert of_chunk(DROP, Outcome.TIMEOUT, modes=["closed", "open"]).chunk == ChunkVerdict(ChunkAction.DROP, 0)

    def test_operations_beside_a_chunk(self) -> None:
        """Joined as elsewhere."""
        decision = of_chunk(Decision(request_ops=(OP,)), DROP, Decision(response_ops=(OP,)))
        assert (decision.request_ops, decision.response_ops) == ((OP,), (OP,))
        assert decision.chunk == ChunkVerdict(ChunkAction.DROP, 1)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([ALLOW, DROP, HOLD, SKIP, replace(b"x"), Outcome.TIMEOUT, None]),
                st.sampled_from(["open", "closed"]),
            ),
            max_size=6,
        )
    )
    def test_any_chain(self, chain: "list[tuple[Decision | Outcome | None, FailureMode]]") -> None:
        """Passing means: no closed one failed, at most one edited, and the masks are those who said so."""
        decision = of_chunk(*[what for what, _ in chain], modes=[mode for _, mode in chain])
        edits = [
            i
            for i, (what, _) in enumerate(chain)
            if isinstance(what, Decision) and what.chunk and what.chunk.editor == 0
        ]
        failed = any(what is Outcome.TIMEOUT and mode == "closed" for what, mode in chain)
        if failed or any(chain[i][1] == "closed" for i in edits[1:]):
            assert decision.verb is Verb.FAIL
            return
        assert decision.verb is Verb.ALLOW
        chunk = decision.chunk or ChunkVerdict()
        assert chunk.editor == (edits[0] if edits else -1)
        assert chunk.hold == sum(1 << i for i, (what, _) in enumerate(chain) if what is HOLD)
        assert chunk.skip == sum(1 << i for i, (what, _) in enumerate(chain) if what is SKIP)


def test_findings_are_joined_in_chain_order() -> None:
    """Everybody's, who answered; a refusal stands alone."""
    found = [Inspection(name, True, 0.5, (Finding("email", 2),)) for name in "ab"]
    answers = [Answer(Outcome.DECISION, Decision(inspections=(one,))) for one in found]
    kind = EventKind.GUARDRAIL_INSPECT
    assert merge(answers, ["closed"] * 2, ["a", "b"], kind).inspections == tuple(found)
    failed = merge([*answers, Answer(Outcome.TIMEOUT)], ["closed"] * 3, ["a", "b", "c"], kind)
    assert (failed.status, failed.inspections) == (504, ())


class TestScreening:
    @pytest.mark.parametrize("name", sorted(PROTECTED))
    @pytest.mark.parametrize("action", list(OpAction))
    def test_framing_is_refused(self, name: str, action: OpAction) -> None:
        """In any spelling, whatever the action, also where Host may be set."""
        for spelling in (name, name.upper(), name.title()):
            assert screen_op(action, spelling, "1", True) is None

    def test_host(self) -> None:
        """Only where the route permits it, and only to set it: exactly one Host."""
        assert screen_op(OpAction.SET, "Host", "b.example", False) is None
        assert screen_op(OpAction.SET, "Host", "b.example", True) == HeaderOp(OpAction.SET, "host", "b.example")
        assert screen_op(OpAction.ADD, "host", "b.example", True) is None
        assert screen_op(OpAction.REMOVE, "host", "", True) is None

    @pytest.mark.parametrize("name", ["", "a b", "a:b", "x\r\ny", "x\n", "a_b", "ä", "x\0", "(x)", " x", "Ｘ"])
    def test_bad_names(self, name: str) -> None:
        """Nothing that is no token; `_` neither."""
        assert not is_header_name(name)
        assert screen_op(OpAction.SET, name, "1", True) is None

    @pytest.mark.parametrize("value", ["a\r\nb: c", "a\n", "\0", "a\x1bb", "\x7f", "a\x0bb"])
    def test_bad_values(self, value: str) -> None:
        """No control characters but tab: no header or response can be smuggled in."""
        assert not is_header_value(value)
        assert screen_op(OpAction.ADD, "x-a", value, True) is None

    def test_good_ones(self) -> None:
        """Lower-cased name, value without surrounding blanks, other characters kept."""
        assert screen_op(OpAction.ADD, "X-Ünï".replace("Ünï", "Uni"), " a\tbé€ ", False) == HeaderOp(
            OpAction.ADD, "x-uni", "a\tbé€"
        )

    @given(st.text(max_size=30), st.text(max_size=30), st.sampled_from(list(OpAction)), st.booleans())
    def test_whatever_passes_is_one_harmless_field(
        self, name: str, value: str, action: OpAction, may_set_host: bool
    ) -> None:
        """No separator or control character survives, no protected name."""
        op = screen_op(action, name, value, may_set_host)
        if op is not None:
            assert op.name.isascii()
            assert op.name not in PROTECTED
            assert not set(op.name) & set(' \t\r\n:,;()<>@"/[]?={}\\_\0')
            assert not set(op.value) & {chr(c) for c in (*range(9), *range(10, 32), 127)}


class TestRefusals:
    def test_block_is_plain_text_unless_told(self) -> None:
        """A body gets a content type, no body needs none, the agent's own stands."""
        assert block(403, b"no", (), (), "a").headers == (("content-type", "text/plain; charset=utf-8"),)
        assert block(403, b"", (), (), "a").headers == ()
        own = (("content-type", "text/html"),)
        assert block(403, b"no", own, (), "a").headers == own

    def test_redirect(self) -> None:
        """Status and location."""
        decision = redirect(307, "/login", (OP,), "a")
        assert (decision.verb, decision.status, decision.headers) == (Verb.REDIRECT, 307, (("location", "/login"),))
        assert decision.response_ops == (OP,)

    def test_challenges_of_http(self) -> None:
        """401 with WWW-Authenticate, quoted."""
        decision = challenge("Basic", {"realm": 'the "inner\\outer"'}, (), "a")
        assert decision.status == 401
        assert decision.headers == (("www-authenticate", 'Basic realm="the \\"inner\\\\outer\\""'),)
        assert challenge("bearer", {}, (), "a").headers == (("www-authenticate", "Bearer"),)

    def test_other_challenges(self) -> None:
        """403 with type and params as JSON and in a header."""
        decision = challenge("captcha", {"key": "k"}, (), "a")
        assert (decision.verb, decision.status) == (Verb.CHALLENGE, 403)
        assert dict(decision.headers) == {"content-type": "application/json", "x-challenge-type": "captcha"}
        assert decision.body == b'{"challenge_type":"captcha","params":{"key":"k"}}'


def test_words_are_stable() -> None:
    """Logs, metrics and audit use them."""
    assert [verb.word for verb in Verb] == ["allow", "fail", "redirect", "challenge", "block"]
    assert [outcome.word for outcome in Outcome] == [
        "decision",
        "timeout",
        "breaker_open",
        "queue_full",
        "disconnected",
        "malformed",
        "agent_error",
        "body_too_large",
        "cancelled",
    ]
