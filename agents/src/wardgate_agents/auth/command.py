"""`wardgate-agent-auth hash-password` and `hash-key`: lines for the files of the agent `auth`.

Secrets are read from the terminal or from standard input, never from the command line, where everybody could see them.

Kind: IO.
"""

import argparse
import getpass
import secrets
import sys
from collections.abc import Sequence
from typing import Final

from wardgate_agents.auth.api_keys import ApiKeys, hash_key
from wardgate_agents.auth.passwords import DEFAULT_LN, Passwords, check_user, hash_password

COMMANDS: Final = ("hash-password", "hash-key")
KEY_BYTES: Final = 32
MIN_KEY_CHARS: Final = 24  # of a key that somebody else made: SHA-256 is enough only for what cannot be guessed


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="wardgate-agent-auth", description="Lines for the files of the agent auth.")
    commands = made.add_subparsers(dest="command", required=True)
    password = commands.add_parser("hash-password", help="ask for a password; print USER:$scrypt$... for basic.file")
    password.add_argument("user")
    password.add_argument("--ln", type=int, default=DEFAULT_LN, help="N = 2**LN (default: %(default)s, 32 MiB)")
    key = commands.add_parser("hash-key", help="make a key; print NAME sha256:... for api_keys.file")
    key.add_argument("name")
    key.add_argument("--stdin", action="store_true", help="hash the key given on standard input instead")
    return made


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 2 with a message."""
    arguments = _parser().parse_args(argv)
    try:
        return _password(arguments.user, arguments.ln) if arguments.command == "hash-password" else _key(arguments)
    except ValueError as error:
        sys.stderr.write(f"wardgate-agent-auth: {error}\n")
        return 2


def _secret(prompt: str) -> str:
    if sys.stdin.isatty():
        first = getpass.getpass(f"{prompt}: ")
        if getpass.getpass("Again: ") != first:
            raise ValueError("these were two different ones")
        return first
    return sys.stdin.readline().rstrip("\r\n")


def _password(user: str, ln: int) -> int:
    check_user(user)
    password = _secret("Password")
    if not password:
        raise ValueError("an empty password protects nothing")
    if not 1 <= ln <= 20:
        raise ValueError(f"--ln {ln} is not from 1 to 20")
    line = f"{user}:{hash_password(password, ln=ln)}"
    Passwords([(1, line)])  # what the agent would not read must not be written down
    sys.stdout.write(line + "\n")
    return 0


def _key(arguments: argparse.Namespace) -> int:
    if arguments.stdin:
        key = _secret("Key")
        if len(key) < MIN_KEY_CHARS:
            raise ValueError(
                f"a key of {len(key)} characters can be guessed; at least {MIN_KEY_CHARS}, or leave --stdin out"
            )
    else:
        key = f"wgk_{secrets.token_urlsafe(KEY_BYTES)}"
    line = f"{arguments.name} {hash_key(key)}"
    ApiKeys([(1, line)])
    if not arguments.stdin:
        sys.stderr.write(f"the key, for its owner (it is not kept anywhere): {key}\n")
    sys.stdout.write(line + "\n")
    return 0
