"""The home of loops through us: how often a message has passed, by RFC 8586.

Every delivery carries `CDN-Loop: waypost; hops=n`.  A destination that publishes
to us again and passes the field on is seen to go round; after `HOPS_MAX` times
the message goes to the dead letter queue (D22).  It may pass it on as a field of its
request, or have it forwarded, which is all that the SDKs can do.
"""

from collections.abc import Iterable, Mapping

NAME = "waypost"
HOPS_MAX = 10
FIELD = "CDN-Loop"


def hops_of(fields: Iterable[tuple[bytes, bytes]], forwarded: Mapping[str, list[str]]) -> int:
    """How often a request with these fields, which asks to have these forwarded, has passed
    through us."""
    passages = [value.decode("latin-1") for name, value in fields if name == b"cdn-loop"]
    passages += forwarded.get("Cdn-Loop", ())
    return _hops(",".join(passages)) if passages else 0


def _hops(value: str) -> int:
    hops = 0
    for member in value.split(","):
        name, _, parameters = member.partition(";")
        if name.strip().lower() == NAME:
            key, _, count = parameters.strip().partition("=")
            known = key.strip() == "hops" and count.isascii() and count.isdigit()
            hops = max(hops, int(count[:3]) if known else 1)
    return hops


def field(hops: int) -> str:
    """What to send with a message that came with `hops`."""
    return f"{NAME}; hops={hops + 1}"
