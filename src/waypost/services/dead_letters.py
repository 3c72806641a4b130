"""The home of what can be asked of dead letters: to see, to delete and to retry them."""

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from waypost.clock import Clock
from waypost.domain.destination import origin_of
from waypost.domain.errors import LimitReached, NotFound, RateLimited, StoreFull
from waypost.domain.filters import Filter
from waypost.domain.hops import hops_of
from waypost.domain.ids import MESSAGE_ENTROPY_BITS, message_id
from waypost.domain.message import Message
from waypost.domain.options import Limits
from waypost.domain.overrides import anew, read_overrides
from waypost.services.chunks import CHUNK, in_chunks, total
from waypost.services.publishing import check_callbacks
from waypost.services.rates import Rates
from waypost.store.protocol import DeadLetter, Draft, Reader
from waypost.store.protocol import DeadLetters as Store
from waypost.telemetry import Telemetry

LOOK: Final = 500
"""Dead letters that are found before they are changed, chunk by chunk."""

Header = Sequence[tuple[bytes, bytes]]


class Listed(Struct, frozen=True):
    """A page; `cursor` is where there are more, None where there are not."""

    dead_letters: list[DeadLetter]
    cursor: str | None


class Deleted(Struct, frozen=True):
    """How many went; `cursor` is where there are more, None where there are not."""

    count: int
    cursor: str | None


class Retried(Struct, frozen=True):
    """The ids of the new messages; `cursor` is where there are more, None where there are not."""

    message_ids: list[str]
    cursor: str | None


class DeadLetters:
    """Shows, deletes and retries.  `refusal_of_host` is that of `Publishing`."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        clock: Clock,
        telemetry: Telemetry,
        *,
        limits: Limits,
        rates: Rates,
        refusal_of_host: Callable[[str, int, str], str | None],
        entropy: Callable[[int], int],
    ) -> None:
        self._store = store
        self._reader = reader
        self._clock = clock
        self._telemetry = telemetry
        self._limits = limits
        self._rates = rates
        self._refusal_of_host = refusal_of_host
        self._entropy = entropy

    async def page(
        self,
        tenant: str,
        where: Filter,
        *,
        latest_first: bool,
        cursor: str | None,
        count_max: int,
        bytes_max: int,
        bodies: bool = True,
    ) -> Listed:
        """A page that is full, in count or in bytes, or the last one, which has no cursor.

        Raises Invalid for a cursor that is not one of ours.
        """
        letters: list[DeadLetter] = []
        while True:
            page = await self._reader.dead_letters(
                tenant,
                where=where,
                latest_first=latest_first,
                cursor=cursor,
                count_max=count_max - len(letters),
                bytes_max=bytes_max,
                bodies=bodies,
            )
            full = page.full
            if letters and page.size > bytes_max:  # only the first of all has room in any case
                full = True
            else:
                letters += page.dead_letters
                bytes_max -= page.size
                cursor = page.cursor
            if cursor is None:
                return Listed(letters, None)
            if full:
                more = await self._more(tenant, where, cursor, latest_first=latest_first)
                return Listed(letters, more)

    async def get(self, tenant: str, letter_id: str) -> DeadLetter:
        """Raises NotFound."""
        letter = await self._reader.dead_letter(tenant, letter_id)
        if letter is None:
            raise _unknown(letter_id)
        return letter

    async def delete(self, tenant: str, letter_id: str) -> None:
        """Raises NotFound where there is none, or none any more."""
        if not await self._store.delete_dead_letters(tenant, [letter_id]):
            raise _unknown(letter_id)

    async def delete_many(
        self, tenant: str, where: Filter, *, cursor: str | None, count_max: int | None
    ) -> Deleted:
        """Delete those that `where` means, at most `count_max`, those first that failed first.

        Raises Invalid for a cursor that is not one of ours.
        """
        where = _until(where, self._clock.now_ms())
        deleted = 0
        while True:
            found = await self._reader.dead_letter_ids(
                tenant, where=where, cursor=cursor, count_max=_room(deleted, count_max)
            )
            deleted += await total(
                found.ids, lambda chunk: self._store.delete_dead_letters(tenant, chunk)
            )
            cursor = found.cursor
            if cursor is None:
                return Deleted(deleted, None)
            if deleted == count_max:
                return Deleted(deleted, await self._more(tenant, where, cursor))

    async def retry(self, tenant: str, letter_id: str, *, header: Header) -> str:
        """Publish the message of a dead letter anew, as the header has it: the new id.

        Raises NotFound, Invalid, QuotaExceeded, RateLimited, LimitReached, StoreFull; then
        nothing was changed.
        """
        now_ms = self._clock.now_ms()
        [new_id] = await self._retry(tenant, [letter_id], self._anew(tenant, header, now_ms))
        if new_id is None:
            raise _unknown(letter_id)
        return new_id

    async def retry_many(
        self,
        tenant: str,
        where: Filter,
        *,
        cursor: str | None,
        count_max: int | None,
        header: Header,
    ) -> Retried:
        """Publish anew what `where` means, at most `count_max`, those first that failed first.

        Each is published once, however many retry it at the same moment.  Where no more may
        be published this stops, and the rest is still there.
        Raises Invalid, QuotaExceeded, RateLimited, LimitReached and StoreFull; then nothing
        was changed.
        """
        now_ms = self._clock.now_ms()
        new_message = self._anew(tenant, header, now_ms)
        where = _until(where, now_ms)

        async def retry(chunk: Sequence[str]) -> list[str | None]:
            return await self._retry(tenant, chunk, new_message)

        new_ids: list[str] = []
        while True:
            found = await self._reader.dead_letter_ids(
                tenant, where=where, cursor=cursor, count_max=_room(len(new_ids), count_max)
            )
            left = found.ids
            while left:
                # Some in any case: where there is room for none, it says why.  The first chunk
                # goes alone: where it cannot, nothing is changed.
                room = max(1, self._rates.messages_room(tenant, len(left)))
                some = left[: room if new_ids else min(room, CHUNK)]
                left = left[len(some) :]
                stopped: BaseException | None = None
                for nth, retried in enumerate(await in_chunks(some, retry)):
                    if isinstance(retried, BaseException):
                        stopped = stopped or retried
                        continue
                    new_ids += [new_id for new_id in retried if new_id is not None]
                    if stopped is None:
                        cursor = some[: (nth + 1) * CHUNK][-1]
                if stopped is not None:
                    if new_ids and isinstance(stopped, RateLimited | LimitReached | StoreFull):
                        return Retried(new_ids, cursor)
                    raise stopped
            cursor = found.cursor
            if cursor is None:
                return Retried(new_ids, None)
            if len(new_ids) == count_max:
                return Retried(new_ids, await self._more(tenant, where, cursor))

    async def _retry(
        self, tenant: str, letter_ids: Sequence[str], new_message: Callable[[Message], Draft]
    ) -> list[str | None]:
        with self._rates.messages(tenant, len(letter_ids)):
            new_ids = await self._store.retry_dead_letters(
                tenant,
                letter_ids,
                new_message,
                queue_count_max=self._limits.queue_count_max,
                now_ms=self._clock.now_ms(),
            )
        accepted = sum(new_id is not None for new_id in new_ids)
        self._rates.take_back(tenant, len(letter_ids) - accepted)
        self._telemetry.messages_accepted += accepted
        return new_ids

    def _anew(self, tenant: str, header: Header, now_ms: int) -> Callable[[Message], Draft]:
        """What makes the new message of a dead one."""
        overrides = read_overrides(header, limits=self._limits, now_ms=now_ms)
        check_callbacks(overrides.asked, self._refusal_of_host, tenant)
        hops = hops_of(header, overrides.asked.header)

        def new_message(dead: Message) -> Draft:
            message = anew(
                dead,
                overrides,
                message_id=message_id(now_ms, self._entropy(MESSAGE_ENTROPY_BITS)),
                hops=hops,
                now_ms=now_ms,
            )
            host = message.url if message.api is not None else origin_of(message.url).key
            return Draft(message=message, host=host)

        return new_message

    async def _more(
        self, tenant: str, where: Filter, cursor: str, *, latest_first: bool = False
    ) -> str | None:
        """The cursor, or None where nothing more is to be found from there on."""
        at: str | None = cursor
        while at is not None:
            found = await self._reader.dead_letter_ids(
                tenant, where=where, latest_first=latest_first, cursor=at, count_max=1
            )
            if found.ids:
                return cursor
            at = found.cursor
        return None


def _until(where: Filter, now_ms: int) -> Filter:
    """What has failed by now: what is retried may fail again at once, and is not meant."""
    return replace(where, to_ms=now_ms if where.to_ms is None else min(where.to_ms, now_ms))


def _room(done: int, count_max: int | None) -> int:
    return LOOK if count_max is None else min(LOOK, count_max - done)


def _unknown(letter_id: str) -> NotFound:
    return NotFound(f"dead letter {letter_id} not found")
