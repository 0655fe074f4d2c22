"""What proxy and agentd both need, and nothing else.

Here may live only

  (a) a format or number that two processes must agree on,
  (b) a pure function that both must compute alike,
  (c) plumbing without policy.

No event loop, socket library or command line may be imported here; `make check` sees to it.

(a) wire/         every byte format              defaults.py  every default and limit    errors.py  stable codes
    events.py     what agents are asked about    runtime.py   names and locks of the runtime directory
    config/       the configuration              segment*.py  the two shared files       metrics.py what they count
(b) plan.py       whom to ask                    decision.py  failures, merge, header operations
    breaker.py    may an agent be asked          ratelimit.py how many tokens there are
                                                 readiness.py how well the whole is
(c) zmtp/         ZeroMQ's wire, without libzmq  turn.py      what leaves at a turn's end
    backoff.py    when to dial again             clock.py deadlines.py log.py notify.py
"""
