"""The home of an answer: a status, header fields and a body that is there in full."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

JSON: Final = (b"content-type", b"application/json")

encode = msgspec.json.Encoder().encode


class Answer(Struct, frozen=True):
    """What goes back.  `header` is complete but for the framing of the connection."""

    status: int
    header: list[tuple[bytes, bytes]]
    body: bytes


def json_answer(
    value: Any, *, status: int = 200, header: Sequence[tuple[bytes, bytes]] = ()
) -> Answer:
    """`value` as JSON."""
    body = encode(value)
    return Answer(status, [JSON, (b"content-length", b"%d" % len(body)), *header], body)
