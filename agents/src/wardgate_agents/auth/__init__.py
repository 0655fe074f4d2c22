"""auth: who asks? A JWT, an API key or a name with a password, and nobody else.

a request's head --credentials.py--> one credential, none, or too many
Bearer   tokens.py      signature by jwks.py's keys, claims; verified tokens are remembered
API key  api_keys.py    by its hash
Basic    passwords.py   scrypt, in threads, so many at a time; gate.py decides who waits
--identity.py--> the verdict: identity headers for the upstream, the identity for rate limits
agent.py holds them together; command.py makes hashes for the files
"""
