"""What an agent answered in a test: the verdict as agentd would get it, with assertions.

Kind: pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

HeadersLike = Mapping[str, str | Sequence[str]]


class Answer:
    """What an agent answered: `verdict` is the JSON as agentd gets it, None if nothing is answered."""

    def __init__(self, verdict: dict[str, Any] | None, frame: bytes | None, request: dict[str, Any]) -> None:
        self.verdict = verdict
        self.frame = frame  # the body frame beside it
        self._request = request

    def _get(self, name: str) -> Any:
        return None if self.verdict is None else self.verdict.get(name)

    @property
    def decision(self) -> str:
        """allow, block, redirect, challenge, error, none (nothing was answered) or other (WebSocket, guardrail)."""
        if self.verdict is None:
            return "none"
        if "error" in self.verdict:
            return "error"
        decision = self.verdict.get("decision", "other")
        return decision if isinstance(decision, str) else str(next(iter(decision), "other"))

    @property
    def is_allow(self) -> bool:
        return self.decision == "allow"

    @property
    def is_block(self) -> bool:
        return self.decision == "block"

    def _refusal(self) -> dict[str, Any]:
        decision = self._get("decision")
        refusal: dict[str, Any] = decision.get(self.decision, {}) if isinstance(decision, dict) else {}
        return refusal

    @property
    def status(self) -> int | None:
        """Of a block or redirect; what the proxy makes of a challenge."""
        if self.decision == "challenge":
            return 401 if self.challenge_type in ("basic", "bearer") else 403
        return self._refusal().get("status")

    @property
    def body(self) -> bytes:
        """A block's body."""
        return self.frame if self.frame is not None else str(self._refusal().get("body", "")).encode()

    @property
    def headers(self) -> dict[str, list[str]]:
        """A block's header fields, names in lower case."""
        return header_map(self._refusal().get("headers") or {})

    @property
    def url(self) -> str | None:
        """Where a redirect leads."""
        return self._refusal().get("url")

    @property
    def challenge_type(self) -> str | None:
        return self._refusal().get("challenge_type")

    @property
    def challenge_params(self) -> dict[str, str]:
        return dict(self._refusal().get("params") or {})

    @property
    def request_headers(self) -> dict[str, list[str]]:
        """The event's headers after the verdict's request operations: what the upstream would get."""
        return _applied(self._request, self._get("request_headers"))

    @property
    def response_headers(self) -> dict[str, list[str]]:
        """Response operations applied to nothing, or to the headers of a response_headers event."""
        given = self._request if self._request.get("event_type") == "response_headers" else {}
        return _applied(given, self._get("response_headers"))

    @property
    def mutation(self) -> str | None:
        """pass, drop or replace beside a chunk; None without."""
        mutation = self._get("request_body_mutation") or self._get("response_body_mutation")
        action: str | None = mutation["action"] if mutation else None
        return action

    @property
    def replacement(self) -> bytes | None:
        """The bytes of a replace, of a chunk or of a WebSocket frame."""
        return (self.frame or b"") if "replace" in (self.mutation, self.websocket) else None

    @property
    def needs_more(self) -> bool:
        return bool(self._get("needs_more"))

    @property
    def skip_body(self) -> bool:
        return bool(self._get("skip_body"))

    @property
    def websocket(self) -> str | None:
        """allow, drop, replace or close."""
        decision = self._get("websocket_decision")
        word: str | None = next(iter(decision), None) if isinstance(decision, dict) else decision
        return word

    @property
    def guardrail(self) -> dict[str, Any]:
        return dict(self._get("guardrail_response") or {})

    @property
    def routing(self) -> dict[str, str]:
        return dict(self._get("routing_metadata") or {})

    @property
    def tags(self) -> list[str]:
        return list((self._get("audit") or {}).get("tags", ()))

    @property
    def audit(self) -> dict[str, Any]:
        return dict(self._get("audit") or {})

    @property
    def error_code(self) -> str | None:
        return (self._get("error") or {}).get("code")

    def assert_allowed(self) -> Self:
        assert self.is_allow, f"expected allow, the agent answered {self.verdict}"
        return self

    def assert_blocked(self, status: int | None = None) -> Self:
        assert self.is_block, f"expected a block, the agent answered {self.verdict}"
        assert status is None or self.status == status, f"expected block {status}, the agent answered {self.verdict}"
        return self

    def assert_redirected(self, url: str | None = None) -> Self:
        assert self.decision == "redirect", f"expected a redirect, the agent answered {self.verdict}"
        assert url is None or self.url == url, f"expected a redirect to {url}, the agent answered {self.verdict}"
        return self

    def assert_challenged(self, challenge_type: str | None = None) -> Self:
        assert self.decision == "challenge", f"expected a challenge, the agent answered {self.verdict}"
        assert challenge_type in (None, self.challenge_type), f"the agent answered {self.verdict}"
        return self

    def assert_error(self, code: str | None = None) -> Self:
        assert self.decision == "error", f"expected an error, the agent answered {self.verdict}"
        assert code in (None, self.error_code), f"expected error {code}, the agent answered {self.verdict}"
        return self

    def __repr__(self) -> str:
        return f"Answer({self.verdict!r})"


def header_map(headers: HeadersLike) -> dict[str, list[str]]:
    """Headers as events carry them: names in lower case, every value in a list."""
    made: dict[str, list[str]] = {}
    for name, value in headers.items():
        made.setdefault(name.lower(), []).extend([value] if isinstance(value, str) else value)
    return made


def _applied(event: Mapping[str, Any], operations: Any) -> dict[str, list[str]]:
    headers = {name: list(values) for name, values in (event.get("headers") or {}).items()}
    for operation in operations or ():
        ((action, pair),) = operation.items()
        name = pair["name"].lower()
        if action == "remove":
            headers.pop(name, None)
        elif action == "set":
            headers[name] = [pair["value"]]
        else:
            headers.setdefault(name, []).append(pair["value"])
    return headers
