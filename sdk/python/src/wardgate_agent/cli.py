"""`python -m wardgate_agent my_agent:MyAgent --connect ipc:///run/wardgate/agents/v2`: the command line.

`main(MyAgent)` is the same for a script that is the agent itself.

Kind: IO.
"""

import argparse
import difflib
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Sequence

from wardgate_agent.agent import Agent
from wardgate_agent.runner import Options, run

_EPILOG = """\
exit codes: 0 asked to leave (SIGTERM, SIGINT: drains first), 1 refused by agentd for good, 2 wrong usage or secret

example:
  python -m wardgate_agent my_agent:MyAgent --connect ipc:///run/wardgate/agents/v2 --name waf
"""


class UsageError(Exception):
    """The command line names something that is not there."""


def load(target: str) -> type[Agent]:
    """The class that `module:Class` names. The current directory is looked at first, as by `python -m`."""
    module_name, colon, class_name = target.partition(":")
    if not colon or not module_name or not class_name:
        raise UsageError(f"{target!r} is not MODULE:CLASS (my_agent:MyAgent)")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UsageError(f"there is no module {module_name!r} (looked in {os.getcwd()} and sys.path)") from None
        raise UsageError(f"module {module_name} imports {error.name!r}, which is not installed") from None
    found = getattr(module, class_name, None)
    agents = [name for name, value in vars(module).items() if _is_agent(value)]
    if found is None:
        near = difflib.get_close_matches(class_name, agents, 1) or agents
        hint = f"; did you mean {', '.join(near)}?" if near else "; it has no class derived from Agent"
        raise UsageError(f"module {module_name} has no {class_name}{hint}")
    if not _is_agent(found):
        raise UsageError(f"{target} is not a class derived from wardgate_agent.Agent")
    agent_class: type[Agent] = found
    return agent_class


def _is_agent(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Agent) and value is not Agent


def parser(
    with_target: bool = True, prog: str | None = None, description: str | None = None
) -> argparse.ArgumentParser:
    """The command line; defaults are those of Options."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Run a Wardgate agent: connect to agentd, answer events, drain on SIGTERM.",
        epilog=_EPILOG if with_target else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Options()
    if with_target:
        made.add_argument("target", metavar="MODULE:CLASS", help="the agent's class, e.g. my_agent:MyAgent")
    add = made.add_argument
    add(
        "--connect", metavar="ENDPOINT", default=default.connect, help="agentd's agents endpoint (default: %(default)s)"
    )
    add("--name", default="", help="the agent's name in wardgate.toml (default: the class's name attribute)")
    add("--instance", metavar="ID", default="", help="unique per process (default: host, process id, random digits)")
    add("--secret-file", metavar="FILE", default="", help="the secret that agentd has for this agent")
    add(
        "--max-batch",
        metavar="N",
        type=int,
        default=default.max_batch,
        help="events per message at most (default: %(default)s)",
    )
    add(
        "--max-concurrency",
        metavar="N",
        type=int,
        default=default.max_concurrency,
        help="events in flight at most (default: %(default)s)",
    )
    add(
        "--max-body-bytes",
        metavar="N",
        type=int,
        default=default.max_body_bytes,
        help="the longest body of one event; a longer one is not sent (default: %(default)s)",
    )
    add(
        "--drain-deadline",
        metavar="SECONDS",
        type=float,
        default=default.drain_deadline_s,
        help="after SIGTERM (default: %(default)g)",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: %(default)s")
    return made


def main(agent: Agent | type[Agent] | None = None, argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; the exit code. With `agent` it takes options only."""
    arguments = parser(agent is None, "python -m wardgate_agent" if agent is None else None).parse_args(argv)
    logging.basicConfig(
        level=arguments.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    if agent is None:
        try:
            agent = load(arguments.target)
        except UsageError as error:
            sys.stderr.write(f"wardgate_agent: {error}\n")
            return 2
    return run(
        agent,
        arguments.connect,
        name=arguments.name,
        instance=arguments.instance,
        secret_file=arguments.secret_file,
        max_batch=arguments.max_batch,
        max_concurrency=arguments.max_concurrency,
        max_body_bytes=arguments.max_body_bytes,
        drain_deadline_s=arguments.drain_deadline,
    )
