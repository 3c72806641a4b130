"""The home of header hygiene: which fields may travel, and which never do (D6, T8, T9).

A value is bytes on the wire.  Here it is a `str` that holds one character per
byte (latin-1), so whatever was sent comes out again bit by bit.  Names are
spelled the canonical way, `Test-Header` (W22).

Refusals raise Invalid with the bare reason, or HeadersTooLarge: the caller
knows under which name the field came in and puts it in front.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from waypost.domain.errors import Invalid

NAME_BYTES_MAX: Final = 256
VALUE_BYTES_MAX: Final = 8_192
COUNT_MAX: Final = 100
TOTAL_BYTES_MAX: Final = 32_768

KEPT_CHARS_MAX: Final = 64
"""How long a name may be whose spelling is kept.  Answers have names of up to 64 KB, and
whoever is sent to chooses them: 4,096 of those would be 0.5 GB."""

LISTS: Final = frozenset(
    prefix + name
    for prefix in (b"upstash-", b"upstash-callback-", b"upstash-failure-callback-")
    for name in (b"label", b"redact-fields", b"flow-control-value")
)
"""Fields that are lists: those that come twice are one (RFC 9110 section 5.3)."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_NEVER_FORWARDED: Final = frozenset(
    {
        # The framing and the addressing of a request belong to whoever sends it.
        "Host",
        "Content-Length",
        "Expect",
        # Hop-by-hop (RFC 9110 section 7.6.1).
        "Connection",
        "Keep-Alive",
        "Te",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        # Ours: a publisher must not be able to speak in our name.
        "Upstash-Signature",
        "Upstash-Message-Id",
        "Upstash-Retried",
    }
)


@lru_cache(maxsize=4096)
def canonical_name(name: bytes) -> str:
    """Spell a field name the canonical way: `test-header` is `Test-Header`.

    Raises Invalid for what is not a name (RFC 9110 token).
    """
    if len(name) > NAME_BYTES_MAX:
        raise Invalid(f"the header name is longer than {NAME_BYTES_MAX} bytes")
    if _TOKEN.fullmatch(name) is None:
        raise Invalid("not a valid header name")
    return _capitalised(name.decode("ascii"))


def checked_value(value: bytes) -> str:
    """Answer a field value without the blanks around it, one character per byte.

    Raises Invalid for control characters other than TAB, and for more than 8 KB.
    """
    if len(value) > VALUE_BYTES_MAX:
        raise Invalid(f"the header value is longer than {VALUE_BYTES_MAX} bytes")
    if _CONTROL.search(value) is not None:
        raise Invalid("the header value contains a control character")
    return value.strip(b" \t").decode("latin-1")


@lru_cache(maxsize=4096)
def forwardable(name: str) -> bool:
    """Whether a field of this canonical name may be passed on at all."""
    return name not in _NEVER_FORWARDED and not name.startswith("Proxy-")


def end_to_end(header: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """What of a header may be passed on: not the forbidden, nor what its `Connection` names."""
    passed = {name: values for name, values in header.items() if forwardable(name)}
    for value in header.get("Connection", ()):
        for name in value.split(","):
            passed.pop(_spelled(name.strip(" \t")), None)
    return passed


def gathered(fields: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Fields in the order of arrival as a map, under their canonical names."""
    header: dict[str, list[str]] = {}
    for name, value in fields:
        header.setdefault(_spelled(name), []).append(value)
    return header


def shown(header: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """A header as it is shown: where the bytes of a value are UTF-8, the text they spell."""
    return {name: [_shown(value) for value in values] for name, values in header.items()}


def _shown(value: str) -> str:
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _spelled(name: str) -> str:
    """The canonical spelling of a name of any length."""
    return _kept(name) if len(name) <= KEPT_CHARS_MAX else _capitalised(name)


def _capitalised(name: str) -> str:
    return "-".join(part.capitalize() for part in name.split("-"))


_kept = lru_cache(maxsize=4096)(_capitalised)


def check_total(header: Mapping[str, Iterable[str]]) -> None:
    """Raise Invalid when all fields together are too many or too large."""
    count = total_bytes = 0
    for name, values in header.items():
        for value in values:
            count += 1
            total_bytes += len(name) + len(value)
    if count > COUNT_MAX:
        raise Invalid(f"more than {COUNT_MAX} headers to forward")
    if total_bytes > TOTAL_BYTES_MAX:
        raise Invalid(f"the headers to forward are larger than {TOTAL_BYTES_MAX} bytes in all")
