"""The home of routes whose issue has not landed: they are there to say so (D5)."""

from collections.abc import Awaitable, Callable

from waypost.api.answer import Answer
from waypost.api.exchange import Api, Request
from waypost.domain.errors import NotFound


def refusing(name: str) -> Callable[[Api, Request], Awaitable[Answer]]:
    """A handler that says that what is called `name` is not there yet."""

    async def refuse(_api: Api, _request: Request) -> Answer:
        raise NotFound(f"{name} is not supported yet")

    return refuse
