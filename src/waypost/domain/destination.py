"""The home of what may follow `/publish/`: raw bytes in, a typed destination out.

    https://example.com/a?b=c     ToUrl     kept byte for byte (D4, W26)
    api/llm                       ToApi
    my-group                      ToGroup   any legal name; the service knows whether it exists
    (nothing)                     refused

The query of the publish request belongs to the destination, but for the
configuration in it (D3): parameters named `upstash-…` in lower case, and
`qstash_token`, are taken out; what is left keeps its bytes and its order.

Whether an address may be reached is not asked here; that is the egress
policy's, on the address that is connected (D10).
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from waypost.domain.errors import Invalid, NotFound, Problem
from waypost.domain.header_fields import LISTS

URL_BYTES_MAX: Final = 8_192
AUTHORITY_BYTES_MAX: Final = 1_024
HOST_BYTES_MAX: Final = 253

_SCHEME: Final = re.compile(rb"https?://", re.IGNORECASE)
_MERGED_SLASHES: Final = re.compile(rb"https?:/(?!/)", re.IGNORECASE)
_PRINTABLE: Final = re.compile(rb"[!-~]+")
_USERINFO: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:%]*")
_HOST: Final = re.compile(r"[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)*\.?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_NAME: Final = re.compile(rb"[A-Za-z0-9._\-]{1,255}")
_DEFAULT_PORT: Final = {"http": 80, "https": 443}


class ToUrl(Struct, frozen=True):
    """Exactly this URL, as it was given."""

    url: str


class ToApi(Struct, frozen=True):
    """A built-in API by name: `llm` for `api/llm`."""

    name: str


class ToGroup(Struct, frozen=True):
    """A URL group by name."""

    name: str


Destination = ToUrl | ToApi | ToGroup


class Origin(Struct, frozen=True):
    """Where a URL leads: `host` in lower case and without brackets, `port` explicit.

    `key` is `https://example.com:443`: equal for every spelling of the same origin.
    """

    scheme: str
    host: str
    port: int
    key: str


def _invalid(reason: str) -> Invalid:
    return Invalid(f"invalid destination url: {reason}")


def _invalid_scheme() -> Invalid:
    return _invalid("endpoint has invalid scheme, add http:// or https://")


def read_destination(rest: bytes, query: bytes) -> tuple[Destination, Mapping[str, str]]:
    """Read what follows `/publish/`, and the query of the request, both raw.

    Answers the destination and the configuration parameters that were in the
    query, by their lower-case names and decoded as forms are (`+` is a blank);
    the first of a name wins, but those that are lists are put together; `qstash_token` is not
    among them.
    Raises Invalid with the whole text to show.
    """
    parameters, query = _split_query(query) if query else ({}, query)
    if _SCHEME.match(rest) is not None:
        return ToUrl(checked_url(rest + b"?" + query if query else rest)), parameters
    if not rest:
        raise Invalid("a non-empty destination must be provided")
    if _MERGED_SLASHES.match(rest) is not None:
        raise _invalid(
            "there is one slash after the scheme; a proxy on the way has merged the slashes, "
            "turn that off (nginx: merge_slashes off)"
        )
    kind, slash, name = rest.partition(b"/")
    if slash and kind == b"api" and _NAME.fullmatch(name) is not None:
        return ToApi(name.decode("ascii")), parameters
    name = unquote_to_bytes(rest)
    if _NAME.fullmatch(name) is None:
        raise _invalid_scheme()
    return ToGroup(name.decode("ascii")), parameters


def unknown_group(name: str) -> Problem:
    """What to raise for a group that does not exist.

    A name with a dot is most likely a host whose scheme was forgotten.
    """
    return _invalid_scheme() if "." in name else NotFound(f"topic {name} not found")


def _split_query(query: bytes) -> tuple[dict[str, str], bytes]:
    if b"upstash-" not in query and b"qstash_token" not in query:
        return {}, query
    parameters: dict[str, str] = {}
    kept = []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"qstash_token":
            continue
        if name.startswith(b"upstash-") and name == name.lower():
            try:
                parameter = name.decode("ascii")
                text = unquote_to_bytes(value.replace(b"+", b" ")).decode()
            except UnicodeDecodeError:
                shown = name.decode("ascii", "backslashreplace")
                raise Invalid(f"{shown} (query parameter): not UTF-8") from None
            if parameter not in parameters:
                parameters[parameter] = text
            elif name in LISTS:
                parameters[parameter] += f", {text}"
        else:
            kept.append(part)
    return parameters, b"&".join(kept)


def checked_url(raw: bytes) -> str:
    """Check an http(s) URL and answer it unchanged.

    Raises Invalid with the whole text to show.
    """
    if len(raw) > URL_BYTES_MAX:
        raise _invalid(f"longer than {URL_BYTES_MAX} bytes")
    if _SCHEME.match(raw) is None:
        raise _invalid_scheme()
    if _PRINTABLE.fullmatch(raw) is None:
        raise _invalid("spaces, control and non-ASCII characters must be percent-encoded")
    if b"#" in raw:
        raise _invalid("a fragment (#) cannot be delivered; percent-encode it as %23")
    url = raw.decode("ascii")
    origin_of(url)
    return url


def origin_of(url: str) -> Origin:
    """Where a URL leads.  Raises Invalid with the whole text to show."""
    start = url.find("://") + 3
    end = url.find("/", start)
    if end < 0:
        end = len(url)
    question = url.find("?", start, end)
    return _origin(url[: end if question < 0 else question])


@lru_cache(maxsize=4096)
def _origin(beginning: str) -> Origin:
    """Read `https://user@example.com:8443`.  Cached by it, for paths are many and hosts are few."""
    scheme, separator, authority = beginning.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORT:
        raise _invalid_scheme()
    if len(authority) > AUTHORITY_BYTES_MAX:
        raise _invalid(f"the authority is longer than {AUTHORITY_BYTES_MAX} bytes")
    userinfo, _, place = authority.rpartition("@")
    if _USERINFO.fullmatch(userinfo) is None:
        raise _invalid("the user information contains a character that must be percent-encoded")
    if place.startswith("["):
        host, bracket, after = place[1:].partition("]")
        _check_ipv6(host, bracket)
        if after and not after.startswith(":"):
            raise _invalid("unexpected text after the IPv6 address")
        colon, port_text = after[:1], after[1:]
        shown = f"[{host}]"
    else:
        host, colon, port_text = place.partition(":")
        _check_host(host)
        shown = host
    port = _port(port_text) if colon else _DEFAULT_PORT[scheme]
    return Origin(scheme, host.lower(), port, f"{scheme}://{shown.lower()}:{port}")


def _check_ipv6(host: str, bracket: str) -> None:
    # IPv6Address knows zone ids (`fe80::1%eth0`), which mean nothing to another machine.
    try:
        if bracket and "%" not in host:
            IPv6Address(host)
            return
    except ValueError:
        pass
    raise _invalid("the text in brackets is not an IPv6 address")


def _check_host(host: str) -> None:
    if not host:
        raise _invalid("the host is missing")
    if len(host) > HOST_BYTES_MAX:
        raise _invalid(f"the host is longer than {HOST_BYTES_MAX} bytes")
    if _HOST.fullmatch(host) is None:
        raise _invalid("the host contains a character that hosts cannot have")


def _port(text: str) -> int:
    if _PORT.fullmatch(text) is None or not 1 <= int(text) <= 65_535:
        raise _invalid("the port must be a number from 1 to 65535")
    return int(text)
