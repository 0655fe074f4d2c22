"""The HTTP front: takes requests, has them decided, passes them on.

The steps of one request, and the file of each:

 1. bytes in, slow or broken clients refused       guard.py, streams.py, protocol.py   (known by heart: repeat.py)
 2. the head is normalised or refused              head.py
 3. a route is chosen                              routing.py    (what a route needs at hand: app.py)
    is it one too many?                            limits.py    (tokens and counts: shared/segment_buckets.py)
 4. an exchange begins: what happens next          exchange.py   (a table), carried out by driver.py
 5. ask the agents, or know the answer already     plan_view.py, dispatch.py   -> agentd (agentd/__init__.py)
 6. the decision comes back and is applied         driver.py, heads built by apply.py and forwarded.py
 7. a connection to the upstream                   upstream/     pool -> dial -> connection -> reader -> response
 8. the response's head: agents asked again        steps 5 and 6
 9. bytes out, back-pressure both ways             driver.py, streams.py, outbox.py   (connections: worker.py)
10. accounts: counters, audit record, log line     app.py, driver.py -> dispatch.py -> agentd/audit/

Around it: serve.py opens what the proxy owns, arbiter.py keeps the workers (roster.py decides, gunicorn_conf.py
tells gunicorn), worker.py is one of them, listen.py its sockets. cli/ is the `wardgate` command, demo/ what
`make run` shows.
"""
