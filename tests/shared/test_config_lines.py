"""shared/config/lines.py: the scanner finds the same keys as tomllib, each on its line."""

import re
import tomllib
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config.lines import index


def paths_of(value, path=()):
    """Every path of a parsed document but the root."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return set()
    found = set()
    for key, item in items:
        found.add((*path, key))
        found |= paths_of(item, (*path, key))
    return found


EXAMPLE = '''\
top = 1
# [not.a.table]
"quoted key" = "a = 1 # no comment"
'literal.key' = \'C:\\\'

[a]
list = [ # comment ]
  1,
  "two]", # "
  { x = [3], y.z = 4 },
]
[a.deeper]
date = 1979-05-27 07:32:00
[[b]]
text = """
[c]
d = 1 \\"""
""""
[b.sub]
k.l = 1

[[b]]
text2 = \'\'\'
[[b]]\'\'\'\'
k = true
"\\u0041\\"" = 2
[[b.inner]]
x = 1
[[b.inner]]
x = 2
'''

LINES = {
    ("top",): 1,
    ("quoted key",): 3,
    ("literal.key",): 4,
    ("a",): 6,
    ("a", "list"): 7,
    ("a", "list", 0): 8,
    ("a", "list", 1): 9,
    ("a", "list", 2): 10,
    ("a", "list", 2, "x"): 10,
    ("a", "list", 2, "x", 0): 10,
    ("a", "list", 2, "y"): 10,
    ("a", "list", 2, "y", "z"): 10,
    ("a", "deeper"): 12,
    ("a", "deeper", "date"): 13,
    ("b",): 14,
    ("b", 0): 14,
    ("b", 0, "text"): 15,
    ("b", 0, "sub"): 19,
    ("b", 0, "sub", "k"): 20,
    ("b", 0, "sub", "k", "l"): 20,
    ("b", 1): 22,
    ("b", 1, "text2"): 23,
    ("b", 1, "k"): 25,
    ("b", 1, 'A"'): 26,
    ("b", 1, "inner"): 27,
    ("b", 1, "inner", 0): 27,
    ("b", 1, "inner", 0, "x"): 28,
    ("b", 1, "inner", 1): 29,
    ("b", 1, "inner", 1, "x"): 30,
}


def test_every_key_of_a_document_with_all_of_tomls_forms_has_its_line():
    assert paths_of(tomllib.loads(EXAMPLE)) == set(LINES)
    assert index(EXAMPLE) == LINES


def test_windows_line_ends_count_once():
    assert index(EXAMPLE.replace("\n", "\r\n")) == LINES


# --- against tomllib -------------------------------------------------------------------------------
# Documents are written with key tokens k1, k2, ... and item tokens 1001, 1002, ...: a token occurs once,
# so the line it stands on is the line that the scanner must tell.

STRINGS = (
    '"plain"',
    "'lit # [x]'",
    '"esc \\" ] } = \\\\"',
    '"""m1\n[x]\n= "q" ""\\""""',
    "'''m2\n' ''\n[[y]]'''",
    '""""""',
    "''''''",
)
SCALARS = ("-1.5e3", "true", "0x1F", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00", "inf")
GAPS = ("", " ", "\n", ' # comment ] } [[z]] "\n', "\n\n\t")
KEYS = ("{}", '"{}"', "'{}'", '"\\t{}"')


class Writer:
    """Draws a document piece by piece."""

    def __init__(self, draw):
        self.draw = draw
        self.numbers = count(1)
        self.items = count(1001)

    def one_of(self, choices):
        return self.draw(st.sampled_from(choices))

    def key(self):
        return self.one_of(KEYS).format(f"k{next(self.numbers)}")

    def dotted(self):
        return self.one_of((".", " . ")).join(self.key() for _ in range(self.draw(st.integers(1, 3))))

    def value(self, depth):
        kind = self.draw(st.integers(0, 3 if depth else 1))
        if kind == 0:
            return self.one_of(STRINGS)
        if kind == 1:
            return self.one_of(SCALARS)
        if kind == 2:
            entries = []
            for _ in range(self.draw(st.integers(0, 3))):
                token = str(next(self.items))
                entries.append(token if self.draw(st.booleans()) else f"[{token}, {self.value(depth - 1)}]")
            gap = self.one_of(GAPS)
            comma = "," if entries and self.draw(st.booleans()) else ""
            return f"[{gap}" + f",{gap}".join(entries) + f"{comma}{gap}]"
        pairs = [f"{self.dotted()} = {self.value(depth - 1)}" for _ in range(self.draw(st.integers(0, 3)))]
        return "{" + ", ".join(pairs) + "}"

    def pair(self):
        return f"{self.dotted()} = {self.value(3)}{self.one_of(('', ' # end', '   '))}\n"

    def document(self):
        parts = []
        arrays = []
        for _ in range(self.draw(st.integers(0, 8))):
            kind = self.draw(st.integers(0, 4))
            if kind == 0:
                parts.append(f"[{self.dotted()}]\n")
            elif kind == 1:
                arrays.append(self.key())
                parts.append(f"[[ {arrays[-1]} ]]\n")
            elif kind == 2 and arrays:
                name = self.one_of(arrays)
                parts.append(
                    self.one_of((f"[[{name}]]\n", f"[{name}.{self.dotted()}]\n", f"[[{name}.{self.key()}]]\n"))
                )
            elif kind == 3:
                parts.append(self.one_of(GAPS) + "\n")
            else:
                parts.append(self.pair())
        return "".join(parts)


documents = st.composite(lambda draw: Writer(draw).document())()


@settings(max_examples=300, deadline=None)
@given(documents)
def test_the_scanner_finds_what_tomllib_finds_on_the_line_where_it_stands(text):
    expected = paths_of(tomllib.loads(text))
    found = index(text)
    assert set(found) == expected
    for path, line in found.items():
        if isinstance(path[-1], str):
            # A token stands once, but for the name of an array of tables: each of its headers repeats it.
            token = path[-1].strip()
            assert line in {text.count("\n", 0, m.start()) + 1 for m in re.finditer(rf"{token}\b", text)}


@settings(max_examples=200, deadline=None)
@given(documents)
def test_array_entries_are_on_their_lines(text):
    document = tomllib.loads(text)
    for path, line in index(text).items():
        value = document
        for part in path:
            value = value[part]
        if isinstance(path[-1], int) and isinstance(value, int) and value > 1000:
            assert str(value) in text.split("\n")[line - 1]


@given(st.text(st.characters(codec="utf-8"), max_size=200) | st.text("[]{}='\"\\.,#ak1\n ", max_size=60))
def test_no_text_makes_it_raise_or_hang(text):
    lines = index(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_absurd_nesting_is_survived():
    index("a = " + "[" * 5_000 + "]" * 5_000)
    index(".".join(["a"] * 20_000) + " = 1")
    index('a = """' + '\\"' * 50_000)
