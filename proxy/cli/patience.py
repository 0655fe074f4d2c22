"""Waits for something that a daemon does, asking again and again, and says what for when it takes long.

Nothing is known here of what is waited for.

Kind: IO.
"""

import time
from collections.abc import Callable

import click

from shared.defaults import POLL_S, PROGRESS_AFTER_S


class Patience:
    """`say(seconds)` makes the line that is shown on standard error after PROGRESS_AFTER_S, and as often again."""

    def __init__(
        self,
        timeout_s: float,
        say: Callable[[float], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._timeout_s = timeout_s
        self._said = self._began

    def has_more(self) -> bool:
        """Wait a moment; False = the time is over."""
        now = self._clock()
        if now - self._began >= self._timeout_s:
            return False
        if now - self._said >= PROGRESS_AFTER_S:
            self._said = now
            click.echo(self._say(now - self._began), err=True)
        self._sleep(POLL_S)
        return True
