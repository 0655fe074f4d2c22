"""`wardgate proxy`: the arbiter and its workers in the foreground; what the systemd unit starts.

Nothing but options may be put here; the start is proxy/serve.py.

Kind: IO.
"""

import os

import click

from proxy.cli import EXIT_CODES_HELP, config_option

EPILOG = f"""\b
Signals: TERM drains, INT and QUIT stop at once, HUP reloads, TTIN and TTOU add or remove a worker.
Sockets passed by systemd (LISTEN_FDS) are used instead of server.listen.

\b
Examples:
  wardgate proxy -c wardgate.toml
  kill -HUP $(cat /run/wardgate/proxy.lock)

{EXIT_CODES_HELP}
"""


@click.command(epilog=EPILOG)
@config_option
def command(config_path: str | None) -> None:
    """Run the proxy: the arbiter and its workers."""
    from proxy.serve import serve
    from shared.config.load import load
    from shared.config.read import config_path as effective

    path = os.path.abspath(effective(config_path, os.environ))  # the arbiter's directory is "/" when it reloads
    serve(lambda: load(path, os.environ), os.environ)
