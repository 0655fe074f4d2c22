"""Reads the `.response` cases of this folder; see README.md."""

import re
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
_ESCAPE = re.compile(rb"\\(r|n|t|\\|x[0-9a-fA-F]{2})")
_REPEAT = re.compile(rb"\{(.+?)\*(\d+)\}")
_ONE = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}


@dataclass
class Case:
    """One file. `outcome`: "complete" or the reason of the failure; `fate` of the connection where complete."""

    name: str
    why: str
    method: bytes = b"GET"
    raw: bytes = b""
    is_closed_after: bool = False
    outcome: str = ""
    fate: str = ""
    informational: list[int] = field(default_factory=list)
    status: int = 0
    body: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)


def cases() -> list[Case]:
    """Every case, in order of name."""
    return [read(path) for path in sorted(FOLDER.glob("*.response"))]


def read(path: Path) -> Case:
    """Parse one file; a malformed one is a ValueError that names it."""
    why, *sections = re.split(rb"^--- ", path.read_bytes(), flags=re.M)
    case = Case(path.stem, why.decode().strip())
    for section in sections:
        title, _, text = section.partition(b"\n")
        words = title.split()
        lines = text.splitlines()
        if words[0] == b"request":
            case.method = words[1]
        elif words[0] == b"response":
            case.raw = unescaped(b"".join(lines))
            case.is_closed_after = words[1:] == [b"eof"]
        elif words[0] == b"outcome":
            _expect(case, [line for line in lines if line.strip()])
        else:
            raise ValueError(f"{path}: unknown section {title!r}")
    if not (case.why and case.outcome):
        raise ValueError(f"{path}: a case needs a sentence and an outcome")
    return case


def unescaped(text: bytes) -> bytes:
    """The bytes that a section's text stands for."""
    text = _REPEAT.sub(lambda m: m[1] * int(m[2]), text)
    return _ESCAPE.sub(lambda m: _ONE.get(m[1]) or bytes([int(m[1][1:], 16)]), text)


def _expect(case: Case, lines: list[bytes]) -> None:
    case.outcome, _, case.fate = lines[0].decode().partition(" ")
    for line in lines[1:]:
        first, _, rest = line.partition(b" ")
        if first.isdigit() and first < b"200":
            case.informational.append(int(first))
        elif first.isdigit():
            case.status = int(first)
            case.body = unescaped(rest)
        else:
            name, _, value = line.partition(b":")
            case.fields.append((name, unescaped(value.strip(b" "))))
