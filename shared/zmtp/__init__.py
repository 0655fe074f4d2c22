"""ZMTP 3.1 over a connected stream socket: what libzmq speaks (https://rfc.zeromq.org/spec/37/), on the caller's loop.

    greeting, READY <-> greeting, READY          then messages of frames, both ways; NULL mechanism only
    socket --recv--> Decoder --a message at a time--> on_message(connection, frames)
    send(frames) --pack--> socket, at once; what the kernel does not take waits for the socket, bounded

No thread stands between the loop and the socket: a message is one system call here and one wake-up there. What a
peer has begun and not finished is bounded by `max_bytes` and `max_frames`, and known (`unfinished_bytes`).

The agents' SDK carries these very files as wardgate_agent/zmtp/, a link to here: nothing of Wardgate may be imported.

codec.py has the bytes, connection.py a peer, hangups.py notices that one has gone. Nothing but the standard library is
needed.
"""

from .codec import (
    COMMAND_MAX_BYTES,
    LONG_FRAME,
    SHORT_PIECE,
    Buffer,
    Decoder,
    Frame,
    ZmtpError,
    check_greeting,
    pack,
    pack_command,
    pack_ready,
    unpack_command,
    unpack_properties,
)
from .connection import (
    COMMANDS_AT_ONCE,
    HANDSHAKE_MAX_BYTES,
    LONG_READ_BYTES,
    MESSAGES_AT_ONCE,
    READ_BYTES,
    Connection,
    Loop,
    Turn,
)

__all__ = [
    "COMMANDS_AT_ONCE",
    "COMMAND_MAX_BYTES",
    "HANDSHAKE_MAX_BYTES",
    "LONG_FRAME",
    "LONG_READ_BYTES",
    "MESSAGES_AT_ONCE",
    "READ_BYTES",
    "SHORT_PIECE",
    "Buffer",
    "Connection",
    "Decoder",
    "Frame",
    "Loop",
    "Turn",
    "ZmtpError",
    "check_greeting",
    "pack",
    "pack_command",
    "pack_ready",
    "unpack_command",
    "unpack_properties",
]
