"""headers: security headers for responses, and fields set, added and removed both ways.

presets.py     what `basic`, `strict` and `api` mean: a table
rules.py       the configuration as one plan per route
agent.py       a head's verdict, by its route's plan
"""
