"""A clock that is set."""

from tests.support.factory import T0


class SetClock:
    def __init__(self, now_ms: int = T0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def go_on(self, span_ms: int) -> None:
        self._now_ms += span_ms
