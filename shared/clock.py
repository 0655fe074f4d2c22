"""The one clock of deadlines: CLOCK_MONOTONIC in nanoseconds, comparable between processes of one boot.

Pure code takes `now` as an argument; only IO modules call `now_ns`.

Kind: plumbing.
"""

import time

now_ns = time.monotonic_ns
MS = 1_000_000
S = 1_000_000_000
