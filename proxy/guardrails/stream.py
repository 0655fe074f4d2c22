"""Passes a model's event stream on, each event when all of its text was inspected.

    bytes --SseParser--> events --Read--> held, in order --(windows and wholes decided)--> next stage

An event without text goes at once, unless one before it waits. Texts are told apart by channel (streamed.py) and
inspected with a window (window.py), so that where the pieces end does not matter. One question is out at a time; it
shows every text that is due. An event of which nothing was redacted goes on in the very bytes it came in. What is
no JSON, and no `[DONE]`, is refused: nothing passes unseen.

Kind: pure (but for what its flow does).
"""

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.chunks import Stage
from proxy.guardrails import refusals, strict
from proxy.guardrails.asking import Rail, Round
from proxy.guardrails.inspect import Edit, Found, Joined, Judged, edited
from proxy.guardrails.shapes import Part, Texts, model_of
from proxy.guardrails.sse import Event, SseParser
from proxy.guardrails.streamed import Channel, Delta, Read
from proxy.guardrails.window import Whole, Window
from shared.defaults import (
    GUARDRAIL_CHANNELS_MAX,
    GUARDRAIL_CHANNELS_SWEPT,
    GUARDRAIL_EVENT_BYTES,
    GUARDRAIL_HELD_SHARE,
)
from shared.errors import Uninspectable

if TYPE_CHECKING:
    from proxy.flow import Flow

_DONE: Final = b"[DONE]"


class _Piece(NamedTuple):
    """A delta of a held event and where its text stands in its window."""

    window: Window
    start: int
    end: int
    delta: Delta


class _Held:
    """An event that is not out yet."""

    __slots__ = ("event", "is_edited", "is_seen", "pieces", "value", "whole", "wholes")

    def __init__(self, event: Event, read: Read | None) -> None:
        self.event = event
        self.value = read.value if read is not None else None
        self.whole = read.whole if read is not None else Texts()
        self.pieces: list[_Piece] = []
        self.wholes: list[tuple[Whole, Delta, bool]] = []  # the last: whether it is the first piece
        self.is_seen = not self.whole.parts  # what stands in it for itself was inspected
        self.is_edited = False

    @property
    def may_go(self) -> bool:
        if not self.is_seen:
            return False
        for piece in self.pieces:
            if piece.window.boundary < piece.end:
                return False
        return all(whole.is_decided for whole, _, _ in self.wholes)


class _Shown(NamedTuple):
    """Whose text the n-th one of a question is: a window's, or a part of an event (`held`) or a tool call."""

    window: Window | None
    part: Part | None
    held: _Held | None = None


class StreamStage(Stage):
    """A stage of a flow (proxy/flow.py)."""

    __slots__ = (
        "_bytes",
        "_complete",
        "_ended",
        "_is_asking",
        "_is_done",
        "_model",
        "_most_bytes",
        "_owners",
        "_parser",
        "_pressed",
        "_queue",
        "_rail",
        "_shown",
        "_wholes",
        "_windows",
    )

    def __init__(self, flow: "Flow", rail: Rail, model: str = "") -> None:
        super().__init__(flow)
        self._rail = rail
        self._model = model
        self._parser = SseParser(rail.max_bytes)
        self._queue: deque[_Held] = deque()
        self._bytes = 0  # of the held events
        self._most_bytes = max(GUARDRAIL_HELD_SHARE * rail.max_bytes, 2 * rail.window_chars * GUARDRAIL_EVENT_BYTES)
        self._windows: dict[Channel, Window] = {}
        self._wholes: dict[Channel, Whole] = {}
        self._complete: list[Whole] = []  # taken from there, and not shown yet
        self._shown: list[_Shown] = []
        self._owners: tuple[list[_Held], list[Whole]] = ([], [])  # what else the question is about
        self._is_asking = False
        self._pressed = 0  # bytes that came while a question is out
        self._ended = False
        self._is_done = False

    # --- in ---------------------------------------------------------------------------------------

    def start(self) -> None:
        # Coded bytes that have gone cannot be redacted any more: such a stream goes on without its coding.
        if self._rail.may_redact and not self.flow.is_plain:
            self.flow.edited("")

    def take(self, data: bytes) -> None:
        if self._is_done:
            return
        if self._is_asking:
            self._pressed += len(data)
            self.flow.pressure(len(data))
        try:
            for event in self._parser.feed(data):
                self._accept(event)
        except Uninspectable as why:
            self._refuse(why)

    def end(self) -> None:
        if self._is_done:
            return
        self._ended = True
        try:
            for event in self._parser.end():
                self._accept(event)
            self._end_channels(())
        except Uninspectable as why:
            self._refuse(why)

    def settle(self) -> None:
        while not self._is_done and not self.flow.is_over:
            self._pass_on()
            if self._is_asking or self._is_done or not self._ask():
                break
        self.next.settle()

    def _accept(self, event: Event) -> None:
        if event.is_strange:  # JSON under the wrong name would pass as an event without data
            raise Uninspectable("has a line that is none of an event's")
        data = event.data
        read = None
        if data is not None and data.strip() not in (b"", _DONE):
            read = Read(strict.parse(data))
            self._model = self._model or model_of(read.value)
        elif data is not None and data.strip() == _DONE:
            self._end_channels(())
        held = _Held(event, read)
        self._bytes += len(event.raw)
        if self._bytes > self._most_bytes:
            raise Uninspectable("holds back too much to be inspected", is_too_large=True)
        self._queue.append(held)
        if read is None:
            return
        for delta in read.deltas:
            if delta.is_json:
                whole = self._wholes.get(delta.channel)
                if whole is None:
                    whole = self._wholes[delta.channel] = Whole()
                held.wholes.append((whole, delta, whole.add(delta.text)))
                if whole.length > self._rail.max_bytes:
                    raise Uninspectable(f"has tool arguments of more than {self._rail.max_bytes} bytes")
            else:
                window = self._windows.get(delta.channel)
                if window is None:
                    window = self._windows[delta.channel] = Window(self._rail.window_chars)
                held.pieces.append(_Piece(window, *window.add(delta.text), delta))
        for channel in read.ends:
            self._end_channels(channel)

    def _end_channels(self, channel: Channel) -> None:
        """All whose name begins like this are complete."""
        length = len(channel)
        for name, window in self._windows.items():
            if name[:length] == channel:
                window.finish()
        for name in [name for name in self._wholes if name[:length] == channel]:
            self._complete.append(self._wholes.pop(name))
        if len(self._windows) + len(self._wholes) > GUARDRAIL_CHANNELS_SWEPT:  # what goes on later begins anew
            self._windows = {name: one for name, one in self._windows.items() if one.boundary < one.end}
            if len(self._windows) + len(self._wholes) > GUARDRAIL_CHANNELS_MAX:
                raise Uninspectable("has too many texts at once", is_too_large=True)

    # --- asking -----------------------------------------------------------------------------------

    def _ask(self) -> bool:
        """Show what is due; True = it is decided already."""
        try:
            texts = self._due()
        except Uninspectable as why:
            self._refuse(why)
            return False
        if not texts:
            return False
        fixed = (at for at, shown in enumerate(self._shown) if shown.part is not None and shown.part.is_fixed)
        round = Round(self.flow, self._rail, Joined(texts, fixed), self._answered)
        self._is_asking = True
        if round.start(self._model):
            self._take(round)
            return True
        return False

    def _due(self) -> list[str]:
        """The texts to be shown now; who they belong to goes into `_shown` and `_owners`."""
        shown: list[_Shown] = []
        events: list[_Held] = []
        wholes: list[Whole] = []
        room = self._rail.max_bytes
        for window in self._windows.values():
            if window.is_due and room > 0:
                shown.append(_Shown(window, None))
                room -= len(window.shown)
        while self._complete and room > 0:
            whole = self._complete.pop(0)
            shown += (_Shown(None, part) for part in whole.parts())
            wholes.append(whole)
            room -= whole.length
        for held in self._queue:
            if room <= 0:
                break
            if not held.is_seen:
                shown += (_Shown(None, part, held) for part in held.whole.parts)
                events.append(held)
                room -= sum(len(part.text) for part in held.whole.parts)
        self._shown = shown
        self._owners = (events, wholes)
        if not shown:
            for whole in wholes:
                whole.is_decided = True
            if wholes:
                self._pass_on()
                return self._due()  # there may be more than there was room for
        return [one.window.shown if one.window is not None else one.part.text if one.part else "" for one in shown]

    def _answered(self, round: Round) -> None:
        self._take(round)
        self.settle()

    def _take(self, round: Round) -> None:
        self._is_asking = False
        if self._pressed:
            pressed, self._pressed = self._pressed, 0
            self.flow.pressure(-pressed)
        if round.is_refused or self._is_done:
            self._is_done = True
            return
        judged = round.judged()
        new = self._new(judged, round.joined)
        if new.found:
            self._rail.watch.found(self.flow, self._rail.part, new)
        if judged.blocked_by is not None:
            self._is_done = True
            self.flow.refuse(refusals.blocked(self._rail.part, judged.blocked_by), self._rail.view.kind)
            return
        if judged.edits and not self.flow.edited(judged.found[0].agent):
            self._refuse(Uninspectable("cannot be redacted any more"))
            return
        self._apply(judged, round.joined)

    def _new(self, judged: Judged, joined: Joined) -> Judged:
        """Without what was accounted for already: the end of a window is inspected again."""
        found: list[Found] = []
        for one in judged.found:
            at = joined.number_at(one.start)
            begin = joined.starts[at] if one.start >= 0 else 0
            window = self._shown[at].window
            what = (one.agent, one.inspection, one.category, one.action)
            if window is None or window.is_new(what, one.start - begin, one.end - begin):
                found.append(one)
        return judged._replace(found=tuple(found))

    def _apply(self, judged: Judged, joined: Joined) -> None:
        for at, shown in enumerate(self._shown):
            edits: list[Edit] = judged.edits.get(at, [])
            if shown.window is not None:
                length = len(joined.texts[at])
                window = shown.window
                is_end = window.is_ended and window.shown_from + length == window.end
                window.decide(length, edits, is_end)
                if window.inspected - window.boundary > self._rail.max_bytes:
                    self._refuse(Uninspectable("has a finding that is too long", is_too_large=True))
                    return
            elif edits and shown.part is not None:
                shown.part.put(edited(shown.part.text, edits))
                if shown.held is not None:
                    shown.held.is_edited = True
        for held in self._owners[0]:
            held.is_seen = True
        for whole in self._owners[1]:
            whole.is_decided = True

    # --- out --------------------------------------------------------------------------------------

    def _pass_on(self) -> None:
        queue = self._queue
        while queue and queue[0].may_go:
            held = queue.popleft()
            self._bytes -= len(held.event.raw)
            self.next.take(self._made(held))
        if self._ended and not queue:
            self._is_done = True
            self.next.end()

    def _made(self, held: _Held) -> bytes:
        """The event as it goes on."""
        is_edited = held.is_edited
        for window, start, end, delta in held.pieces:
            text = window.render(start, end)
            window.forget(end)
            if text != delta.text:
                delta.container[delta.key] = text
                is_edited = True
        for whole, delta, is_first in held.wholes:
            made = whole.edited()
            if made is not None:
                delta.container[delta.key] = made if is_first else ""
                is_edited = True
        if not is_edited:
            return held.event.raw
        held.whole.settle()
        return held.event.rewritten(strict.dump(held.value))

    def _refuse(self, why: Uninspectable) -> None:
        self._is_done = True
        self._queue.clear()
        self.flow.refuse(refusals.uninspectable(self._rail.part, why), self._rail.view.kind)
