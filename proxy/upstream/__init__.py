"""The way to the upstreams: our own HTTP/1.1 client, made of small parts.

pool.py gives each request a connection and takes it back, balance.py says whose turn a target is, dial.py and
connector.py (with tls.py) make new connections, connection.py moves the bytes of one, reader.py finds head, body
and end in them, response.py decides whether a head may be believed. Callbacks throughout: the one task is that
of a connection being made.
"""
