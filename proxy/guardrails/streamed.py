"""Finds in one event of a model's stream what continues a text, what ends one, and what stands for itself.

    delta   text that goes on from event to event: a place in the event, and the channel that it is a piece of
    end     a channel, or all that begin like it, is complete
    whole   the rest of the event's text, by shapes.py: nothing of it goes on in another event

    OpenAI      choices[i].delta.*  choices[i].text                      end: finish_reason
    Responses   type response.*.delta, delta                             end: the same type's .done
    Anthropic   content_block_start/delta: text, thinking, partial_json  end: content_block_stop
                completion                                               end: stop_reason
    other       every string continues what stood in the same place      end: the stream's

Arguments of tool calls are JSON in pieces: such a channel is read when it is complete.

Kind: pure.
"""

from typing import Any, Final, NamedTuple

from proxy.guardrails.shapes import OPAQUE, WORDS, Texts, is_base64, is_word
from shared.defaults import GUARDRAIL_DEPTH_MAX
from shared.errors import Uninspectable

Channel = tuple[str | int, ...]

_ANTHROPIC: Final = frozenset(
    (
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "ping",
        "error",
    )
)
_PLACES: Final = ("output_index", "content_index", "summary_index")
_GOES_ON: Final = (None, "", "null")  # how servers say that a text has not ended
_DONE: Final = ("response.completed", "response.failed", "response.incomplete")


class Delta(NamedTuple):
    """A piece of a channel's text and its place in the event."""

    channel: Channel
    text: str
    container: Any
    key: Any
    is_json: bool


class Read:
    """What one event says."""

    __slots__ = ("deltas", "ends", "value", "whole")

    def __init__(self, value: Any) -> None:
        """Raises Uninspectable."""
        self.value = value
        self.deltas: list[Delta] = []
        self.ends: list[Channel] = []
        self.whole = Texts(value, is_completion=True)
        if not isinstance(value, dict):
            self._deltas(value, None, None, ("?",), 0)
        elif isinstance(value.get("choices"), list):
            self._choices(value)
        else:
            kind = value.get("type")
            kind = kind if isinstance(kind, str) else ""
            if kind.startswith("response."):
                self._response(value, kind)
            elif kind in _ANTHROPIC:
                self._block(value, kind)
            elif isinstance(value.get("completion"), str):
                self._completion(value)
            elif "error" in value:
                self._rest(value)
            else:
                self._deltas(value, None, None, ("?",), 0)

    def _choices(self, value: dict[str, Any]) -> None:
        for at, choice in enumerate(value["choices"]):
            if not isinstance(choice, dict):
                self.whole.add(value["choices"], at)
                continue
            index = choice.get("index")
            channel: Channel = ("choice", index if isinstance(index, int) else at)
            for key in ("delta", "text"):
                if choice.get(key) is not None:
                    self._deltas(choice[key], choice, key, (*channel, key), 1)
            self._rest(choice, "delta", "text")
            if choice.get("finish_reason") not in _GOES_ON:
                self.ends.append(channel)
        self._rest(value, "choices")

    def _block(self, value: dict[str, Any], kind: str) -> None:
        index = value.get("index")
        channel: Channel = ("block", index if isinstance(index, int) else -1)
        inner_name = {"content_block_start": "content_block", "content_block_delta": "delta"}.get(kind)
        inner = value.get(inner_name) if inner_name is not None else None
        if isinstance(inner, dict):
            going_on = [key for key in ("text", "thinking", "partial_json") if isinstance(inner.get(key), str)]
            for key in going_on:
                self._delta(inner[key], inner, key, (*channel, key), key == "partial_json")
            self._rest(inner, *going_on)
            self._rest(value, str(inner_name))
        else:
            self._rest(value)
        if kind == "content_block_stop":
            self.ends.append(channel)
        elif kind == "message_stop":
            self.ends.append(())

    def _response(self, value: dict[str, Any], kind: str) -> None:
        base, _, last = kind.rpartition(".")
        # Its id only where nothing else names the item: some gateways make up a new one for every event.
        item = value.get("item_id") if value.get("output_index") is None else None
        places = (str(item), *(str(value.get(name)) for name in _PLACES))
        delta = value.get("delta")
        if last == "delta" and isinstance(delta, (str, dict)):
            is_sound = "audio" in base and "transcript" not in base and isinstance(delta, str) and is_base64(delta)
            if isinstance(delta, dict):
                self._deltas(delta, value, "delta", (base, *places), 1)
            elif not is_sound:
                self._delta(delta, value, "delta", (base, *places), "arguments" in base)
            self._rest(value, "delta")
            return
        self._rest(value)
        if last == "done":
            self.ends.append((base, *places))
        elif kind in _DONE:
            self.ends.append(())

    def _completion(self, value: dict[str, Any]) -> None:
        self._delta(value["completion"], value, "completion", ("completion",), False)
        self._rest(value, "completion")
        if value.get("stop_reason") not in _GOES_ON:
            self.ends.append(("completion",))

    def _rest(self, value: dict[str, Any], *without: str) -> None:
        """All of this object that goes on nowhere."""
        rest = {key: item for key, item in value.items() if key not in without}
        self.whole.add_object(rest, value)

    def _deltas(self, value: Any, container: Any, key: Any, channel: Channel, depth: int) -> None:
        """Every string in it, each a piece of the channel of its place."""
        if depth > GUARDRAIL_DEPTH_MAX:
            raise Uninspectable("is nested too deeply")
        if isinstance(value, str):
            name = channel[-1]
            is_sound = name == "data" and channel[-2] == "audio" and is_base64(value)
            if (name in WORDS or name == "name") and is_word(value):
                return
            if not is_sound and not (name in OPAQUE and is_base64(value)):
                self._delta(value, container, key, channel, name == "arguments")
        elif isinstance(value, dict):
            for name, item in value.items():
                self._deltas(item, value, name, (*channel, name), depth + 1)
        elif isinstance(value, list):
            for at, item in enumerate(value):
                index = item.get("index") if isinstance(item, dict) else None
                self._deltas(item, value, at, (*channel, index if isinstance(index, int) else at), depth + 1)
        elif container is not None:
            self.whole.add(container, key)  # a number is whole

    def _delta(self, text: str, container: Any, key: Any, channel: Channel, is_json: bool) -> None:
        if text and container is not None:
            self.deltas.append(Delta(channel, text, container, key, is_json))
        elif text:  # an event that is one bare string
            raise Uninspectable("has an event that is no JSON object")
