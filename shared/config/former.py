"""Keys that have another name by now, each with what to write instead.

They are refused like any unknown key: a number that meant something else must not act in silence. Lists are written
`agents[]`.

Kind: table.
"""

KEYS: dict[str, str] = {
    "runtime.hop_hwm": "it is `runtime.hop_unsent_bytes` now, in bytes instead of messages",
}
