"""Runs the whole suite: what only waits side by side, and then alone what measures. `make test` without ARGS.

Most of the suite's time is processes that wait for each other. Tests of one process or of a few have generous
limits, so they share the machine; what compares rates or asserts bounds in time (ALONE) gets it undivided.
Every directory of tests is in exactly one part: what is not named is the first.

Kind: IO.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BESIDE: Final = (("tests/proxy",), ("tests/agentd", "tests/shared", "sdk/python/tests", "agents/tests"))
ALONE: Final = ("tests/e2e",)
NOTHING_COLLECTED: Final = 5


def first() -> list[str]:
    """The directories with tests that are in no other part."""
    named = {*ALONE, *(name for part in BESIDE for name in part)}
    places = [path for path in sorted((ROOT / "tests").iterdir()) if any(path.glob("test_*.py"))]
    return [name for path in places if (name := str(path.relative_to(ROOT))) not in named]


def main(args: list[str]) -> int:
    """The first exit code that is not 0; every part is run. What runs beside the first is shown after it."""
    pytest = [sys.executable, "-m", "pytest", *args]
    codes = []
    with contextlib.ExitStack() as stack:
        beside = []
        for number, part in enumerate(BESIDE):
            said = stack.enter_context(tempfile.TemporaryFile())
            # A cache of its own: two runs that write one would each forget what failed in the other.
            cache = f"cache_dir=.pytest_cache/beside-{number}"
            child = subprocess.Popen([*pytest, "-o", cache, *part], cwd=ROOT, stdout=said, stderr=said)
            stack.callback(child.wait)
            stack.callback(child.terminate)  # nothing, where it has ended
            beside.append((child, said))
        codes.append(subprocess.call([*pytest, *first()], cwd=ROOT))
        for child, said in beside:
            codes.append(child.wait())
            said.seek(0)
            sys.stdout.buffer.write(said.read())
            sys.stdout.flush()
    codes.append(subprocess.call([*pytest, "-o", "cache_dir=.pytest_cache/alone", *ALONE], cwd=ROOT))
    return next((code for code in codes if code not in (0, NOTHING_COLLECTED)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
