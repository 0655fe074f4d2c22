"""A guardrail on the SDK that finds `SECRET-` with digits (pii_detection) and `IGNORE ALL` (prompt_injection).

A content with `ASK-ME-LATER` is answered too late, one with `BREAK-DOWN` with an error.
"""

import asyncio
import re

from wardgate_agent import Agent, AgentError, Detection, Guardrail, GuardrailInspect, main

PATTERNS = {
    "pii_detection": (re.compile(r"SECRET-\d+"), "secret"),
    "prompt_injection": (re.compile("IGNORE ALL"), "injection"),
}


class Finding(Agent):
    name = "finder"

    async def on_guardrail_inspect(self, event: GuardrailInspect) -> Guardrail:
        if "ASK-ME-LATER" in event.content:
            await asyncio.sleep(60)
        if "BREAK-DOWN" in event.content:
            raise AgentError("broken", "as was asked for")
        pattern, category = PATTERNS[event.inspection_type]
        found = [
            Detection(category, severity="high", span=event.span(match.start(), match.end()))
            for match in pattern.finditer(event.content)
        ]
        return Guardrail(bool(found), 0.9 if found else 0.0, found)


if __name__ == "__main__":
    raise SystemExit(main(Finding))
