"""The demo's deciding agent, over zmq-v2 on the Python SDK: python policy_agent.py --connect ENDPOINT

    /admin...      403 with its own body and X-Blocked-By      X-Block: 1     the same, on any request
    /old/...       302 to /...                                 /members...    401, basic
    all others     pass with X-Agent: ok; their responses carry X-Served-Through: wardgate

Kind: IO (an agent; the SDK does the talking).
"""

import sys
from urllib.parse import quote

from wardgate_agent import Agent, Allow, Block, Challenge, HttpAnswer, Redirect, RequestHeaders, main

# What is the same for every request is made once.
PASS = Allow().set_request_header("X-Agent", "ok").set_response_header("X-Served-Through", "wardgate")
ADMIN = Block(403, "The policy agent says no: /admin is closed.\n", {"X-Blocked-By": "policy"}).audit(tags=["admin"])
ASKED = Block(403, "The policy agent says no: X-Block was set.\n", {"X-Blocked-By": "policy"}).audit(tags=["x-block"])
MEMBERS = Challenge("basic", realm="members").audit(tags=["members"])


class PolicyAgent(Agent):
    name = "policy"

    def on_request_headers(self, event: RequestHeaders) -> HttpAnswer:
        if event.headers.get("x-block") == "1":
            return ASKED
        path = event.path  # decoded once: /%61dmin is /admin
        if path.startswith("/admin"):
            return ADMIN
        if path == "/members" or path.startswith("/members/"):
            return MEMBERS
        if path.startswith("/old/"):
            return self.moved(path, event.query)
        return PASS

    @staticmethod
    def moved(path: str, query: str) -> HttpAnswer:
        """To the same place without /old. Never to `//elsewhere`, which a browser takes for another host."""
        target = "/" + quote(path.removeprefix("/old/").lstrip("/\\"), safe="/:@!$&'()*+,;=~")
        return Redirect(f"{target}?{query}" if query else target).audit(tags=["moved"])


if __name__ == "__main__":
    sys.exit(main(PolicyAgent))
