"""The agents that come with Wardgate. Each is a package of its own, and an example of how one is written.

    denylist/    who and what is turned away: networks, paths, user agents, from files
    auth/        who asks: JWT, API keys, basic; tells the upstream, and the rate limits
    headers/     security headers of responses, fields set and removed
    guardrail/   what goes to and comes from a language model

What they share: settings.py (the `config` table as a typed struct), files.py (files that are read again when they
change), addresses.py and the like stay with the agent that needs them. Nothing here imports another part of Wardgate
than the SDK: an agent is a program of its own, and so can yours be.
"""
