"""The HTTP front: takes requests, has them decided, passes them on.

The steps of one request, and the file of each:

 1. bytes in, slow or broken clients refused       guard.py, streams.py, refusals.py, protocol.py  (repeats: repeat.py)
 2. the head is normalised or refused              head.py
 3. a route is chosen                              routing.py    (what a route needs at hand: app.py)
    is it one too many?                            limits.py    (tokens and counts: shared/segment_buckets.py)
 4. an exchange begins: what happens next          exchange.py, exchange_ends.py (a table over exchange_states.py), by
                                                   commands (exchange_commands.py) that driver.py carries out
 5. ask the agents, or know the answer already     plan_view.py, dispatch.py, hop.py   -> agentd (agentd/__init__.py)
 6. the decision comes back and is applied         driver.py, heads built by apply.py and forwarded.py
 7. a connection to the upstream                   upstream/     pool -> dial -> connection -> reader -> response
 8. the response's head: agents asked again        steps 5 and 6
 9. bytes out, back-pressure both ways             driver.py, streams.py, outbox.py   (connections: worker.py)
10. accounts: counters, audit record, log line     endings.py, app.py -> dispatch.py -> agentd/audit/

Where agents see bodies, these pass through flows on their way in: bodies.py makes them, flow.py leads source, decoder
(coding.py) and stages together, chunks.py is the stage of one plan's agents.

A WebSocket upgrade is a request, too (upgrade.py); what follows its 101 is one state of the exchange (upgraded.py):
bytes in a tunnel (client_tunnel.py, tunnel.py), or messages that agents see (websocket.py, websocket_peer.py).

guardrails/ (guardrails/__init__.py) inspects what goes to language models and comes back; fallbacks.py asks another
upstream when one has failed.

Around it: serve.py opens what the proxy owns, arbiter.py keeps the workers (roster.py decides, gunicorn_conf.py
tells gunicorn), worker.py is one of them, listen.py its sockets. cli/ is the `wardgate` command, explain.py (with
explain_head.py, explain_routes.py, explain_exchange.py) what it says of a request, demo/ what `make run` shows.
"""
