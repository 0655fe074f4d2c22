"""Guardrails: what goes to a language model and comes back is inspected before it passes.

1  sse.py        bytes of a stream     -> events
2  strict.py     bytes                 -> JSON that all parsers read alike, or a refusal
3  shapes.py     JSON                  -> its texts;  streamed.py: an event -> pieces of texts
4  window.py     pieces                -> what is to be inspected, what may go
5  asking.py     texts                 -> one question per inspection type, the answers
6  inspect.py    answers               -> block, or edits;  refusals.py: what a client is told
7  whole.py, stream.py                 the stages of a flow (proxy/flow.py) that do all this
8  rails.py      configuration         -> the stages of a route;  account.py: audit and metrics
9  usage.py      a response on its way -> tokens per model
"""
