"""The demo's second agent, over zmq-v1 without an SDK: python tag_agent.py ENDPOINT. Adds X-Demo-Tag: v1.

Kind: IO (an agent).
"""

import signal
import sys

import zmq

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: sys.exit(0))
VERDICT = {"version": 1, "decision": "allow", "request_headers": [{"set": {"name": "X-Demo-Tag", "value": "v1"}}]}
socket = zmq.Context().socket(zmq.REP)
socket.bind(sys.argv[1])
while True:
    socket.recv_multipart()  # {"version":1,"event_type":...,"payload":{...}}: `configure` or a request, all are allowed
    socket.send_json(VERDICT)
