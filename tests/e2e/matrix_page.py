"""Writes docs/reliability.md from the matrix and the numbers of a run.

The prose stands here because the page is made whole; the rows are matrix.py's. Numbers differ from run to
run, so only `make matrix` writes them, and every other run compares the page without them.

Kind: pure.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from tests.e2e.matrix import GONE, NEVER, PASSED, ROWS, VERDICT, Row

_NUMBER: Final = re.compile(r"\d[\d,.]* ms")
_WORDS: Final = {VERDICT: "verdict", PASSED: "200", "refused": "not connected"}
HEAD: Final = (
    "what fails",
    "how",
    "fail-closed route",
    "fail-open route",
    "route without agents",
    "failure answer after",
    "slowest 20 after",
    "back after",
)


class Numbers(NamedTuple):
    """Medians of one row in ms."""

    answer_ms: float = 0.0
    slowest_ms: float = 0.0
    back_ms: float = 0.0


PROSE: Final = """\
# What fails, and what happens then

Written by `make matrix`, which starts the real processes, breaks one of them at a time under constant traffic, and
writes the medians that it measured into the last three columns. `make test` plays the same rows and fails when
this page has other rows or columns than it has played. The rows are `tests/e2e/matrix.py`.

## How a row is played

Arbiter, two workers, agentd, two agents and an upstream are processes of their own. Thirty
connections ask all the time: ten on a route whose agent is fail-closed, ten on one where the same agent is
fail-open, ten on a route without agents; every eighth request of a connection is one that the agent blocks. The
agent signs the id of every request that it decides about, the upstream writes down what arrives, and the client
checks every answer: status, length, body, signature, and that it belongs to the request.

Then the process is killed, stopped and continued, restarted, or was not started in the first place; after a while it
is there again, and the row ends when all thirty connections get what they got before. In every row:

* no request has reached the upstream of a fail-closed route without its own true verdict;
* no route has given an answer that is not in the table;
* where an agent or agentd failed, the 20 slowest answers took no longer than the agent's `timeout_ms` and 250 ms
  (median), and routes without agents and fail-open ones answered at least 0.95 of the requests/s of before;
* calls of a connection that died ended within 100 ms (median) although they had ten seconds, and within 1.5 s where
  agentd was stopped: then nothing tells of its death but a heartbeat that is 1 s old;
* while agentd was away, failure answers took less than 5 ms, and nothing waited in the workers;
* where the upstream failed, no agent was blamed: no call to it has ended in anything but a decision;
* where a worker failed, the connections of the other one and new ones were served as before;
* every connection got its first good answer within 2 s (median) of the process being back, or 3 s where timeouts
  had opened the breaker, which waits 1 s here.

A bound in time is asserted on the median of at least 20 samples, and measured again once before it fails the test.

*agent* is one on the Python SDK (zmq-v2), *v1 agent* a plain REP socket (zmq-v1).

## What the cells mean

| cell | |
|---|---|
| verdict | what the agent says: 200 with its signature at the upstream, or its own 403 |
| 200 | passed on without a verdict: nobody was asked, or the failed agent was left out |
| 502, 503, 504 | the proxy's failure answer; 504 where time ran out |
| closed | the connections that the killed worker held end, without an answer or inside one, never as a complete one; \
all others are served |
| waits | the answer comes when the process goes on |
| not connected | nobody listens |

The numbers are medians. *failure answer after*: of the fail-closed route, once the failure was there. *slowest 20
after*: of both routes with agents, over the whole row. *back after*: from the process being back to a connection's
first good answer; where nobody has to start it, from the fault.

## The matrix

"""

END: Final = """
A pair that has no meaning as it stands is played as the row says: the arbiter forks workers as long as it lives, so
one worker "never started" is a successor that does not come up. A request that a stopped worker holds waits for
SIGCONT, at most for `worker_timeout_s`: then the arbiter kills the worker, and the connection is closed.

## Run it

    make matrix                                                # everything, about a minute, and write this page
    .venv/bin/python -m pytest tests/e2e/test_matrix.py -k agentd

Beside it stand `tests/e2e/test_breakers.py` (breakers open, probe, close; what the command line changes acts in
all workers within 100 ms), `tests/e2e/test_matrix_backoff.py` (reconnecting never ends and waits at most a second) and
`tests/e2e/test_matrix_load.py` (a route without agents serves as many requests without agentd as with it).
"""


def words(row: Row, route: str) -> str:
    """What a route may answer, as a cell."""
    ends = row.allowed[route]
    said = [_WORDS.get(end, end) for end in ends if end not in GONE]
    if set(ends) & set(GONE):
        said.append("closed")
    if "SIGSTOP, SIGCONT" in row.fault and "worker" in row.component:
        said.append("waits")
    return ", ".join(said)


def _cells(row: Row, numbers: Numbers) -> list[str]:
    """The numbers that the row has."""
    has = (
        "worker" not in row.component,
        "agent" in row.component,
        row.fault != NEVER or row.component == "one worker",
    )
    return [_ms(number) if is_there else "" for number, is_there in zip(numbers, has, strict=True)]


def render(numbers: Mapping[tuple[str, str], Numbers]) -> str:
    """The whole page; `numbers` by component and fault."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in ROWS:
        fault = f"{row.fault}: {row.done}" if row.done else row.fault
        cells = [row.component, fault, *(words(row, route) for route in ("closed", "open", "free"))]
        cells += _cells(row, numbers.get(row.key, Numbers()))
        lines.append("| " + " | ".join(cells) + " |")
    return PROSE + "\n".join(lines) + "\n" + END


def _ms(number: float) -> str:
    return f"{number:.1f} ms" if number < 10 else f"{number:,.0f} ms"


def without_numbers(page: str) -> str:
    """The page with every measured number of the table replaced by the same sign."""
    before, found, table = page.partition("## The matrix")
    lines = (_NUMBER.sub("#", line) if line.startswith("|") else line for line in table.split("\n"))
    return before + found + "\n".join(lines)
