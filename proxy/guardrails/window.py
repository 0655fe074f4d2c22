"""One text that comes in pieces: what of it was inspected, what may go on, what is redacted.

    base        boundary        inspected       end          positions: characters since the text's begin
     |  decided    |  held back     |    new     |
     +-------------+----------------+------------+
                   <- window_chars ->

What is shown begins GUARDRAIL_CONTEXT_CHARS before the boundary, since in the middle of a longer number every number
can be found. The last `window_chars` of what was inspected are held back and inspected again with what follows: a
finding that is no longer than that is found whole, wherever the pieces end. A finding that reaches over the boundary
is held back from its first character until it has ended, however long it grows; who holds the events limits that.

    Whole   a text that is read when it is complete: arguments of a tool call, which are JSON

Kind: pure.
"""

from proxy.guardrails.inspect import Edit, merged
from proxy.guardrails.shapes import Part, Texts
from shared.defaults import GUARDRAIL_CONTEXT_CHARS, GUARDRAIL_REPORTED_MAX, GUARDRAIL_STEP_SHARE


class Window:
    """One channel of text. However small the pieces, each character is copied a few times only."""

    __slots__ = (
        "_base",
        "_edits",
        "_gone",
        "_new",
        "_reported",
        "_step",
        "_text",
        "_window",
        "boundary",
        "end",
        "inspected",
        "is_ended",
    )

    def __init__(self, window_chars: int) -> None:
        self._window = window_chars
        self._step = max(window_chars // GUARDRAIL_STEP_SHARE, 1)
        self._text = ""  # from `_base` on
        self._new: list[str] = []  # behind it
        self._base = 0
        self._gone = 0  # what stands before it has gone out
        self._edits: list[Edit] = []  # of what is in `_text`, in order
        self._reported: set[tuple[object, ...]] = set()
        self.end = 0  # behind the last character
        self.inspected = 0
        self.boundary = 0  # what stands before it is decided
        self.is_ended = False

    @property
    def shown_from(self) -> int:
        """Where `shown` begins."""
        return max(self.boundary - GUARDRAIL_CONTEXT_CHARS, 0)

    @property
    def shown(self) -> str:
        """What is to be inspected: all that is not decided, and a little before it."""
        if self._new:
            keep = max(self._gone - GUARDRAIL_CONTEXT_CHARS, 0)
            self._text = "".join((self._text[keep - self._base :], *self._new))
            self._base = keep
            self._new.clear()
        return self._text[self.shown_from - self._base :]

    @property
    def is_due(self) -> bool:
        """Whether it is worth an inspection now: the longer what is held back, the more must be new."""
        new = self.end - self.inspected
        share = (self.inspected - self.boundary) // GUARDRAIL_STEP_SHARE
        return new >= max(self._step, share) or (self.is_ended and new > 0)

    def add(self, text: str) -> tuple[int, int]:
        """One more piece; its place."""
        start = self.end
        self._new.append(text)
        self.end += len(text)
        self.is_ended = False
        return start, self.end

    def is_new(self, finding: tuple[object, ...], start: int, end: int) -> bool:
        """Whether this finding, by positions in `shown` (-1 = none), was not seen before."""
        at = self.shown_from
        seen = (*finding, start + at, end + at) if start >= 0 else finding
        if seen in self._reported:
            return False
        if len(self._reported) >= GUARDRAIL_REPORTED_MAX:
            self._reported.clear()
        self._reported.add(seen)
        return True

    def finish(self) -> None:
        """Nothing more comes: where all of it was inspected, nothing is held back."""
        self.is_ended = True
        if self.inspected == self.end:
            self.boundary = self.end

    def decide(self, length: int, edits: list[Edit], is_end: bool) -> None:
        """The first `length` characters of `shown` were inspected; `edits` by positions in it.

        What was decided before stays: of an edit that begins there, the rest is done.
        """
        begin, at = self.shown_from, self.boundary
        self.inspected = begin + length
        if edits:
            moved = [Edit(max(edit.start + begin, at), edit.end + begin, edit.text) for edit in edits]
            self._edits = merged([*self._edits, *(edit for edit in moved if edit.end > at)])
        boundary = self.inspected if is_end else max(self.inspected - self._window, at)
        for edit in self._edits:
            if edit.start < boundary < edit.end:
                boundary = max(edit.start, at)
        self.boundary = boundary

    def render(self, start: int, end: int) -> str:
        """What goes out in the place of these characters, which are decided. An edit's text goes where it begins."""
        out: list[str] = []
        at = start
        for edit in self._edits:
            if edit.start >= end:
                break
            if edit.end <= at:
                continue
            if edit.start >= at:
                out += (self._text[at - self._base : edit.start - self._base], edit.text)
            at = min(edit.end, end)
        out.append(self._text[at - self._base : end - self._base])
        return "".join(out)

    def forget(self, before: int) -> None:
        """These characters have gone out."""
        self._gone = before
        edits = self._edits
        if edits and edits[0].end <= before:
            self._edits = [edit for edit in edits if edit.end > before]


class Whole:
    """One channel that is inspected when it is complete."""

    __slots__ = ("_holder", "_pieces", "is_decided", "length", "texts")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._holder: list[str] = []
        self.texts = Texts()
        self.length = 0
        self.is_decided = False

    def add(self, text: str) -> bool:
        """One more piece; True = it is the first."""
        self._pieces.append(text)
        self.length += len(text)
        return len(self._pieces) == 1

    def parts(self) -> list[Part]:
        """The text in it; raises Uninspectable."""
        self._holder = ["".join(self._pieces)]
        self.texts.add_json(self._holder, 0)
        return self.texts.parts

    def edited(self) -> str | None:
        """All of it after edits; None = as it came."""
        self.texts.settle()
        made = self._holder[0] if self._holder else ""
        return made if made != "".join(self._pieces) else None
