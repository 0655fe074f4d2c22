"""The bench's agent for bodies: looks at every chunk, in both directions, and lets it pass.

python scan_v2.py --connect ENDPOINT --name NAME

Kind: IO (an agent; the SDK does the talking).
"""

import sys

from wardgate_agent import Agent, Allow, HttpAnswer, RequestBodyChunk, RequestComplete, ResponseBodyChunk, main

PASS = Allow()
DROP = Allow().drop_chunk()
MARK = b"forbidden"


class Scan(Agent):
    def on_request_body_chunk(self, event: RequestBodyChunk) -> HttpAnswer:
        return DROP if event.body.startswith(MARK) else PASS

    def on_response_body_chunk(self, event: ResponseBodyChunk) -> HttpAnswer:
        return DROP if event.body.startswith(MARK) else PASS

    def on_request_complete(self, event: RequestComplete) -> None:
        """Told of each; there is nothing to say."""


if __name__ == "__main__":
    sys.exit(main(Scan))
