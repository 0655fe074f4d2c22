"""Where audit records go.

queue.py holds them, bounded, between the event loop and a sink; file.py is the sink that writes JSON lines from
a thread of its own. What a record holds stands in shared/wire/audit.py. Another sink is another module here.
"""
