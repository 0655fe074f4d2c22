"""`wardgate agentd`: becomes agentd. It starts the process and never imports it.

Kind: IO.
"""

import os
import sys

import click

from proxy.cli import config_option


@click.command(
    epilog="""\b
Examples:
  wardgate agentd -c /etc/wardgate/wardgate.toml
  WARDGATE_CONFIG=wardgate.toml wardgate agentd

\b
Signals:
  TERM, INT   drain the agents, then end
  HUP         reload the configuration; `wardgate reload` does it for both daemons
  USR1        open the audit file anew (logrotate)

Exit codes: 0 ended by a signal, 1 it cannot start or is running already, 2 usage or configuration.
"""
)
@config_option
def command(config_path: str | None) -> None:
    """Run agentd: it asks the agents, keeps their breakers, writes the audit, serves the admin API.

    It stays in the foreground. There is one agentd for a runtime directory; a second one says so, touches
    nothing and ends with 1. systemd and `wardgate run` start it this way.
    """
    args = [sys.executable, "-P", "-m", "agentd"]
    if config_path is not None:
        args += ["--config", os.path.abspath(config_path)]
    sys.stdout.flush()
    os.execv(sys.executable, args)  # noqa: S606
