"""The bench's agent: adds `x-agent: ok`, blocks what carries x-block; with HANG=1 in the environment never answers.

python allow_v2.py --connect ENDPOINT --name NAME

Kind: IO (an agent; the SDK does the talking).
"""

import asyncio
import gc
import os
import sys

from wardgate_agent import Agent, Allow, Block, HttpAnswer, RequestHeaders, main

PASS = Allow().set_request_header("x-agent", "ok")
REFUSE = Block(403, "blocked by the bench's agent\n")


class Fast(Agent):
    def on_request_headers(self, event: RequestHeaders) -> HttpAnswer:
        return REFUSE if "x-block" in event.headers else PASS


class Hung(Agent):
    async def on_request_headers(self, event: RequestHeaders) -> HttpAnswer:
        await asyncio.Event().wait()
        return REFUSE


if __name__ == "__main__":
    gc.freeze()  # what is loaded now stays
    sys.exit(main(Hung if os.environ.get("HANG") == "1" else Fast))
