"""Finds the text in a body that goes to a language model or comes from one, and puts edited text back.

Every string is text, in whatever field, unless it is known not to be: so a field that this module has never heard
of is inspected, and so is a known one under another spelling, which some servers accept. Known are the bodies of
OpenAI (chat completions, completions, responses, embeddings) and Anthropic (messages, complete), by their fields:

    not text        ids, roles, types, models and the like while they look like one word; pictures, sound and
                    video in base64; signatures and encrypted content; log probabilities of completions (dropped
                    when the text beside them is redacted: they spell it)
    JSON in text    `arguments` of tool calls: the strings in it are inspected one by one, unescaped
    text in base64  data of a text/* type: inspected decoded, refused where it is not UTF-8
    keys            of any object, unless they look like a name; they cannot be redacted
    numbers         whole ones of GUARDRAIL_NUMBER_DIGITS or more, however written, unless they are times or seeds
    tokens          a prompt given as token numbers or embeddings cannot be inspected: Uninspectable

What is done about the text stands in inspect.py; streams in streamed.py.

Kind: pure.
"""

import re
from base64 import b64decode, b64encode
from typing import Any, Final

from proxy.guardrails import strict
from shared.defaults import GUARDRAIL_DEPTH_MAX, GUARDRAIL_MODEL_CHARS, GUARDRAIL_NUMBER_DIGITS, GUARDRAIL_VALUES_MAX
from shared.errors import Uninspectable

# Fields of the protocols whose values are words of the protocols. A value with a space is text wherever it is.
WORDS: Final = frozenset(
    (
        *("model", "role", "type", "id", "object", "tool_call_id", "tool_use_id", "call_id", "item_id", "response_id"),
        *("previous_response_id", "file_id", "container_id", "batch_id", "request_id", "system_fingerprint"),
        *("finish_reason", "stop_reason", "service_tier", "status", "format", "detail", "media_type", "mime_type"),
        *("tool_choice", "truncation", "phase", "effort"),
    )
)
OPAQUE: Final = frozenset(["signature", "encrypted_content", "obfuscation", "redacted_thinking", "b64_json"])
NUMBERS: Final = frozenset(("created", "created_at", "completed_at", "expires_at", "seed"))
TOKENS: Final = frozenset(["prompt", "input", "prompt_token_ids", "prompt_embeds", "input_ids", "inputs"])
_WORD: Final = re.compile(r"(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_.:/-]{1,200}\Z")  # with a letter: else it may be a number
_KEY: Final = re.compile(  # a name: no sentence, and no number with a letter to it
    rf"(?=.{{0,64}}\Z)(?!(?:[^0-9]*[0-9]){{{GUARDRAIL_NUMBER_DIGITS}}})[A-Za-z0-9$]*(?:[_.-][A-Za-z0-9$]*){{0,4}}\Z"
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=_-]*\Z")  # on one line: words, one a line, are no picture
_DATA_URL: Final = re.compile(r"data:(image|audio|video|text)/[A-Za-z0-9.+-]+(?:;[A-Za-z0-9=._-]+)*;base64,", re.I)
_URLS: Final = frozenset(("url", "image_url", "video_url", "audio_url", "file_data"))
_MEDIA: Final = ("image/", "audio/", "video/")
_PLAIN_BASE64: Final = str.maketrans("-_", "+/")
_LONG_NUMBER: Final = 10 ** (GUARDRAIL_NUMBER_DIGITS - 1)


class Document:
    """JSON that stands as a string in other JSON: written back when something in it was edited."""

    __slots__ = ("container", "is_edited", "key", "value")

    def __init__(self, value: Any, container: Any, key: Any) -> None:
        self.value = value
        self.container = container
        self.key = key
        self.is_edited = False


class Part:
    """One text and its place."""

    __slots__ = ("before", "container", "document", "is_base64", "is_fixed", "key", "text")

    def __init__(self, text: str, container: Any, key: Any, document: Document | None = None) -> None:
        self.text = text
        self.container = container
        self.key = key
        self.document = document
        self.is_fixed = False  # a key: can be inspected, not replaced
        self.is_base64 = False
        self.before = ""  # of base64: what stands before the data

    def put(self, text: str) -> None:
        """Another text in its place."""
        if self.is_base64:
            text = self.before + b64encode(text.encode()).decode()
        self.container[self.key] = text
        if self.document is not None:
            self.document.is_edited = True


class Texts:
    """All text of one JSON value, in the order in which it stands there."""

    def __init__(self, value: Any = None, *, is_completion: bool = False) -> None:
        self.value = value
        self.parts: list[Part] = []
        self._documents: list[Document] = []
        self._log_probabilities: list[dict[str, Any]] = []
        self._is_completion = is_completion
        self._values = 0

    def find(self) -> "Texts":
        """Look through the whole value; raises Uninspectable."""
        holder = [self.value]
        self._look(self.value, holder, 0, "", 0, None, False)
        self.value = holder[0]
        return self

    def add(self, container: Any, key: Any) -> None:
        """Look through what stands at one place of it."""
        self._look(container[key], container, key, key if isinstance(key, str) else "", 1, None, False)

    def add_json(self, container: Any, key: Any) -> None:
        """A string that may be JSON: its strings, or itself where it is none."""
        self._embedded(container[key], container, key, 1)

    def add_object(self, some: dict[str, Any], value: dict[str, Any]) -> None:
        """Look through `some` of the members of an object."""
        self._object(some, value, "", 1, None, False)

    def settle(self) -> None:
        """After parts were put: write edited documents back into their strings, drop what spells the old text."""
        for document in self._documents:
            if document.is_edited:
                document.container[document.key] = strict.dump_text(document.value)
        for choice in self._log_probabilities:
            choice["logprobs"] = None

    # --- the walk -----------------------------------------------------------------------------------

    def _count(self, values: int = 1) -> None:
        self._values += values
        if self._values > GUARDRAIL_VALUES_MAX:
            raise Uninspectable(f"has more than {GUARDRAIL_VALUES_MAX} values", is_too_large=True)

    def _look(
        self, value: Any, container: Any, key: Any, name: str, depth: int, document: Document | None, is_data: bool
    ) -> None:
        """`name`: the field that it is in, "" inside tool arguments; `is_data`: no field there means anything."""
        if isinstance(value, str):
            self._count()
            if value and (is_data or not self._is_known(value, container, name)):
                if name == "arguments" and not is_data:
                    self._embedded(value, container, key, depth)
                elif is_data or not self._decoded(value, container, key, name):
                    self.parts.append(Part(value, container, key, document))
        elif isinstance(value, dict):
            self._count()
            self._object(value, value, name, depth, document, is_data)
        elif isinstance(value, list):
            self._count(1 + len(value) // (4 if is_data else 10))  # numbers cost less than texts
            if depth > GUARDRAIL_DEPTH_MAX:
                raise Uninspectable("is nested too deeply")
            if not is_data and name.lower() in TOKENS and depth <= 2 and not self._is_completion:
                _refuse_tokens(value)
            for at, item in enumerate(value):
                if isinstance(item, (str, dict, list)) or is_long_number(item):
                    self._look(item, value, at, name, depth + 1, document, is_data)
        elif is_long_number(value) and (is_data or name not in NUMBERS):
            self._count()
            self.parts.append(Part(str(int(value)), container, key, document))

    def _object(
        self,
        some: dict[str, Any],
        value: dict[str, Any],
        name: str,
        depth: int,
        document: Document | None,
        is_data: bool,
    ) -> None:
        if depth > GUARDRAIL_DEPTH_MAX:
            raise Uninspectable("is nested too deeply")
        self._count(len(some) // 2)
        for key, item in some.items():
            if _KEY.match(key) is None:
                self._count()
                part = Part(key, value, key, document)
                part.is_fixed = True
                self.parts.append(part)
            if is_data:
                self._look(item, value, key, "", depth + 1, document, True)
            elif key.lower() == "prompt_embeds" and item and not self._is_completion:
                raise Uninspectable("gives its prompt as embeddings, which cannot be inspected")
            elif key == "logprobs" and self._is_completion and item is not None:
                self._log_probabilities.append(value)
            elif not (isinstance(item, str) and self._is_opaque(item, value, key, name)):
                is_tool_input = key in ("input", "arguments", "args") and isinstance(item, dict)
                self._look(item, value, key, key, depth + 1, document, is_tool_input)

    def _is_opaque(self, item: str, value: dict[str, Any], key: str, name: str) -> bool:
        return (key in OPAQUE or (key == "data" and _is_media(value, name))) and is_base64(item)

    def _is_known(self, value: str, container: Any, name: str) -> bool:
        if name in WORDS:
            return is_word(value)
        found = _DATA_URL.match(value) if name in _URLS else None  # elsewhere it is what a model reads
        return found is not None and found[1].lower() != "text" and _BASE64.match(value, found.end()) is not None

    def _decoded(self, value: str, container: Any, key: Any, name: str) -> bool:
        """Whether it is text in base64, and readable: then its part is added."""
        found = _DATA_URL.match(value)
        before = value[: found.end()] if found is not None else ""
        if found is None:
            if name != "data" or not isinstance(container, dict) or container.get("type") != "base64":
                return False
            if not str(container.get("media_type", "")).lower().startswith("text/"):
                return False
        data = "".join(value[len(before) :].split()).translate(_PLAIN_BASE64).rstrip("=")  # as lenient readers do
        try:
            text = b64decode(data + "=" * (-len(data) % 4), validate=True).decode()
        except UnicodeDecodeError:
            if found is not None and (name not in _URLS or found[1].lower() != "text"):
                return False  # nobody takes it for text but as it stands there
            raise Uninspectable("has text in base64 that is not UTF-8") from None
        except ValueError:
            return False
        part = Part(text, container, key)
        part.is_base64, part.before = True, before
        self.parts.append(part)
        return True

    def _embedded(self, text: str, container: Any, key: Any, depth: int) -> None:
        try:
            value = strict.parse_text(text)
        except strict.NotJson:
            self.parts.append(Part(text, container, key))
            return
        if not isinstance(value, (dict, list)):
            self.parts.append(Part(text, container, key))
            return
        document = Document(value, container, key)
        self._documents.append(document)
        self._look(value, None, None, "", depth + 1, document, True)


def is_long_number(value: Any) -> bool:
    """Whether it could be a card's: 4111111111111111, 4.111111111111111e15."""
    if type(value) is float:
        return abs(value) >= _LONG_NUMBER and value.is_integer()
    return type(value) is int and abs(value) >= _LONG_NUMBER


def is_word(value: str) -> bool:
    """Whether it looks like an id or a word of a protocol."""
    return _WORD.match(value) is not None


def is_base64(value: str) -> bool:
    """Whether nothing in it is not base64."""
    return _BASE64.match(value) is not None


def _is_media(value: dict[str, Any], name: str) -> bool:
    """Whether the `data` in this object is a picture, sound or a film."""
    if value.get("type") == "redacted_thinking":
        return True
    if value.get("type") == "base64":
        return str(value.get("media_type", "")).lower().startswith(_MEDIA)
    return name in ("input_audio", "audio")


def _refuse_tokens(value: list[Any]) -> None:
    for item in value:
        numbers = item if isinstance(item, list) else (item,)
        if any(isinstance(number, (int, float)) for number in numbers):
            raise Uninspectable("gives its prompt as numbers, which cannot be inspected")


def model_of(value: Any) -> str:
    """The model that a body names; "" where it names none."""
    if not isinstance(value, dict):
        return ""
    model = value.get("model")
    if not isinstance(model, str):
        for name in ("message", "response"):  # Anthropic's message_start; OpenAI's response.created
            inner = value.get(name)
            model = inner.get("model") if isinstance(inner, dict) else None
            if isinstance(model, str):
                break
    return model[:GUARDRAIL_MODEL_CHARS] if isinstance(model, str) else ""
