"""The home of publishing: from a request's raw bytes to messages on disk."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct, structs

from waypost.clock import Clock
from waypost.domain import options
from waypost.domain.apis import check_api, destination_of
from waypost.domain.deduplication import WINDOW_MS, dedup_key, group_dedup_keys
from waypost.domain.destination import (
    ToApi,
    ToGroup,
    ToUrl,
    origin_of,
    read_destination,
    unknown_group,
)
from waypost.domain.errors import Invalid, NotFound, QuotaExceeded
from waypost.domain.hops import hops_of
from waypost.domain.ids import message_id
from waypost.domain.message import Message
from waypost.domain.options import AsksForSchedule, Limits, Options
from waypost.domain.url_groups import UrlGroup, with_defaults
from waypost.services.rates import Rates
from waypost.store.protocol import Accepted, Births, Deliveries, Draft, Reader
from waypost.telemetry import Telemetry

TURN_ITEMS: Final = 64
"""Items of a batch that are read before others have their turn."""


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
    """What the publisher is told of a message."""

    message_id: str
    url: str
    deduplicated: bool


class Publishing:
    """Accepts messages.  `refusal_of_host` is the egress policy's word at this door, about a
    host, a port and a tenant (D10)."""

    def __init__(
        self,
        deliveries: Deliveries,
        reader: Reader,
        clock: Clock,
        telemetry: Telemetry,
        *,
        limits: Limits,
        births: Births,
        refusal_of_host: Callable[[str, int, str], str | None],
        entropy: Callable[[int], int],
        llm_known: bool = False,
        rates: Rates | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._reader = reader
        self._clock = clock
        self._telemetry = telemetry
        self._limits = limits
        self._births = births
        self._refusal_of_host = refusal_of_host
        self._entropy = entropy
        self._llm_known = llm_known
        self._rates = rates or Rates(clock)

    async def publish(self, tenant: str, incoming: Incoming) -> Receipt | list[Receipt]:
        """Accept a message, or for a URL group one for each of its endpoints, in their order.

        All of it is on disk when this returns.
        Raises Invalid, QuotaExceeded, LimitReached, RateLimited, NotFound, StoreFull,
        StoreUnavailable; then nothing was accepted.
        """
        now_ms = self._clock.now_ms()
        destination, parameters = read_destination(incoming.destination, incoming.query)
        if isinstance(destination, ToGroup):
            drafts = await self._to_group(tenant, destination, parameters, incoming, now_ms)
            return await self._accept(tenant, drafts, now_ms)
        # The hot path: without `_drafts` and `_accept`, which would make it 1 us longer.
        asked = options.parse(incoming.header, parameters, limits=self._limits, now_ms=now_ms)
        draft = self.draft(tenant, destination, asked, incoming, now_ms=now_ms)
        with self._rates.messages(tenant, 1):
            [one] = await self._deliveries.add(
                [draft],
                births=self._births,
                queue_count_max=self._limits.queue_count_max,
                now_ms=now_ms,
            )
        return self._receipt(draft, one)

    async def publish_all(
        self, tenant: str, batch: Iterable[Incoming]
    ) -> list[Receipt | list[Receipt]]:
        """Accept all of a batch, or nothing of it: for each of its items, in their order, what
        `publish` answers.

        Raises what `publish` raises; where an item is at fault, the text begins with its
        place, `[2]: `.  Also QuotaExceeded where it would be too many messages, and what
        `batch` raises, which is read an item at a time.
        """
        now_ms = self._clock.now_ms()
        drafted = []
        count = 0
        for at, incoming in enumerate(batch):
            try:
                asked = await self._drafts(tenant, incoming, now_ms)
            except AsksForSchedule:
                fault = "Upstash-Cron: a batch has no schedules, create it by itself"
                raise Invalid(f"[{at}]: {fault}") from None
            except (Invalid, QuotaExceeded, NotFound) as fault:
                raise Invalid(f"[{at}]: {fault}") from None
            drafted.append(asked)
            count += 1 if isinstance(asked, Draft) else len(asked)
            if count > self._limits.batch_count_max:
                raise QuotaExceeded(
                    f"[{at}]: quota maxBatchMessages exceeded, "
                    f"current limit: {self._limits.batch_count_max}"
                )
            if at % TURN_ITEMS == TURN_ITEMS - 1:
                await asyncio.sleep(0)
        drafts = [draft for one in drafted for draft in ([one] if isinstance(one, Draft) else one)]
        receipts = iter(await self._accept(tenant, drafts, now_ms))
        return [
            next(receipts) if isinstance(one, Draft) else list(islice(receipts, len(one)))
            for one in drafted
        ]

    async def _drafts(self, tenant: str, incoming: Incoming, now_ms: int) -> Draft | list[Draft]:
        """What an item of a batch asks to have accepted."""
        destination, parameters = read_destination(incoming.destination, incoming.query)
        if isinstance(destination, ToGroup):
            return await self._to_group(tenant, destination, parameters, incoming, now_ms)
        asked = options.parse(incoming.header, parameters, limits=self._limits, now_ms=now_ms)
        return self.draft(tenant, destination, asked, incoming, now_ms=now_ms)

    async def _to_group(
        self,
        tenant: str,
        destination: ToGroup,
        parameters: Mapping[str, str],
        incoming: Incoming,
        now_ms: int,
    ) -> list[Draft]:
        group = await self.group(tenant, destination.name)
        asked = self.asked_of_group(group, incoming.header, parameters, now_ms=now_ms)
        return self.fan_out(tenant, group, asked, incoming, now_ms=now_ms)

    async def group(self, tenant: str, name_or_id: str) -> UrlGroup:
        """The URL group as it is now.  Raises NotFound or Invalid; see `unknown_group`."""
        group = await self._reader.url_group(tenant, name_or_id)
        if group is None:
            raise unknown_group(name_or_id)
        return group

    def asked_of_group(
        self,
        group: UrlGroup,
        fields: Sequence[tuple[bytes, bytes]],
        parameters: Mapping[str, str],
        *,
        now_ms: int,
    ) -> Options:
        """What is asked for, with what the group says where the request does not (W143)."""
        fields = with_defaults(fields, parameters, group.header)
        return options.parse(fields, parameters, limits=self._limits, now_ms=now_ms)

    def draft(
        self,
        tenant: str,
        destination: ToUrl | ToApi,
        asked: Options,
        incoming: Incoming,
        *,
        now_ms: int,
    ) -> Draft:
        """The message that `asked` makes of a request, for one destination."""
        if isinstance(destination, ToUrl):
            url, api = destination.url, None
        else:
            api = destination.name
            check_api(api, llm_known=self._llm_known, called_back=asked.callback is not None)
            url = destination_of(api)
        key = dedup_key(
            deduplication_id=asked.deduplication_id,
            content_based=asked.content_based_deduplication,
            url=url,
            header=asked.header,
            body=incoming.body,
        )
        return self._draft(tenant, url, asked, incoming, now_ms, key=key, api=api)

    async def _accept(self, tenant: str, drafts: list[Draft], now_ms: int) -> list[Receipt]:
        with self._rates.messages(tenant, len(drafts)):
            accepted = await self._deliveries.add(
                drafts,
                births=self._births,
                queue_count_max=self._limits.queue_count_max,
                now_ms=now_ms,
            )
        return [self._receipt(draft, one) for draft, one in zip(drafts, accepted, strict=True)]

    def _receipt(self, draft: Draft, accepted: Accepted) -> Receipt:
        """Count a message that was answered for."""
        if accepted.deduplicated:
            self._telemetry.messages_deduplicated += 1
        else:
            self._telemetry.messages_accepted += 1
        return Receipt(
            message_id=accepted.message_id,
            url=draft.message.url,
            deduplicated=accepted.deduplicated,
        )

    def fan_out(
        self, tenant: str, group: UrlGroup, asked: Options, incoming: Incoming, *, now_ms: int
    ) -> list[Draft]:
        """A draft for each endpoint of a group; they have one body between them."""
        keys = group_dedup_keys(
            deduplication_id=asked.deduplication_id,
            content_based=asked.content_based_deduplication,
            group=group.name,
            urls=[endpoint.url for endpoint in group.endpoints],
            header=asked.header,
            body=incoming.body,
        )
        return [
            self._draft(
                tenant,
                endpoint.url,
                asked,
                incoming,
                now_ms,
                key=key,
                group=group.name,
                endpoint=endpoint.name,
            )
            for endpoint, key in zip(group.endpoints, keys, strict=True)
        ]

    def _draft(
        self,
        tenant: str,
        url: str,
        asked: Options,
        incoming: Incoming,
        now_ms: int,
        *,
        key: str | None,
        group: str | None = None,
        endpoint: str | None = None,
        api: str | None = None,
    ) -> Draft:
        host = url
        if api is None:  # the address of an API is the operator's own
            origin = origin_of(url)
            host, refusal = origin.key, self._refusal_of_host(origin.host, origin.port, tenant)
            if refusal is not None:
                raise Invalid(f"invalid destination url: {refusal}")
        if asked.callback is not None or asked.failure_callback is not None:
            check_callbacks(asked, self._refusal_of_host, tenant)
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
            method=asked.method if api is None else "POST",
            header=asked.header,
            retries_max=asked.retries,
            retry_delay=asked.retry_delay,
            timeout_ms=asked.timeout_ms,
            queue=queue,
            labels=asked.labels,
            caller_ip=incoming.caller_ip,
            hops=hops_of(incoming.header, asked.header),
        )
        if (
            group
            or api
            or asked.flow
            or asked.callback
            or asked.failure_callback
            or asked.redaction
        ):
            # Apart from the others: CPython puts more than 15 keywords of a call into a
            # dict, which would take each message 1 us.
            message = structs.replace(
                message,
                group=group,
                endpoint=endpoint,
                api=api,
                callback=asked.callback,
                failure_callback=asked.failure_callback,
                redaction=asked.redaction,
                flow=asked.flow,
            )
        return Draft(
            message=message,
            body=incoming.body,
            host=host,
            dedup_key=key,
            dedup_until_ms=now_ms + WINDOW_MS,
        )


def check_callbacks(
    asked: Options, refusal_of_host: Callable[[str, int, str], str | None], tenant: str
) -> None:
    """Raise Invalid, by the name of the field, for a callback that may not be reached (D10)."""
    for name, callback in (
        ("Upstash-Callback", asked.callback),
        ("Upstash-Failure-Callback", asked.failure_callback),
    ):
        if callback is not None:
            origin = origin_of(callback.url)
            refusal = refusal_of_host(origin.host, origin.port, tenant)
            if refusal is not None:
                raise Invalid(f"{name}: {refusal}")
