"""denylist: turns away networks, paths and user agents that stand in files.

files --lists.py--> addresses.py, paths.py, user_agents.py     one kind of rule each, with exceptions
a request's head --agent.py--> the first rule that fits, or allow
"""
