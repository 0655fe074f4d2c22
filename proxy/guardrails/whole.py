"""Holds a whole body until its text was inspected: every prompt, and completions that are no event stream.

    take, take, end --> texts --Round--> block | edited | as it came

Where the text is, is found by shapes.py, what findings come to is judged by inspect.py. A body without a byte has no
text. Nothing of a body passes before all of it was inspected, so its length is bounded.

Kind: pure (but for what its flow does).
"""

import re
from typing import TYPE_CHECKING, Final

from proxy.chunks import Stage
from proxy.guardrails import refusals, strict
from proxy.guardrails.asking import Rail, Round
from proxy.guardrails.inspect import Joined, Judged, edited
from proxy.guardrails.shapes import Part, Texts, model_of
from shared.errors import Uninspectable

if TYPE_CHECKING:
    from proxy.flow import Flow

# Events or JSON in lines under a wrong name, UTF-16: the client would read another text than was inspected.
_IS_CODED: Final = re.compile(r"\0|(?:^|\r)\ufeff?(?:data:|[ \t]*[{\[][ \t]*[\"{\[])", re.M)

# Those in which ASCII is ASCII. JSON has none but UTF-8, yet some servers believe the field: UTF-7 hides every word.
_CHARSETS: Final = frozenset((b"", b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin1", b"windows-1252"))


class WholeStage(Stage):
    """A stage of a flow (proxy/flow.py)."""

    __slots__ = ("_chunks", "_is_begun", "_is_ended", "_model", "_plain", "_rail", "_size", "_texts")

    def __init__(self, flow: "Flow", rail: Rail, model: str = "") -> None:
        super().__init__(flow)
        self._rail = rail
        self._model = model  # of the request, where the body itself names none
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_ended = False
        self._is_begun = False
        self._texts = Texts()
        self._plain: list[str] = []  # the body where it is plain text

    def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._rail.max_bytes:
            most = self._rail.max_bytes
            self._refuse(Uninspectable(f"is longer than {most} bytes and cannot be inspected", is_too_large=True))
        elif not self._is_begun:
            self._chunks.append(data)

    def end(self) -> None:
        self._is_ended = True

    def settle(self) -> None:
        if self._is_ended and not self._is_begun:
            self._is_begun = True
            self._begin()

    def _begin(self) -> None:
        if not self._size:
            self._pass()
            return
        try:
            self._texts = self._read(b"".join(self._chunks))
        except Uninspectable as why:
            self._refuse(why)
            return
        parts = self._texts.parts
        if not parts:
            self._pass()
            return
        fixed = (at for at, part in enumerate(parts) if part.is_fixed)
        joined = Joined([part.text for part in parts], fixed)
        round = Round(self.flow, self._rail, joined, self._inspected)
        if round.start(model_of(self._texts.value) or self._model):
            self._inspected(round)

    def _read(self, body: bytes) -> Texts:
        is_completion = self._rail.part == "completion"
        if self.flow.charset not in _CHARSETS:
            raise Uninspectable("is in a charset that is not inspected")
        try:
            value = strict.parse(body)
        except strict.NotJson:
            if not is_completion or not self.flow.content_type.startswith(b"text/"):
                raise
            try:
                self._plain = [body.decode()]
            except UnicodeDecodeError:
                raise Uninspectable("is not UTF-8") from None
            if _IS_CODED.search(self._plain[0]) is not None:
                raise Uninspectable("is no plain text") from None
            texts = Texts()
            texts.parts.append(Part(self._plain[0], self._plain, 0))
            return texts
        return Texts(value, is_completion=is_completion).find()

    def _inspected(self, round: Round) -> None:
        if round.is_refused:
            return
        judged = round.judged()
        if judged.found:
            self._rail.watch.found(self.flow, self._rail.part, judged)
        if judged.blocked_by is not None:
            self.flow.refuse(refusals.blocked(self._rail.part, judged.blocked_by), self._rail.view.kind)
        elif judged.edits:
            self._edit(judged)
        else:
            self._pass()

    def _edit(self, judged: Judged) -> None:
        texts = self._texts
        for at, edits in judged.edits.items():
            part = texts.parts[at]
            part.put(edited(part.text, edits))
        texts.settle()
        if self.flow.edited(judged.found[0].agent):
            body = self._plain[0].encode() if self._plain else strict.dump(texts.value)
            self._chunks.clear()
            self._give([body])
        else:
            self._refuse(Uninspectable("cannot be redacted any more"))

    def _pass(self) -> None:
        """As it came, in the pieces in which it came."""
        chunks, self._chunks = self._chunks, []
        self._give(chunks)

    def _give(self, chunks: list[bytes]) -> None:
        for data in chunks:
            self.next.take(data)
        self.next.end()
        self.next.settle()

    def _refuse(self, why: Uninspectable) -> None:
        self._is_begun = True
        self._chunks.clear()
        self.flow.refuse(refusals.uninspectable(self._rail.part, why), self._rail.view.kind)
