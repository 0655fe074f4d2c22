"""Every byte format that leaves a process, one module each.

envelope.py      worker <-> agentd, the hop
messages.py      events as agents see them, verdicts as they give them
agent_zmq.py     the frames of agent protocols 2 and 1; agent_messages.py their messages, session.py what may come when
segment.py       the cells of agentd.seg and proxy.seg
admin.py         the admin API
audit.py         the audit record

Nothing here acts on what it reads. Lengths are checked before they are used, unknown versions are refused; what
happens to unknown fields each module says.
"""
