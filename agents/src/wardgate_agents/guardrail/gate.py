"""Which long texts are inspected now, which wait, and which are refused because there is no time for them.

    run --cannot be done in its time--> Busy
      \\--> waiting, the shortest first --> thread --> result
               \\--too many, or too late--> Busy         \\--nobody waits any more--> stops at its next `check`

Two threads; a thread is taken until its inspection has really ended, whoever has given up on it. Of long texts one runs
at a time: threads share one core (the interpreter's lock), so two would both be done later, and the other thread is
left to those of middling length. Everything is answered before its time is over.

Kind: IO (owns the threads).
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

from wardgate_agents.guardrail.pace import Pace

T = TypeVar("T")
Check = Callable[[], None]

THREADS: Final = 2
WAITING_MAX: Final = 98  # with the threads 100: so many hooks the SDK runs at once, and so many calls agentd by default
LONG_CHARS: Final = 65_536  # from here on one at a time
_INLINE_SHARE: Final = 0.1  # inline work may take so much of the time (the threads leave the loop a third of a core),
_BURST_SHARE: Final = 0.05  # and at once so much of what one call has


class Busy(Exception):
    """Not now, or not in this time: the text was not inspected."""

    def __init__(self, code: Literal["text_too_long", "too_many_texts", "out_of_time"]) -> None:
        super().__init__(code.replace("_", " "))
        self.code = code


class Abandoned(Exception):
    """Raised by `check` in a thread: nobody waits for the result."""


class _Job:
    __slots__ = ("chars", "deadline_s", "future", "is_over", "kind", "took_s", "work")

    def __init__(self, kind: str, chars: int, deadline_s: float, work: Callable[[Check], Any]) -> None:
        self.kind = kind
        self.chars = chars
        self.deadline_s = deadline_s
        self.work = work
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.is_over = False  # written by the loop, read by the thread
        self.took_s = 0.0

    def check(self) -> None:
        if self.is_over:
            raise Abandoned


class Gate:
    """Runs inspections off the event loop and within bounds."""

    def __init__(
        self, *, clock_s: Callable[[], float] = time.monotonic, cpu_s: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock_s = clock_s
        self._cpu_s = cpu_s  # not by the clock: threads that take turns would each seem twice as slow
        self._pace = Pace()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="inspect")
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []

    @property
    def waiting(self) -> int:
        """Texts that wait for a thread."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Threads taken, by abandoned inspections as well."""
        return len(self._running)

    async def run(self, kind: str, chars: int, deadline_s: float, work: Callable[[Check], T]) -> T:
        """`work(check)` in a thread. Busy when it cannot be done until `deadline_s`, by the gate's clock.

        `work` calls `check` as often as it can; it raises when nobody waits any more.
        """
        now_s = self._clock_s()
        if now_s >= deadline_s:
            raise Busy("out_of_time")
        if now_s + self._pace.cost_s(kind, chars, now_s) > deadline_s:
            raise Busy("text_too_long")
        job = _Job(kind, chars, deadline_s, work)
        self._waiting.append(job)
        self._start()
        if len(self._waiting) > WAITING_MAX:  # the longest goes, so that long texts do not keep out shorter ones
            self._refuse(max(self._waiting, key=lambda one: one.chars), "too_many_texts")
        try:
            async with asyncio.timeout(deadline_s - now_s):
                result: T = await job.future
                return result
        except TimeoutError:
            raise Busy("out_of_time") from None
        finally:
            job.is_over = True
            if job in self._waiting:
                self._waiting.remove(job)

    def _refuse(self, job: _Job, code: Literal["too_many_texts", "out_of_time"]) -> None:
        self._waiting.remove(job)
        if not job.future.done():
            job.future.set_exception(Busy(code))

    def _start(self) -> None:
        """Give free threads to those who wait."""
        while len(self._running) < THREADS:
            is_long_on = any(one.chars >= LONG_CHARS for one in self._running)
            ready = [one for one in self._waiting if not (is_long_on and one.chars >= LONG_CHARS)]
            if not ready:
                return
            job = min(ready, key=lambda one: one.chars)
            now_s = self._clock_s()
            if now_s + self._pace.cost_s(job.kind, job.chars, now_s) > job.deadline_s:
                self._refuse(job, "out_of_time")  # now, and not after it has kept a thread busy for nothing
                continue
            self._waiting.remove(job)
            self._running.append(job)
            done = asyncio.get_running_loop().run_in_executor(self._threads, self._work, job)
            done.add_done_callback(lambda done, job=job: self._ended(job, done))  # type: ignore[misc]

    def _work(self, job: _Job) -> Any:
        began_s = self._cpu_s()
        try:
            job.check()
            return job.work(job.check)
        finally:
            job.took_s = self._cpu_s() - began_s

    def _ended(self, job: _Job, done: "asyncio.Future[Any]") -> None:
        self._running.remove(job)
        error = done.exception()
        self._pace.learn(job.kind, job.chars, job.took_s, self._clock_s(), is_whole=error is None)
        if not job.future.done():
            if error is None:
                job.future.set_result(done.result())
            else:
                job.future.set_exception(error)
        self._start()


class Inline:
    """Whether there is time to inspect in the event loop itself: a flood of short texts must not make all of them late.

    A bucket of seconds: inline work fills it, passing time empties it. Work counts by the time that it had a core.
    """

    def __init__(
        self, clock_s: Callable[[], float] = time.monotonic, cpu_s: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock_s = clock_s
        self._cpu_s = cpu_s
        self._level_s = 0.0
        self._at_s = clock_s()

    def has_time(self, limit_s: float) -> bool:
        """Whether another one may be done here, of which the answer is due in `limit_s`."""
        now_s = self._clock_s()
        self._level_s = max(0.0, self._level_s - (now_s - self._at_s) * _INLINE_SHARE)
        self._at_s = now_s
        return self._level_s <= limit_s * _BURST_SHARE

    def run(self, work: Callable[[], T]) -> T:
        """Do it here and count it."""
        began_s = self._cpu_s()
        try:
            return work()
        finally:
            self._level_s += self._cpu_s() - began_s
