"""Reads an agent's verdicts: raw JSON to what it comes to, with a memory for those that repeat.

Most agents say one of a few things, byte for byte. Looking up what those bytes meant the last time
costs 0.3 us instead of 2.2 for decoding and screening (2026-11). What a verdict means is decided in
shared/wire/verdict.py, what happens with it in agentd/lane.py.

Kind: pure.
"""

from collections.abc import Callable
from typing import cast

import msgspec

from shared.decision import Verb
from shared.defaults import HOP_BODY_MAX_BYTES, VERDICT_CACHE_BYTES, VERDICT_CACHE_ENTRIES, VERDICT_MAX_BYTES
from shared.wire.verdict import HEAD, HEAD_AND_HOST, SCREENED_ALLOW, Question, Screened, Verdict, decode_verdict, screen

_Memory = dict[bytes, Screened]


class VerdictReader:
    """One per agent, shared by its instances. What it returns is shared too: nobody may change it."""

    __slots__ = ("_decode", "_others", "_with_host", "agent", "plain")

    def __init__(self, agent: str, decode: Callable[[bytes], Verdict] = decode_verdict) -> None:
        self.agent = agent
        self._decode = decode
        self.plain: _Memory = {}
        self._with_host: _Memory = {}  # for routes whose agents may set Host
        self._others: dict[int, _Memory] = {}  # of bodies, frames and texts: by kind, may_set_host, is_last

    def read(
        self, raw: "bytes | msgspec.Raw", question: Question = HEAD, body: "bytes | memoryview | None" = None
    ) -> Screened:
        """What these bytes come to; never raises. `body`: the verdict's body frame; a view is kept as it is."""
        data = bytes(raw)
        if body is not None or len(data) > VERDICT_CACHE_BYTES:
            return self._screen(data, question, body)[0]
        if question is HEAD:
            memory = self.plain
        elif question is HEAD_AND_HOST:
            memory = self._with_host
        else:
            memory = self._memory(question)
        known = memory.get(data)
        if known is None:
            known, is_lasting = self._screen(data, question, None)
            if not is_lasting:
                return known
            if len(memory) >= VERDICT_CACHE_ENTRIES:
                memory.clear()  # an agent whose verdicts never repeat gains nothing anyway
            memory[data] = known
            if known is not SCREENED_ALLOW:
                known.is_kept = True
                known.is_quiet = _is_quiet(known)
        return known

    def _memory(self, question: Question) -> _Memory:
        """Of events of a kind, whatever their chunk's index is."""
        key = question.kind * 4 + question.may_set_host * 2 + question.is_last
        memory = self._others.get(key)
        if memory is None:
            memory = self._others[key] = {}
        return memory

    def _screen(self, data: bytes, question: Question, body: bytes | memoryview | None) -> tuple[Screened, bool]:
        """What it comes to, and whether that is the same for every question that shares a memory with this one."""
        if len(data) > VERDICT_MAX_BYTES:
            return Screened(malformed=f"{len(data)} bytes of JSON, at most {VERDICT_MAX_BYTES} are read"), False
        try:
            verdict = self._decode(data)
            screened = screen(verdict, self.agent, question, cast("bytes | None", body))
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            return Screened(malformed=str(error)[:300]), True
        decision = screened.decision
        if decision is not None and decision.chunk is not None and len(decision.body) > HOP_BODY_MAX_BYTES:
            text = f"a replacement of {len(decision.body)} bytes, at most {HOP_BODY_MAX_BYTES} are taken"
            return Screened(malformed=text, audit=screened.audit), False
        # What names a chunk by its index is right for that chunk alone.
        is_lasting = verdict.request_body_mutation is None and verdict.response_body_mutation is None
        return screened, is_lasting or question is HEAD or question is HEAD_AND_HOST


def _is_quiet(screened: Screened) -> bool:
    """Nothing for an auditor, and no mutation: of two of one chunk the second is a failure."""
    decision = screened.decision
    if decision is None or decision.verb is not Verb.ALLOW or screened.audit is not None or screened.refused_ops:
        return False
    return decision.chunk is None or decision.chunk.editor < 0
