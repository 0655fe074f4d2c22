"""One role of the product in the foreground, for a harness that knows only commands and the environment.

    serve.py proxy | proxy-plain | agentd | agent | agent-hung

PORT, UPSTREAM_HOST and UPSTREAM_PORT are read from the environment; all roles of one PORT share a
runtime directory made from it (below $BENCH_RUN, else /tmp). /fast is decided by a fast agent, /hung by
one that never answers, within 1 s; `proxy-plain` has no agents. Each role becomes the real command, so
that its CPU time is the role's.

Kind: IO.
"""

import os
import sys
from pathlib import Path

from stack import Route, agent_argv, agentd_argv, configure, proxy_argv

ROLES = ("proxy", "proxy-plain", "agentd", "agent", "agent-hung")


def main(argv: list[str]) -> None:
    try:
        (role,) = argv
        port, upstream = int(os.environ["PORT"]), f"{os.environ['UPSTREAM_HOST']}:{os.environ['UPSTREAM_PORT']}"
    except (ValueError, KeyError):
        role = ""
    if role not in ROLES:
        sys.exit(f"usage: PORT=... UPSTREAM_HOST=... UPSTREAM_PORT=... serve.py {' | '.join(ROLES)}")
    is_plain = role == "proxy-plain"
    base = os.environ.get("BENCH_RUN", "/tmp")  # bench/peers.py gives one that goes away afterwards
    directory = Path(base, f"wg-{os.getuid()}-{port}{'-plain' if is_plain else ''}")
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid() or directory.is_symlink():
        sys.exit(f"{directory} belongs to somebody else")
    routes = [Route("/")] if is_plain else [Route("/fast", ("fast",)), Route("/hung", ("hung",))]
    config = configure(directory, f"127.0.0.1:{port}", upstream, routes)
    if role == "agentd":
        command = agentd_argv(config)
    elif role.startswith("agent"):
        command = agent_argv(directory, "hung" if role == "agent-hung" else "fast")
    else:
        command = proxy_argv(config)
    if role == "agent-hung":
        os.environ["HANG"] = "1"
    sys.stdout.flush()
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
