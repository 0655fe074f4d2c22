"""The daemon that asks the agents.

The steps from a worker's envelope to a decision, and the file of each:

 1. records arrive, their worker is known by the kernel's word   ingress.py, peers.py  (bytes: shared/wire/envelope.py)
 2. an event finds its plan and becomes a group                  dispatcher.py         (plans: shared/plan.py)
 3. whom to ask when, parallel or one after the other            group.py              -> a call.py per agent
    one agent alone: group and call in one                       lone.py
 4. breaker, rate, free place, queue: may this call go now?      lane.py, rate.py      (shared/breaker.py)
 5. which instance gets it                                       pool.py
 6. to the agent and back                                        transport/            (bytes: shared/wire/agent_zmq.py)
 7. what its verdict comes to                                    transport/verdicts.py (shared/wire/messages.py)
 8. outcomes become one decision                                 group.py              by shared/decision.py
 9. the decision leaves, what is still out is cancelled          group.py, ingress.py
10. the record of whatever was not a plain allow                 record.py             -> audit/

Time: alarm.py and one timer of the daemon. Who may register as which agent: registry.py. What others see:
publish.py (agentd.seg), ledger.py (counts, last calls), health.py, exporter.py (/metrics), operations.py behind
admin.py and admin_http.py, limits.py for `wardgate limits`. daemon.py builds all of it, __main__.py starts it.
"""
