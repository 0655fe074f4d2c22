"""How often one agent is called: its `rate_limit`, as configured or as an operator has set it.

One process asks, so the bucket is a plain one; what a call over it comes to is the lane's business.

Kind: pure.
"""

import msgspec

from shared.config.schema import Agent, AgentRateLimit
from shared.ratelimit import Bucket, micro


class CallRate:
    """`bucket` is None while the agent has no limit: ask `take` only where there is one."""

    __slots__ = ("admitted", "bucket", "kept", "refused")

    def __init__(self, settings: Agent) -> None:
        self.bucket: Bucket | None = None
        self.kept: AgentRateLimit | None = None  # an operator's, that outlives a reload
        self.admitted = 0
        self.refused = 0
        self.configure(settings)

    def configure(self, settings: Agent) -> Agent:
        """Other numbers, at once; tokens stay. The settings with what is in effect now."""
        rate = settings.rate_limit
        if rate is None:
            self.bucket = None
            return settings
        if self.kept is not None and self.kept != rate:
            rate = self.kept
            settings = msgspec.structs.replace(settings, rate_limit=rate)
        if self.bucket is None:
            self.bucket = Bucket(micro(rate.capacity), micro(rate.refill_rate))
        self.bucket.configure(micro(rate.capacity), micro(rate.refill_rate))
        return settings

    def take(self, now: int) -> bool:
        """Whether the agent may be called once more."""
        assert self.bucket is not None
        if self.bucket.take(now):
            self.admitted += 1
            return True
        self.refused += 1
        return False
