"""The home of redaction: what of a message is hidden wherever it is shown (contract section 1.6).

| item of Upstash-Redact-Fields      | hides                         |
| ---------------------------------- | ----------------------------- |
| `body`                             | the body                      |
| `header`, `headers`                | the value of every field      |
| `header[Name]`, `headers[Name]`    | the values of that field      |

What is hidden reads `REDACTED:` and the SHA-256 of what was there, in hex: two
values can be told apart, or known again, and not read.  Only what is shown is
redacted.  A delivery, its retries, its callbacks, a retry from the dead letter
queue and the runs of a schedule carry what was published.
"""

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from waypost.domain.errors import Invalid
from waypost.domain.header_fields import canonical_name

NAMES_MAX: Final = 100

_ITEM: Final = re.compile(r"(body)|headers?(?:\[([^\]]*)\])?", re.IGNORECASE)


class Redaction(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is hidden: the body, the values of every field, of those with these names."""

    body: bool = False
    every_field: bool = False
    fields: list[str] = []

    def hides_field(self, name: str) -> bool:
        return self.every_field or name in self.fields


def parse_redaction(text: str) -> Redaction:
    """Read `Upstash-Redact-Fields`.  Raises Invalid with the bare reason."""
    body = every_field = False
    fields: list[str] = []
    for item in filter(None, map(str.strip, text.split(","))):
        found = _ITEM.fullmatch(item)
        if found is None:
            raise Invalid("an item is none of body, header and header[Name]")
        if found[1]:
            body = True
        elif found[2] is None:
            every_field = True
        else:
            name = canonical_name(found[2].strip().encode())
            if name not in fields:
                fields.append(name)
    if not (body or every_field or fields):
        raise Invalid("it names nothing: body, header or header[Name]")
    if len(fields) > NAMES_MAX:
        raise Invalid(f"more than {NAMES_MAX} headers")
    return Redaction(body=body, every_field=every_field, fields=fields)


def of_callback(asked: Redaction | None, source: Redaction | None) -> Redaction | None:
    """What is hidden of a callback: what was asked for it, and what tells of the source.

    The fields that are hidden in the source are hidden in the callback too, and its
    body as a whole, for the source's body and fields are in it.
    """
    return asked if source is None else both(replace(source, body=True), asked)


def both(first: Redaction | None, second: Redaction | None) -> Redaction | None:
    """What either of them hides."""
    if first is None or second is None:
        return first or second
    return Redaction(
        body=first.body or second.body,
        every_field=first.every_field or second.every_field,
        fields=[*first.fields, *(name for name in second.fields if name not in first.fields)],
    )


def shown_body(redaction: Redaction | None, body: bytes) -> bytes:
    """A body as it is shown; nothing is hidden of none."""
    if redaction is None or not redaction.body or not body:
        return body
    return _mark(body).encode()


def shown_header(
    redaction: Redaction | None, header: Mapping[str, list[str]]
) -> Mapping[str, list[str]]:
    """A header as it is shown, each value that is hidden in its place."""
    if redaction is None:
        return header
    return {
        name: [_mark(value.encode("latin-1")) for value in values]
        if redaction.hides_field(name)
        else values
        for name, values in header.items()
    }


def _mark(secret: bytes) -> str:
    return f"REDACTED:{sha256(secret).hexdigest()}"
