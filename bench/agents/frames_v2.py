"""The conformance run's agent: lets every WebSocket message pass.

Kind: IO (an agent; the SDK does the talking).
"""

import sys

from wardgate_agent import Agent, WebSocketAllow, WebSocketAnswer, WebSocketFrame, main

PASS = WebSocketAllow()


class Passes(Agent):
    def on_websocket_frame(self, event: WebSocketFrame) -> WebSocketAnswer:
        return PASS


if __name__ == "__main__":
    sys.exit(main(Passes))
