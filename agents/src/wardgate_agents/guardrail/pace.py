"""What inspections cost on this machine, learnt from the recent ones: how long a text of a given length will take.

Rather too little than too much: it is the lower quartile, so that a client whose texts are dear on purpose does not
get those of others refused, and it is forgotten after a while, so that what is refused for its length is tried again.

Kind: pure.
"""

from collections import deque
from typing import Final

_SAMPLES: Final = 16
_KEEP_S: Final = 30.0
_CHARS_LEAST: Final = 4_096  # what a shorter text takes does not go by its length


class Pace:
    """Seconds of a core per character, by kind of inspection."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, float]]] = {}  # (when, seconds per character)

    def cost_s(self, kind: str, chars: int, now_s: float) -> float:
        """What a text of so many characters takes; 0.0 as long as nothing is known."""
        samples = self._samples.get(kind, ())
        paces = sorted(pace_s for when_s, pace_s in samples if now_s - when_s < _KEEP_S)
        return paces[len(paces) // 4] * chars if paces else 0.0

    def learn(self, kind: str, chars: int, took_s: float, now_s: float, *, is_whole: bool = True) -> None:
        """An inspection is over. `is_whole`: to its end; else it would have taken longer, and tells only of more."""
        if chars >= _CHARS_LEAST and (is_whole or took_s > self.cost_s(kind, chars, now_s)):
            self._samples.setdefault(kind, deque(maxlen=_SAMPLES)).append((now_s, took_s / chars))
