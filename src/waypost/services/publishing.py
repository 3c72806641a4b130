"""The home of publishing: from a request's raw bytes to messages on disk."""

from collections.abc import Callable

from msgspec import Struct

from waypost.clock import Clock
from waypost.domain import options
from waypost.domain.deduplication import WINDOW_MS, dedup_key
from waypost.domain.destination import (
    ToApi,
    ToGroup,
    ToUrl,
    origin_of,
    read_destination,
    unknown_group,
)
from waypost.domain.errors import Invalid
from waypost.domain.hops import hops_of
from waypost.domain.ids import message_id
from waypost.domain.message import Message
from waypost.domain.options import Limits, Options
from waypost.domain.places import Places
from waypost.store.protocol import Claim, Deliveries, Draft
from waypost.telemetry import Telemetry


class Incoming(Struct, frozen=True, kw_only=True):
    """A publish request.  `destination` is what followed `/publish/`, and `query` what
    followed the `?`, both raw; names in `header` are in lower case."""

    destination: bytes
    query: bytes
    header: list[tuple[bytes, bytes]]
    body: bytes
    caller_ip: str | None
    queue: str | None = None


class Receipt(Struct, frozen=True, kw_only=True):
    """What the publisher is told."""

    message_id: str
    deduplicated: bool


class Publishing:
    """Accepts messages.  `refusal_of_host` is the egress policy's word at this door (D10)."""

    def __init__(
        self,
        deliveries: Deliveries,
        clock: Clock,
        telemetry: Telemetry,
        *,
        limits: Limits,
        places: Places,
        hand_over: Callable[[Claim], None],
        refusal_of_host: Callable[[str, int], str | None],
        entropy: Callable[[int], int],
    ) -> None:
        self._deliveries = deliveries
        self._clock = clock
        self._telemetry = telemetry
        self._limits = limits
        self._places = places
        self._hand_over = hand_over
        self._refusal_of_host = refusal_of_host
        self._entropy = entropy

    async def publish(self, tenant: str, incoming: Incoming) -> Receipt:
        """Accept a message; it is on disk when this returns.

        Raises Invalid, QuotaExceeded, NotFound, StoreFull, StoreUnavailable; then
        nothing was accepted.
        """
        now_ms = self._clock.now_ms()
        destination, parameters = read_destination(incoming.destination, incoming.query)
        asked = options.parse(incoming.header, parameters, limits=self._limits, now_ms=now_ms)
        match destination:
            case ToUrl(url):
                draft = self._draft(tenant, url, asked, incoming, now_ms)
            case ToApi(name):
                raise Invalid(f"api/{name}: no API of that name is configured")
            case ToGroup(name):
                raise unknown_group(name)
        [accepted] = await self._deliveries.add(
            [draft], places=self._places, hand_over=self._hand_over, now_ms=now_ms
        )
        if accepted.deduplicated:
            self._telemetry.messages_deduplicated += 1
        else:
            self._telemetry.messages_accepted += 1
        return Receipt(message_id=accepted.message_id, deduplicated=accepted.deduplicated)

    def _draft(
        self, tenant: str, url: str, asked: Options, incoming: Incoming, now_ms: int
    ) -> Draft:
        origin = origin_of(url)
        refusal = self._refusal_of_host(origin.host, origin.port)
        if refusal is not None:
            raise Invalid(f"invalid destination url: {refusal}")
        queue = asked.queue
        if incoming.queue is not None:
            try:
                queue = options.checked_name(incoming.queue)
            except Invalid as fault:
                raise Invalid(f"queue: {fault}") from None
        message = Message(
            tenant=tenant,
            id=message_id(now_ms, self._entropy(80)),
            created_ms=now_ms,
            not_before_ms=asked.not_before_ms,
            url=url,
            method=asked.method,
            header=asked.header,
            retries_max=asked.retries,
            retry_delay=asked.retry_delay,
            timeout_ms=asked.timeout_ms,
            queue=queue,
            labels=asked.labels,
            caller_ip=incoming.caller_ip,
            hops=_hops(incoming),
        )
        key = dedup_key(
            deduplication_id=asked.deduplication_id,
            content_based=asked.content_based_deduplication,
            url=url,
            header=asked.header,
            body=incoming.body,
        )
        return Draft(
            message=message,
            body=incoming.body,
            host=origin.key,
            dedup_key=key,
            dedup_until_ms=now_ms + WINDOW_MS,
        )


def _hops(incoming: Incoming) -> int:
    for name, value in incoming.header:
        if name == b"cdn-loop":
            return hops_of(value.decode("latin-1"))
    return 0
