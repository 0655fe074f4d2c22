"""Which words together, or which form of text, speak for an injection, and how much.

Rows only. A group looks at the neighbourhood of its anchor word and takes the first row whose parts are all there;
different groups add up (injection.py). A weight of 1.0 is what one unmistakable sentence is worth, and the usual
threshold.

Kind: table.
"""

import re
from typing import Final, NamedTuple

from wardgate_agents.guardrail.parts import Part as P
from wardgate_agents.guardrail.spans import Severity

CATEGORIES: Final[dict[str, Severity]] = {
    "instruction_override": "high",
    "role_change": "medium",
    "prompt_exfiltration": "high",
    "delimiter_injection": "high",
    "tool_abuse": "critical",
    "data_exfiltration": "critical",
    "jailbreak": "high",
    "obfuscation": "medium",
}


class Signal(NamedTuple):
    """One row. `need`: all of these parts in the neighbourhood, besides the anchor."""

    id: str
    category: str  # one of CATEGORIES, or the operator's
    need: int
    weight: float
    text: str


class Group(NamedTuple):
    """Rows about one anchor; the first that fits counts. `gap`: words to look ahead, `is_both`: and back."""

    anchor: int
    gap: int
    is_both: bool
    rows: tuple[Signal, ...]


_NONE: Final = 0
_IO, _RC, _PE, _DI = "instruction_override", "role_change", "prompt_exfiltration", "delimiter_injection"
_TA, _DE, _JB, _OB = "tool_abuse", "data_exfiltration", "jailbreak", "obfuscation"

GROUPS: Final[tuple[Group, ...]] = (
    Group(
        P.OVERRIDE,
        10,
        False,
        (
            Signal("override_earlier", _IO, P.SCOPE | P.OBJECT, 1.3, "earlier instructions are to be ignored"),
            Signal("override_your", _IO, P.YOUR | P.OBJECT, 1.2, "the model's instructions are to be ignored"),
            Signal("override_owner", _IO, P.OWNER | P.OBJECT, 1.1, "the operator's instructions are to be ignored"),
            Signal(
                "override_told", _IO, P.YOUR | P.EVERYTHING | P.TOLD, 1.2, "everything said before is to be ignored"
            ),
            Signal("override_prompt", _IO, P.SYSTEM_PROMPT, 1.1, "the system prompt is to be ignored"),
            Signal("override_everything", _IO, P.EVERYTHING | P.SCOPE, 1.1, "everything before is to be ignored"),
            Signal("override_safety", _IO, P.FILTER, 1.0, "safety rules are to be ignored"),
            Signal("override_instead", _IO, P.PRECEDING | P.INSTEAD, 1.1, "what stands above is to be replaced"),
            Signal("override_scope", _IO, P.PRECEDING, 0.9, "what stands above is to be ignored"),
            Signal("override_rules", _IO, P.OBJECT, 0.5, "rules are to be ignored"),
            Signal("override_before", _IO, P.SCOPE, 0.4, "something earlier is to be ignored"),
        ),
    ),
    Group(
        P.SET_ASIDE,
        10,
        False,
        (
            Signal("set_aside_earlier", _IO, P.SCOPE | P.OBJECT, 1.1, "earlier instructions are to be set aside"),
            Signal("set_aside_your", _IO, P.YOUR | P.OBJECT, 1.1, "the model's instructions are to be set aside"),
            Signal("set_aside_owner", _IO, P.OWNER | P.OBJECT, 1.0, "the operator's instructions are to be set aside"),
            Signal(
                "set_aside_told", _IO, P.YOUR | P.EVERYTHING | P.TOLD, 1.1, "everything said before is to be forgotten"
            ),
            Signal("set_aside_safety", _IO, P.FILTER, 1.0, "safety rules are to be got round"),
            Signal("set_aside_prompt", _IO, P.SYSTEM_PROMPT, 0.9, "the system prompt is to be set aside"),
            Signal("set_aside_everything", _IO, P.EVERYTHING | P.SCOPE, 0.8, "everything before is to be forgotten"),
            Signal("set_aside_rules", _IO, P.OBJECT, 0.35, "rules are to be set aside"),
        ),
    ),
    Group(
        P.FOLLOW,
        8,
        True,
        (
            Signal(
                "not_follow_prompt", _IO, P.NEGATION | P.SYSTEM_PROMPT, 1.1, "the system prompt is not to be followed"
            ),
            Signal(
                "not_follow_earlier",
                _IO,
                P.NEGATION | P.EARLIER | P.OBJECT,
                1.1,
                "earlier rules are not to be followed",
            ),
            Signal(
                "not_follow_owner",
                _IO,
                P.NEGATION | P.OWNER | P.OBJECT,
                1.1,
                "the operator's rules are not to be followed",
            ),
            Signal(
                "not_follow_your", _IO, P.NEGATION | P.YOUR | P.OBJECT, 1.0, "the model's rules are not to be followed"
            ),
            Signal("not_follow", _IO, P.NEGATION | P.OBJECT, 0.4, "rules are not to be followed"),
        ),
    ),
    Group(
        P.OFF,
        12,
        True,
        (
            Signal("safety_off", _JB, P.FILTER, 1.0, "safety filters are said to be off"),
            Signal("prompt_off", _IO, P.SYSTEM_PROMPT, 1.0, "the system prompt is said to be void"),
            Signal(
                "rules_off_ai",
                _IO,
                P.OBJECT | P.EARLIER | P.MACHINE,
                1.0,
                "a model is told that its instructions are void",
            ),
            Signal("rules_off_your", _IO, P.OBJECT | P.YOUR, 0.8, "the model's rules are said to be void"),
            Signal("rules_off", _IO, P.OBJECT | P.EARLIER, 0.7, "earlier instructions are said to be void"),
        ),
    ),
    Group(
        P.REVEAL,
        12,
        False,
        (
            Signal("reveal_your_prompt", _PE, P.YOUR | P.SYSTEM_PROMPT, 1.1, "the model's system prompt is asked for"),
            Signal("reveal_secret", _PE, P.YOUR | P.SECRET | P.OBJECT, 1.1, "hidden instructions are asked for"),
            Signal("reveal_verbatim", _PE, P.YOUR | P.OBJECT | P.VERBATIM, 1.05, "instructions are asked for verbatim"),
            Signal("reveal_given", _PE, P.YOUR | P.OBJECT | P.TOLD, 1.0, "given instructions are asked for"),
            Signal("leak_prompt", _PE, P.LEAK | P.SYSTEM_PROMPT, 1.05, "the system prompt is to be leaked"),
            Signal("reveal_the_prompt", _PE, P.YOUR | P.PROMPT, 1.0, "the model's prompt is asked for"),
            Signal("reveal_above", _PE, P.ABOVE, 1.0, "the text before the message is asked for"),
            Signal("reveal_prompt", _PE, P.SYSTEM_PROMPT, 0.75, "a system prompt is asked for"),
            Signal(
                "reveal_your_owner", _PE, P.YOUR | P.OWNER | P.OBJECT, 1.0, "the operator's instructions are asked for"
            ),
            Signal(
                "reveal_owner", _PE, P.SECRET | P.OWNER | P.OBJECT, 1.0, "the operator's instructions are asked for"
            ),
            Signal("reveal_hidden", _PE, P.SECRET | P.OBJECT, 0.75, "hidden instructions are asked for"),
            Signal("reveal_preceding", _PE, P.PRECEDING, 0.5, "the text before the message is asked for"),
            Signal("reveal_rules", _PE, P.YOUR | P.OBJECT, 0.5, "the model's instructions are asked for"),
        ),
    ),
    Group(
        P.ROLE,
        25,
        False,
        (
            Signal("role_machine_free", _RC, P.FREE | P.MACHINE, 0.75, "a model without limits as a role"),
            Signal("role_free_you", _RC, P.FREE | P.YOUR, 0.7, "a role in which the model has no limits"),
            Signal("role_free", _RC, P.FREE, 0.6, "a role without limits"),
            Signal("role_never", _RC, P.NEVER, 0.6, "a role that must not refuse"),
            Signal("role_machine", _RC, P.MACHINE, 0.35, "another role for the model"),
            Signal("role", _RC, _NONE, 0.3, "another role"),
        ),
    ),
    Group(
        P.FREE,
        12,
        True,
        (
            Signal("free_machine", _JB, P.MACHINE, 0.55, "a model without limits"),
            Signal("free", _JB, _NONE, 0.35, "no limits"),
        ),
    ),
    Group(
        P.MODE,
        14,
        True,
        (
            Signal("mode_free", _JB, P.FREE, 1.0, "a mode without limits"),
            Signal("mode_never", _JB, P.NEVER, 0.95, "a mode in which nothing is refused"),
            Signal("mode_safety", _JB, P.FILTER, 0.9, "a mode against safety rules"),
            Signal("mode_override", _JB, P.OVERRIDE, 0.8, "a mode in which rules are ignored"),
            Signal("mode", _JB, _NONE, 0.5, "a special mode"),
        ),
    ),
    Group(P.NEVER, 0, False, (Signal("never_refuse", _JB, _NONE, 0.5, "nothing may be refused"),)),
    Group(P.NEW_ORDER, 0, False, (Signal("new_orders", _IO, _NONE, 0.4, "new instructions"),)),
    Group(P.OBEY, 0, False, (Signal("obey", _IO, _NONE, 0.5, "obedience is asked for"),)),
    Group(P.READER, 0, False, (Signal("to_the_machine", _IO, _NONE, 0.7, "text for a model, not for a reader"),)),
    Group(P.SILENTLY, 0, False, (Signal("silently", _TA, _NONE, 0.35, "something is to be kept from the user"),)),
    Group(
        P.TOOL_VERB,
        20,
        True,
        (
            Signal("tool_silent", _TA, P.TOOL | P.SILENTLY, 0.9, "a tool is to be called unasked"),
            Signal("harm_silent", _TA, P.HARM | P.SILENTLY, 0.9, "harm is to be done unasked"),
            Signal("harm", _TA, P.HARM, 0.65, "a harmful command"),
            Signal("tool_data", _TA, P.TOOL | P.SENSITIVE | P.SEND, 0.7, "a tool is to send data"),
            Signal("tool", _TA, P.TOOL, 0.35, "a tool is to be called"),
            Signal("act_silently", _TA, P.SILENTLY, 0.5, "something is to be done unasked"),
        ),
    ),
    Group(
        P.SEND,
        14,
        True,
        (
            Signal("send_data", _DE, P.SENSITIVE | P.LINK, 0.7, "data are to be sent to a URL"),
            Signal("send_out", _DE, P.SILENTLY | P.LINK, 0.8, "something is to be sent to a URL unasked"),
            Signal("send_silently", _DE, P.SENSITIVE | P.SILENTLY, 0.7, "data are to be sent unasked"),
            Signal("send", _DE, P.SENSITIVE, 0.2, "data are to be sent"),
        ),
    ),
    Group(
        P.EMBED,
        24,
        True,
        (
            Signal("embed_data", _DE, P.SENSITIVE | P.LINK, 0.7, "data are to be put into a link"),
            Signal("embed", _DE, P.LINK, 0.3, "a link is to be put into the answer"),
        ),
    ),
    Group(P.OPENING, 0, False, (Signal("opening", _JB, _NONE, 0.35, "the answer's first words are dictated"),)),
    Group(P.LINK_OUT, 0, False, (Signal("link_out", _DE, _NONE, 0.55, "a link with a place for data"),)),
)
# One verb ignores one thing: what is met first in between decides, and takes these back.
RESET: Final = P.SCOPE | P.EVERYTHING | P.YOUR
DISGUISED: Final = Signal("disguised", _OB, _NONE, 0.3, "words written so that filters miss them")
BROKEN_UP: Final = Signal("broken_up", _IO, _NONE, 1.0, "instructions to ignore instructions, broken up")
ENCODED: Final = Signal("encoded", _OB, _NONE, 0.4, "an encoded text speaks to the model")
LINK_CARRIES: Final = Signal("link_carries", _DE, _NONE, 1.0, "an image link of a completion carries data out")


class Form(NamedTuple):
    """A signal by its form. Looked for only where `literal` occurs; both in lower case."""

    literal: str
    pattern: re.Pattern[str]
    signal: Signal


def _form(literal: str, pattern: str, name: str, weight: float, text: str) -> Form:
    return Form(literal, re.compile(pattern), Signal(name, _DI, _NONE, weight, text))


_CHAT_MARK = (
    r"<\|(?:im_start|im_end|system|user|assistant|end|endoftext|eot_id|start_header_id|end_header_id|begin_of_text)\|>"
)
FORMS: Final[tuple[Form, ...]] = (
    _form("<|", _CHAT_MARK, "chat_token", 0.5, "a chat template's token"),
    _form("<|", _CHAT_MARK + r"[^<]{0,40}" + _CHAT_MARK, "chat_tokens", 0.5, "a chat template's tokens"),
    _form("<|", r"<\|(?:im_start|start_header_id)\|> ?system|<\|system\|>", "chat_system", 0.5, "a forged system turn"),
    _form("<|", r"<\|(?:im_start|start_header_id)\|> ?(?:assistant|user)\b", "chat_turn", 0.5, "a forged turn"),
    _form("<</sys>>", r"<</sys>>", "sys_close", 0.5, "a forged system turn"),
    Form(
        "![",
        re.compile(r"!\[[^\]\n]{0,40}\]\(\s?https?://[^\s)]{1,200}[?&]\w{1,20}=[{<$\[]"),
        Signal("image_place", _DE, _NONE, 0.5, "an image link with a place for data"),
    ),
    Form(
        " now",
        re.compile(r"\byou(?: are|'re) \w{2,20}(?: \w{2,20})? now\b"),
        Signal("you_are_now", _RC, _NONE, 0.3, "another role"),
    ),
    Form(
        "a",
        re.compile(r"(?m)^(?:ai|llm|assistant|chatbot|gpt)s?(?: assistant| agent| model)?s?[:,] "),
        Signal("calls_the_machine", _IO, _NONE, 0.5, "text for a model, not for a reader"),
    ),
    _form("[inst]", r"\[inst\]", "inst_open", 0.5, "a chat template's token"),
    _form("[/inst]", r"\[/inst\]", "inst_close", 0.5, "a chat template's token"),
    _form("<<sys>>", r"<<sys>>", "sys_open", 0.6, "a forged system turn"),
    _form("_of_turn>", r"<(?:start|end)_of_turn>", "turn", 0.5, "a chat template's token"),
    _form("<start_of_turn>", r"<start_of_turn>(?:model|user|system)\b", "turn_role", 0.5, "a forged turn"),
    _form(
        "##",
        r"(?m)^#{2,4} ?system(?: (?:prompt|message|instructions?))?:?[ \t]{0,4}$",
        "head_system",
        0.7,
        "a forged system turn",
    ),
    _form(
        "##",
        r"(?m)^#{2,4} ?(?:assistant|user|human|response|instruction):?[ \t]{0,4}$",
        "head_turn",
        0.4,
        "a forged turn",
    ),
    _form("human:", r"\n\n ?human:", "human", 0.5, "a forged turn"),
    _form("assistant:", r"\n\n ?assistant:", "assistant", 0.5, "a forged turn"),
    _form("<system>", r"<system>", "tag_system", 0.6, "a forged system tag"),
    _form(
        "</",
        r"</(?:system|user_input|user_message|system_prompt|instructions|context|untrusted\w{0,20})>",
        "tag_close",
        0.4,
        "the end of a frame is forged",
    ),
    _form('"role"', r'"role"\s{0,4}:\s{0,4}"system"', "json_system", 0.75, "a forged system message"),
    _form(
        "[",
        r"\[(?:jailbreak|classic|dan|devmode|developer mode|unfiltered|unlocked)\]",
        "labels",
        0.4,
        "two answers are asked for",
    ),
    _form(
        "<!--",
        r"<!--\s{0,4}(?:ai|llms?|assistant|gpt|chatbot|system)\b",
        "comment",
        0.5,
        "a comment that speaks to a model",
    ),
    _form(
        "end of",
        r"\bend of (?:the )?(?:user|system )?\s?(?:input|prompt|message|instructions)\b",
        "end_of",
        0.6,
        "the end of a frame is forged",
    ),
    _form("system:", r"(?m)^system:", "line_system", 0.5, "a forged system turn"),
)
ALL_IDS: Final = frozenset(
    [row.id for group in GROUPS for row in group.rows]
    + [form.signal.id for form in FORMS]
    + [row.id for row in (DISGUISED, BROKEN_UP, ENCODED, LINK_CARRIES)]
)
