"""The home of an answer: a status, header fields and a body, there in full or still to come."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

JSON: Final = (b"content-type", b"application/json")

AT_ONCE: Final = 16
"""What is shown of a long list before others have a turn: some 30 us each."""

encode = msgspec.json.Encoder().encode

T = TypeVar("T")
S = TypeVar("S")


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


async def shown(values: Iterable[T], show: Callable[[T], S]) -> list[S]:
    """What `show` makes of the values of a list that may be long."""
    made: list[S] = []
    for value in values:
        made.append(show(value))
        if not len(made) % AT_ONCE:
            await asyncio.sleep(0)
    return made
