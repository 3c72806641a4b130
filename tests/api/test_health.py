"""What operators ask: alive, ready, and the metrics."""

import aiohttp

from tests.support.application import MINUTE, SECOND, T0, Application, SettableClock
from waypost.domain.errors import StoreUnavailable
from waypost.services.health import Health
from waypost.store.protocol import Pulse


async def test_a_running_server_is_alive_and_ready(server: Application) -> None:
    assert (await server.ask("GET", "/healthz", token=None)).json == {"status": "alive"}
    reply = await server.ask("GET", "/readyz", token=None)
    assert (reply.status, reply.json) == (200, {"status": "ready"})


async def test_metrics_count_what_was_accepted_and_name_no_path(server: Application) -> None:
    """D33: routes by their pattern."""
    await server.accepted()
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{server.port}/metrics") as answer,
    ):
        text = await answer.text()

    assert answer.content_type == "text/plain"
    assert "waypost_messages_accepted_total 1.0" in text
    assert 'route="/v2/publish/{destination...}",status="200"' in text
    assert "127.0.0.1" not in text


class Heart:
    """A store that is away, or whose oldest due message is `oldest_due_ms`."""

    def __init__(self, oldest_due_ms: int | None = None, *, away: bool = False) -> None:
        self.oldest_due_ms = oldest_due_ms
        self.away = away

    async def pulse(self, *, now_ms: int) -> Pulse:
        if self.away:
            raise StoreUnavailable("away")
        return Pulse(
            waiting=0,
            due=0,
            claimed=0,
            dead_letters=0,
            oldest_due_ms=self.oldest_due_ms,
            store_bytes=0,
            free_bytes=0,
            refusing=None,
        )


async def reasons(heart: Heart, *vitals: str | None) -> list[str]:
    health = Health(
        heart,
        SettableClock(),
        oldest_due_ms_max=MINUTE,
        vitals=[lambda vital=vital: vital for vital in vitals],  # type: ignore[misc]
    )
    return await health.reasons()


async def test_a_message_that_is_due_for_long_is_a_reason() -> None:
    assert await reasons(Heart(None)) == []
    assert await reasons(Heart(T0 - MINUTE)) == []
    [reason] = await reasons(Heart(T0 - MINUTE - SECOND))
    assert reason == "the oldest message that may go has been due for 61000 ms"


async def test_a_store_that_is_away_is_a_reason() -> None:
    assert await reasons(Heart(away=True)) == ["the store cannot answer"]


async def test_a_part_that_is_not_well_is_a_reason() -> None:
    assert await reasons(Heart(), None, "the upkeep loop is dead") == ["the upkeep loop is dead"]
    assert len(await reasons(Heart(away=True), "the upkeep loop is dead")) == 2
