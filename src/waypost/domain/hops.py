"""The home of loops through us: how often a message has passed, by RFC 8586.

Every delivery carries `CDN-Loop: waypost; hops=n`.  A destination that publishes
to us again and passes the field on is seen to go round; after `HOPS_MAX` times
the message goes to the dead letter queue (D22).
"""

NAME = "waypost"
HOPS_MAX = 10
FIELD = "CDN-Loop"


def hops_of(value: str) -> int:
    """How often a request with this `CDN-Loop` field has passed through us."""
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
