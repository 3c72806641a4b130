"""The home of address spellings: what host text is an IP address, however it is written.

Pure.  An attacker writes 127.0.0.1 in ways that a check of the text overlooks
and a socket library understands.  Here every spelling that any of them reads
as an address becomes that address, and everything else is a name.

| written                        | read as                                      |
| ------------------------------ | -------------------------------------------- |
| `127.0.0.1`, `127.1`, `127.0.1`| the last part fills the bytes that are left  |
| `0x7f.0.0.1`, `0177.0.0.1`     | each part decimal, `0x` hexadecimal, `0` octal |
| `2130706433`, `0x7f000001`     | one part fills all four bytes                |
| `①②⑦.⓪.⓪.①`, `１２７。０。０。１`  | folded by NFKC; ideographic full stops are dots |
| `127.0.0.1.`, `%31%32%37.1`    | the root's dot falls away; escapes are undone |
| `[::1]`, `::1`, `[fe80::1%25eth0]` | IPv6, with or without brackets; the zone falls away |

Which addresses may be reached is not known here: see `waypost.wire.egress`.
"""

import unicodedata
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import unquote

Address = IPv4Address | IPv6Address

HOST_CHARS_MAX = 1024
"""Longer host text is not read: no spelling of an address needs as much, and no name may be."""

_DOTS = str.maketrans("。．｡", "...")  # what IDNA takes for a dot, besides the dot
_DIGITS = {8: frozenset("01234567"), 10: frozenset("0123456789"), 16: frozenset("0123456789abcdef")}


def literal_address(host: str) -> Address | None:
    """The address that `host` spells, or None where it is a name."""
    if len(host) > HOST_CHARS_MAX:
        return None
    text = plain_host(host)
    if ":" in text:
        try:
            return IPv6Address(text.partition("%")[0])
        except ValueError:
            return None
    return _inet_aton(text)


def is_localhost(host: str) -> bool:
    """Whether `host` is `localhost` or a name below it, which are loopback by RFC 6761."""
    text = plain_host(host[:HOST_CHARS_MAX])
    return text == "localhost" or text.endswith(".localhost")


def plain_host(host: str) -> str:
    """`host` with everything undone that is only spelling: lower case, no brackets, no last dot."""
    if host.isascii() and "%" not in host:
        text = host
    else:
        folded = unicodedata.normalize("NFKC", unquote(host))
        text = unicodedata.normalize("NFKC", folded.translate(_DOTS))
    text = text.lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return text.removesuffix(".")


def _inet_aton(text: str) -> IPv4Address | None:
    """Read one to four numbers the way inet_aton does."""
    parts = text.split(".")
    if len(parts) > 4:
        return None
    numbers = [_number(part) for part in parts]
    *heads, last = numbers
    if last is None or last >= 256 ** (4 - len(heads)):
        return None
    value = last
    for place, head in enumerate(heads):
        if head is None or head > 255:
            return None
        value |= head << (24 - 8 * place)
    return IPv4Address(value)


def _number(text: str) -> int | None:
    """One part of a dotted address; `0x` alone is 0, as browsers have it."""
    base, digits = 10, text
    if text.startswith("0x"):
        base, digits = 16, text[2:] or "0"
    elif text.startswith("0") and len(text) > 1:
        base, digits = 8, text[1:]
    # int() would also take "_", "+" and digits of other scripts.
    if not digits or not _DIGITS[base].issuperset(digits):
        return None
    digits = digits.lstrip("0") or "0"
    # No number of more digits than this is below 2**32, in any of the bases.
    return int(digits, base) if len(digits) <= 11 else None
