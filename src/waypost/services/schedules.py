"""The home of what can be asked of schedules, and of their firings (contract section 8)."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from msgspec import Struct
from msgspec.structs import replace

from waypost.clock import Clock
from waypost.domain import options
from waypost.domain import schedules as domain
from waypost.domain.cron import read_cron
from waypost.domain.destination import ToApi, ToGroup, ToUrl, read_destination
from waypost.domain.errors import (
    Invalid,
    LimitReached,
    NotFound,
    QuotaExceeded,
    RateLimited,
)
from waypost.domain.ids import schedule_id
from waypost.domain.options import Limits
from waypost.domain.schedules import Rule, Schedule, Turn
from waypost.services.publishing import Incoming, Publishing
from waypost.services.rates import Rates
from waypost.store.protocol import Births, Draft, Reader, ScheduleSeen
from waypost.store.protocol import Schedules as Store
from waypost.telemetry import Telemetry

log = structlog.stdlib.get_logger()

FIRED_AT_ONCE: Final = 50
FIRED_BYTES_AT_ONCE: Final = 4_000_000
"""What one step takes up, so that publishes and deliveries have their turn."""

PUT_OFF_MS: Final = 3_600_000
"""When a schedule is looked at again that cannot be read, or whose zone is not known."""

COUNTED_MAX: Final = 1_000
"""Skipped firings of one schedule that are counted; of more it is said that there are so many."""

COUNTED_IN_TURN: Final = 100


class Seen(Struct, frozen=True, kw_only=True):
    """A schedule as it is shown; `next_ms` goes on while it is paused."""

    kept: ScheduleSeen
    next_ms: int | None


class Schedules:
    """Makes, changes, ends and fires schedules.  `changed` is called when one may be due
    sooner than was known."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        publishing: Publishing,
        clock: Clock,
        telemetry: Telemetry,
        *,
        limits: Limits,
        rule: Rule,
        births: Births,
        shown_bytes_max: int,
        entropy: Callable[[int], int],
        rates: Rates | None = None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._publishing = publishing
        self._clock = clock
        self._telemetry = telemetry
        self._limits = limits
        self._rule = rule
        self._births = births
        self._shown_bytes_max = shown_bytes_max
        self._entropy = entropy
        self._rates = rates or Rates(clock)
        self.changed: Callable[[], None] = _ignore

    async def create(self, tenant: str, incoming: Incoming) -> str:
        """Make a schedule, or put it in the place of the one of that id; its id.

        What a run would be refused for now is refused now.
        Raises Invalid, QuotaExceeded, NotFound, LimitReached, StoreFull, StoreUnavailable,
        and Unauthenticated as `change_schedule` does; then nothing was changed.
        """
        now_ms = self._clock.now_ms()
        destination, parameters = read_destination(incoming.destination, incoming.query)
        said = domain.read_request(incoming.header, parameters)
        asked = options.parse(said.fields, said.parameters, limits=self._limits, now_ms=now_ms)
        domain.check_asked(asked)
        if incoming.queue is not None:
            try:
                asked = replace(asked, queue=options.checked_name(incoming.queue))
            except Invalid as fault:
                raise Invalid(f"queue: {fault}") from None
        to_group = isinstance(destination, ToGroup)
        schedule = Schedule(
            tenant=tenant,
            id=said.id or schedule_id(now_ms, self._entropy(80)),
            cron=said.cron,
            destination=_text_of(destination),
            asked=replace(asked, not_before_ms=0),
            delay_ms=asked.not_before_ms - now_ms,
            fields=domain.kept_fields(said.fields) if to_group else [],
            parameters=dict(said.parameters) if to_group else {},
            caller_ip=incoming.caller_ip,
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        await self._drafts(schedule, incoming.body, now_ms)
        await self._store.change_schedule(
            tenant,
            schedule.id,
            lambda before: domain.in_place_of(before, schedule, now_ms=now_ms),
            body=incoming.body,
            count_max=self._limits.schedule_count_max,
        )
        self.changed()
        return schedule.id

    async def get(self, tenant: str, schedule_id: str) -> Seen:
        """Raises NotFound."""
        kept = await self._reader.schedule(tenant, schedule_id)
        if kept is None:
            raise _unknown(schedule_id)
        return self._seen(kept)

    async def all(self, tenant: str) -> list[Seen]:
        """By id.  Bodies are shown as far as a page has room for them."""
        kept = await self._reader.schedules(tenant, bytes_max=self._shown_bytes_max)
        return [self._seen(one) for one in kept]

    async def delete(self, tenant: str, schedule_id: str) -> None:
        """End a schedule, if it is there.  The messages that it made stay (W135)."""
        await self._store.change_schedule(tenant, schedule_id, lambda _schedule: None)

    async def pause(self, tenant: str, schedule_id: str) -> None:
        """Ignore the firings of a schedule.  Raises NotFound."""
        await self._change(tenant, schedule_id, domain.paused)

    async def resume(self, tenant: str, schedule_id: str) -> None:
        """Fire a schedule again, from its next fire time on.  Raises NotFound."""
        await self._change(tenant, schedule_id, domain.resumed)
        self.changed()

    async def fire_due(self, now_ms: int) -> int | None:
        """Fire some of the schedules that are due: when there is more to do, or None.

        Raises StoreFull and StoreUnavailable; what was not fired is still due.
        """
        due = await self._reader.due_schedules(
            now_ms=now_ms, count_max=FIRED_AT_ONCE, bytes_max=FIRED_BYTES_AT_ONCE
        )
        until_ms = now_ms + PUT_OFF_MS
        for place in due.unreadable:
            await self._store.put_off_schedule(*place, until_ms=until_ms, now_ms=now_ms)
        results = await asyncio.gather(
            *(self._fire(schedule, body, now_ms) for schedule, body in due.due),
            return_exceptions=True,
        )
        next_ms = due.next_ms
        for result in results:
            if isinstance(result, BaseException):
                raise result
            if result is not None and (next_ms is None or result < next_ms):
                next_ms = result
        return next_ms

    async def _fire(self, schedule: Schedule, body: bytes, now_ms: int) -> int | None:
        """Fire a schedule that is due; when it is due again."""
        try:
            turn = domain.turn(schedule, rule=self._rule, now_ms=now_ms)
        except Invalid as fault:  # its zone is not in this database of zones
            return await self._put_off(schedule, f"Upstash-Cron: {fault}", now_ms)
        drafts: list[Draft] = []
        error = None
        if turn.fire_ms is not None:
            try:
                drafts = await self._drafts(schedule, body, now_ms)
                fired = await self._store_run(schedule, turn, drafts, None, now_ms)
            except (Invalid, QuotaExceeded, NotFound, LimitReached, RateLimited) as fault:
                error = str(fault)
        if turn.fire_ms is None or error is not None:
            fired = await self._store_run(schedule, turn, [], error, now_ms)
        if not fired:
            return now_ms
        if turn.skipped_ms is not None:
            await self._tell_of_skipped(schedule, turn, now_ms)
        if error is not None:
            self._tell_of_failed(schedule, error)
        elif turn.fire_ms is not None:
            self._telemetry.firings["fired"] += 1
            self._telemetry.messages_scheduled += len(drafts)
        return turn.next_ms

    async def _store_run(
        self, schedule: Schedule, turn: Turn, drafts: list[Draft], error: str | None, now_ms: int
    ) -> bool:
        """Put a turn and its messages into the store; see `fire` of the protocol.

        Raises what that raises, and RateLimited; then the messages do not count.
        """
        run = [draft.message.id for draft in drafts]
        after = domain.moved_on(schedule, turn, run=run, error=error, now_ms=now_ms)
        with self._rates.messages(schedule.tenant, len(drafts)):
            fired = await self._store.fire(
                schedule,
                after,
                drafts,
                births=self._births,
                queue_count_max=self._limits.queue_count_max,
                now_ms=now_ms,
            )
        if not fired:
            self._rates.take_back(schedule.tenant, len(drafts))
        return fired

    async def _put_off(self, schedule: Schedule, error: str, now_ms: int) -> int:
        """Leave a firing for later; when it is due again."""
        if not await self._store_run(schedule, Turn(next_ms=schedule.next_ms), [], error, now_ms):
            return now_ms
        until_ms = now_ms + PUT_OFF_MS
        await self._store.put_off_schedule(
            schedule.tenant, schedule.id, until_ms=until_ms, now_ms=now_ms
        )
        self._tell_of_failed(schedule, error)
        return until_ms

    def _tell_of_failed(self, schedule: Schedule, error: str) -> None:
        self._telemetry.firings["failed"] += 1
        log.warning("firing_failed", schedule_id=schedule.id, why=error)

    async def _drafts(self, schedule: Schedule, body: bytes, now_ms: int) -> list[Draft]:
        """The messages of a run that is made now."""
        publishing, tenant = self._publishing, schedule.tenant
        destination, _ = read_destination(schedule.destination.encode(), b"")
        asked = schedule.asked
        incoming = Incoming(
            destination=b"", query=b"", header=[], body=body, caller_ip=schedule.caller_ip,
            queue=asked.queue,
        )  # fmt: skip
        not_before_ms = now_ms + schedule.delay_ms
        if isinstance(destination, ToGroup):
            group = await publishing.group(tenant, destination.name)
            if group.header:
                fields = domain.fields_of(schedule)
                asked = publishing.asked_of_group(group, fields, schedule.parameters, now_ms=now_ms)
                not_before_ms = asked.not_before_ms
                asked = replace(asked, deduplication_id=None, content_based_deduplication=False)
            asked = replace(asked, not_before_ms=not_before_ms)
            drafts = publishing.fan_out(tenant, group, asked, incoming, now_ms=now_ms)
        else:
            asked = replace(asked, not_before_ms=not_before_ms)
            drafts = [publishing.draft(tenant, destination, asked, incoming, now_ms=now_ms)]
        return [
            replace(draft, message=replace(draft.message, schedule=schedule.id)) for draft in drafts
        ]

    async def _change(self, tenant: str, schedule_id: str, change: Callable[..., Schedule]) -> None:
        now_ms = self._clock.now_ms()

        def changed(schedule: Schedule | None) -> Schedule:
            if schedule is None:
                raise _unknown(schedule_id)
            return change(schedule, now_ms=now_ms)

        await self._store.change_schedule(tenant, schedule_id, changed)

    async def _tell_of_skipped(self, schedule: Schedule, turn: Turn, now_ms: int) -> None:
        """Count the firings that are passed over, and log them."""
        assert turn.skipped_ms is not None
        cron = read_cron(schedule.cron)
        until_ms = now_ms + 1 if turn.fire_ms is None else turn.fire_ms
        last_ms, count = turn.skipped_ms, 1
        while count < COUNTED_MAX:
            next_ms = cron.next_ms(last_ms)
            if next_ms is None or next_ms >= until_ms:
                break
            last_ms = next_ms
            count += 1
            if count % COUNTED_IN_TURN == 0:
                await asyncio.sleep(0)
        self._telemetry.firings["skipped"] += count
        log.warning(
            "firings_skipped",
            schedule_id=schedule.id,
            count=count,
            first_ms=turn.skipped_ms,
            last_ms=last_ms,
            misfire=self._rule.misfire,
        )

    def _seen(self, kept: ScheduleSeen) -> Seen:
        next_ms = domain.upcoming_ms(kept.schedule, now_ms=self._clock.now_ms())
        return Seen(kept=kept, next_ms=next_ms)


def _text_of(destination: ToUrl | ToApi | ToGroup) -> str:
    if isinstance(destination, ToUrl):
        return destination.url
    if isinstance(destination, ToApi):
        return f"api/{destination.name}"
    return destination.name


def _unknown(schedule_id: str) -> NotFound:
    return NotFound(f"schedule {schedule_id} not found")


def _ignore() -> None:
    """Nobody has asked to be told."""
