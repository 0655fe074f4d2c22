"""The demo's two agents. Scripts, run as files because that is how people write theirs; nothing imports them."""
