"""How agents are reached: one module per protocol.

Each offers instances (agentd/call.py) to the agents' lanes. zmq_dealer.py is zmq-v2: agents dial one socket;
zmq_reception.py takes them in from HELLO to their end, zmq_session.py batches their events and reads their
verdicts. zmq_rep.py is zmq-v1: agentd dials each agent's REP socket, zmq_lockstep.py is one such connection.
verdicts.py reads what either of them answers. Another protocol is another module here; no lane, plan or
decision changes for it.
"""
