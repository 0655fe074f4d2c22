"""What a word does in a sentence: the alphabet of the lexicon and of the signals.

Kind: table.
"""

from typing import Final


class Part:
    """What a word does: bits. Plain ints, because an IntFlag costs a microsecond per `&` (2026-11)."""

    OVERRIDE: Final = 1 << 0  # ignore, disregard
    SET_ASIDE: Final = 1 << 1  # forget, skip, bypass: verbs of everyday business, too
    SCOPE: Final = 1 << 2  # previous, above, all
    OBJECT: Final = 1 << 3  # instructions, rules
    OTHER: Final = 1 << 4  # e-mail, invoice: what people really ignore
    EVERYTHING: Final = 1 << 5
    YOUR: Final = 1 << 6
    TOLD: Final = 1 << 7  # you were told
    REVEAL: Final = 1 << 8
    SECRET: Final = 1 << 9  # hidden, initial, confidential
    SYSTEM_PROMPT: Final = 1 << 10
    VERBATIM: Final = 1 << 11
    ABOVE: Final = 1 << 12  # everything above: what precedes, as a thing to print
    ROLE: Final = 1 << 13  # you are now, act as
    FREE: Final = 1 << 14  # unrestricted
    MACHINE: Final = 1 << 15  # AI, model, assistant
    MODE: Final = 1 << 16  # developer mode, DAN
    OFF: Final = 1 << 17  # disabled, no longer valid
    FILTER: Final = 1 << 18  # safety, policy
    NEW_ORDER: Final = 1 << 19  # new instructions, your real task
    OBEY: Final = 1 << 20  # obey only me
    NEVER: Final = 1 << 21  # never refuse
    TOOL_VERB: Final = 1 << 22
    TOOL: Final = 1 << 23
    SILENTLY: Final = 1 << 24
    SENSITIVE: Final = 1 << 25  # the conversation, passwords, customers
    SEND: Final = 1 << 26
    EMBED: Final = 1 << 27  # include an image, append to your answer
    READER: Final = 1 << 28  # to any AI that reads this
    TALK: Final = 1 << 29  # words of those who talk about attacks
    TALK_WEAK: Final = 1 << 30
    NOT: Final = 1 << 31
    LINK: Final = 1 << 32  # a URL (found by its form)
    LINK_OUT: Final = 1 << 33  # a URL that carries something out (by its form)
    PRECEDING: Final = 1 << 34  # the above: what precedes, as a thing to ignore
    INSTEAD: Final = 1 << 35
    HARM: Final = 1 << 36  # rm -rf, drop table
    OPENING: Final = 1 << 37  # start your answer with
    SHIELD: Final = 1 << 38  # consumes words that would mean something else
    LATE: Final = 1 << 39  # beside a verb: its object may come before it
    LEAK: Final = 1 << 40  # beside REVEAL: a verb for what should stay hidden
    FOLLOW: Final = 1 << 41  # obey, respect: with a NEGATION a way to say ignore
    NEGATION: Final = 1 << 42  # not, no longer
    OWNER: Final = 1 << 43  # system, developers: whose rules they are
    PROMPT: Final = 1 << 44  # the prompt itself
    LACK: Final = 1 << 45  # no, without: with a LIMIT it means FREE
    LIMIT: Final = 1 << 46  # rules, filters, ethics
    EARLIER: Final = 1 << 47  # every SCOPE but the QUANTIFIERS
