"""The home of an answer: a status, header fields and a body, there in full or still to come."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

JSON: Final = (b"content-type", b"application/json")

encode = msgspec.json.Encoder().encode


class Rest(Protocol):
    """A body that is still to come.  Whoever has it closes it."""

    def pieces(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None: ...


class Answer(Struct, frozen=True):
    """What goes back.  `header` is complete but for the framing of the connection.

    Where there is a `rest`, it is the body, and is written as it comes.
    """

    status: int
    header: list[tuple[bytes, bytes]]
    body: bytes
    rest: Rest | None = None


def json_answer(
    value: Any, *, status: int = 200, header: Sequence[tuple[bytes, bytes]] = ()
) -> Answer:
    """`value` as JSON."""
    body = encode(value)
    return Answer(status, [JSON, (b"content-length", b"%d" % len(body)), *header], body)
