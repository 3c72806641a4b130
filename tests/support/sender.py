"""A sender that remembers, and answers what the test says."""

import asyncio
from collections.abc import Callable

from tests.support.factory import OK
from waypost.domain.attempt import Outcome
from waypost.wire.protocol import Request


class RememberingSender:
    """`answer` is asked for each outcome; `hold` keeps attempts under way until `let_go`."""

    def __init__(self, answer: Callable[[Request], Outcome] = lambda _request: OK) -> None:
        self.sent: list[Request] = []
        self.answer = answer
        self._gate = asyncio.Event()
        self._gate.set()

    def hold(self) -> None:
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()

    async def send(self, request: Request) -> Outcome:
        self.sent.append(request)
        await self._gate.wait()
        return self.answer(request)
