"""The answers of a guardrail in place of a model's: blocked, not inspectable, too long.

One JSON object that the clients of OpenAI's and of Anthropic's API both read as an error. It says what was refused
and never which rule did it: who tries out what gets through is not to be helped.

Kind: pure.
"""

from typing import Final

import orjson

from proxy.guardrails.inspect import Found
from shared.decision import Decision, Verb
from shared.defaults import GUARDRAIL_STATUS
from shared.errors import Uninspectable

_JSON: Final = (("content-type", "application/json"),)


def blocked(part: str, by: Found) -> Decision:
    """What a finding comes to whose action is block."""
    return _decision(GUARDRAIL_STATUS, f"the {part} was blocked by a guardrail", "guardrail_blocked", by.agent, "block")


def uninspectable(part: str, why: Uninspectable) -> Decision:
    """A body that is never passed unseen: 413 or 400 for the client's own, 502 for a model's."""
    status = 502 if part == "completion" else 413 if why.is_too_large else 400
    code = f"{part}_too_large" if why.is_too_large else f"{part}_not_inspectable"
    subject = "request body" if part == "prompt" else "response"
    return _decision(status, f"the {subject} {why}", code, "", code)


def _decision(status: int, message: str, code: str, agent: str, reason: str) -> Decision:
    error = {"message": message, "type": code, "param": None, "code": code}
    body = orjson.dumps({"type": "error", "error": error}) + b"\n"
    return Decision(Verb.BLOCK, status, _JSON, body, agent=agent, reason=reason)
