"""What `wardgate run --demo` has to proxy for and to ask: one application, two agents, one configuration."""
