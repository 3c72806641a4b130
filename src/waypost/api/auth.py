"""The home of who is asking: the token, the address it came from, and where it may come to.

A token is a bearer token in `Authorization`, or the query parameter
`qstash_token` (W1, W2).  A webhook's own `Authorization` says nothing to us,
so where both are there, either may be the one.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final
from urllib.parse import unquote_to_bytes

from waypost.api.exchange import Api, Request
from waypost.api.problems import TooManyFailures
from waypost.domain.addresses import is_localhost, literal_address
from waypost.domain.errors import Forbidden, Unauthenticated
from waypost.services.access import Caller

CONSOLE_ORIGIN: Final = b"https://console.upstash.com"
"""The one web page that may speak to a development server (D30)."""


def authenticate(api: Api, request: Request) -> Caller:
    """Whose request this is.  Raises Unauthenticated, or TooManyFailures to who guesses."""
    authorization = forwarded = None
    for name, value in request.header:
        if name == b"authorization":
            authorization = value
        elif name == b"x-forwarded-for":
            forwarded = value if forwarded is None else forwarded + b"," + value
    request.caller_ip = request.client
    if api.trusted_proxies and forwarded is not None and request.client is not None:
        request.caller_ip = _caller_ip(api, request.client, forwarded)

    tokens = []
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        tokens.append(authorization[7:].strip(b" \t"))
    if b"qstash_token=" in request.query:
        tokens += [
            unquote_to_bytes(part[13:])
            for part in request.query.split(b"&")
            if part.startswith(b"qstash_token=")
        ]
    for token in tokens:
        caller = api.access.caller(token.decode("latin-1"))
        if caller is not None:
            return caller
    if tokens and api.failures.too_many(request.caller_ip or "", now_ms=api.clock.now_ms()):
        raise TooManyFailures("too many wrong tokens came from this address, try again later")
    raise Unauthenticated("unable to authenticate: invalid token")


def check_dev(request: Request) -> None:
    """Keep web pages away from a development server, whose token everybody knows (D30).

    The Host must be this machine's, or a name that leads here could be made to
    (DNS rebinding); an Origin must be the hosted console's.
    """
    for name, value in request.header:
        if name == b"host" and not _is_loopback(value):
            raise Forbidden("a development server answers to localhost and 127.0.0.1 only")
        if name == b"origin" and value != CONSOLE_ORIGIN:
            raise Forbidden("a development server does not answer to web pages")


def console_fields(request: Request) -> list[tuple[bytes, bytes]]:
    """What lets the hosted console's page read the answer of a development server (W232): its
    local mode runs in a browser, on a public page that asks this machine."""
    fields = dict(request.header)
    if fields.get(b"origin") != CONSOLE_ORIGIN:
        return []
    allowed = [
        (b"access-control-allow-origin", CONSOLE_ORIGIN),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"Origin"),
    ]
    if request.method == "OPTIONS" and b"access-control-request-method" in fields:
        allowed += [
            (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
            # A `*` would not stand for Authorization.
            (
                b"access-control-allow-headers",
                fields.get(b"access-control-request-headers", b"authorization"),
            ),
            (b"access-control-allow-private-network", b"true"),
            (b"access-control-max-age", b"600"),
        ]
    return allowed


@lru_cache(maxsize=256)
def _is_loopback(host: bytes) -> bool:
    text = host.decode("latin-1")
    name = text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]
    address = literal_address(name)
    return is_localhost(name) if address is None else address.is_loopback


def _caller_ip(api: Api, peer: str, forwarded: bytes) -> str:
    """The nearest address that is not a trusted proxy's (D12)."""
    nearest = _address(peer)
    for hop in reversed(forwarded.decode("latin-1").split(",")):
        if nearest is None or not any(nearest in network for network in api.trusted_proxies):
            break
        address = _address(hop.strip())
        if address is None:
            break
        nearest = address
    return peer if nearest is None else str(nearest)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
