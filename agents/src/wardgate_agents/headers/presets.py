"""The presets: which fields a response gets, which go, and which the application may decide for itself.

`set` wins over the application's own value. `default` is for what an application may know better (a policy with
nonces, say): it is given only where the response has no such field.

| field | why |
|---|---|
| Strict-Transport-Security | RFC 6797; over https only, see agent.py. No `preload`: that cannot be taken back |
| X-Content-Type-Options | no guessing of types |
| X-Frame-Options, frame-ancestors | no framing by strangers; the first for browsers without CSP level 2 |
| Content-Security-Policy | where content may come from |
| Referrer-Policy | what other sites are told of an address |
| Permissions-Policy | devices that no page asked for |
| Cross-Origin-Opener-Policy, Cross-Origin-Resource-Policy | no window and no resource shared with other origins |
| Cache-Control | answers of an API are nobody else's |
| X-Permitted-Cross-Domain-Policies | old plug-ins |
| Server, X-Powered-By and the like, removed | which software to attack |

X-XSS-Protection and Expect-CT are not among them: browsers have dropped both, and the first did harm.

Kind: table.
"""

from typing import Final, Literal, NamedTuple

PresetName = Literal["none", "basic", "strict", "api"]


class Preset(NamedTuple):
    """Fields by name, as they are written. `hsts` is a value, or "" for none."""

    hsts: str = ""
    set: tuple[tuple[str, str], ...] = ()
    default: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


_TELLING: Final = ("Server", "X-Powered-By", "X-AspNet-Version", "X-AspNetMvc-Version", "X-Generator", "X-Runtime")
_NO_DEVICES: Final = (
    "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), magnetometer=(), microphone=(), "
    "midi=(), payment=(), usb=()"
)

PRESETS: Final[dict[PresetName, Preset]] = {
    "none": Preset(),
    "basic": Preset(
        hsts="max-age=31536000",
        set=(("X-Content-Type-Options", "nosniff"),),
        default=(
            ("X-Frame-Options", "SAMEORIGIN"),
            ("Referrer-Policy", "strict-origin-when-cross-origin"),
        ),
        remove=_TELLING,
    ),
    "strict": Preset(
        hsts="max-age=63072000; includeSubDomains",
        set=(
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("X-Permitted-Cross-Domain-Policies", "none"),
        ),
        default=(
            (
                "Content-Security-Policy",
                "default-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
            ),
            ("Referrer-Policy", "no-referrer"),
            ("Permissions-Policy", _NO_DEVICES),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ),
        remove=_TELLING,
    ),
    "api": Preset(
        hsts="max-age=63072000; includeSubDomains",
        set=(
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ),
        default=(
            ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ),
        remove=_TELLING,
    ),
}
