"""The home of what can be asked of URL groups (contract section 9)."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from waypost.clock import Clock
from waypost.domain import options
from waypost.domain import url_groups as domain
from waypost.domain.destination import origin_of
from waypost.domain.errors import Invalid, NotFound
from waypost.domain.ids import url_group_id
from waypost.domain.options import Limits
from waypost.domain.url_groups import Endpoint, UrlGroup
from waypost.services.publishing import check_callbacks
from waypost.store.protocol import Reader
from waypost.store.protocol import UrlGroups as Store

TOLD_MAX = 1_000
"""Endpoints that one call may tell of."""


class Named(Struct, frozen=True):
    """An endpoint as it is told, by its URL, by its name, or by both."""

    url: str | None = None
    name: str | None = None


class UrlGroups:
    """Makes, changes and ends URL groups.  `refusal_of_host` is the egress policy's word at
    this door (D10)."""

    def __init__(
        self,
        store: Store,
        reader: Reader,
        clock: Clock,
        *,
        limits: Limits,
        refusal_of_host: Callable[[str, int, str], str | None],
        entropy: Callable[[int], int],
    ) -> None:
        self._store = store
        self._reader = reader
        self._clock = clock
        self._limits = limits
        self._refusal_of_host = refusal_of_host
        self._entropy = entropy

    async def get(self, tenant: str, name_or_id: str) -> UrlGroup:
        """Raises NotFound."""
        group = await self._reader.url_group(tenant, name_or_id)
        return _there(group, name_or_id)

    async def all(self, tenant: str) -> list[UrlGroup]:
        """By name."""
        return await self._reader.url_groups(tenant)

    async def add_endpoints(
        self, tenant: str, name_or_id: str, told: Sequence[Named]
    ) -> UrlGroup | None:
        """Add endpoints to a group, which is made if it is missing.

        Raises Invalid, QuotaExceeded or LimitReached; then nothing was changed.
        """
        now_ms = self._clock.now_ms()
        id_if_new = url_group_id(now_ms, self._entropy(80))
        endpoints = [self._checked(tenant, at, one) for at, one in enumerate(_some(told))]

        def change(group: UrlGroup | None) -> UrlGroup:
            if group is None:
                try:
                    name = domain.checked_group_name(name_or_id)
                except Invalid as fault:
                    raise Invalid(f"topic: {fault}") from None
                group = UrlGroup(id=id_if_new, name=name, created_ms=now_ms, updated_ms=now_ms)
            return domain.with_endpoints(
                group, endpoints, count_max=self._limits.endpoint_count_max, now_ms=now_ms
            )

        return await self._store.change_url_group(
            tenant, name_or_id, change, count_max=self._limits.url_group_count_max
        )

    async def remove_endpoints(
        self, tenant: str, name_or_id: str, told: Sequence[Named]
    ) -> UrlGroup | None:
        """Remove endpoints; None when none is left, and the group has ended (W140).

        Raises Invalid or NotFound; then nothing was changed.
        """
        now_ms = self._clock.now_ms()
        # An empty text is none, as in headers (W13).
        removed = [(one.url or None, one.name or None) for one in _some(told)]
        if (None, None) in removed:
            raise Invalid(f"endpoints[{removed.index((None, None))}]: neither a url nor a name")
        return await self._store.change_url_group(
            tenant,
            name_or_id,
            lambda group: domain.without_endpoints(
                _there(group, name_or_id), removed, now_ms=now_ms
            ),
        )

    async def set_header(
        self, tenant: str, name_or_id: str, given: Mapping[str, Sequence[str]]
    ) -> UrlGroup | None:
        """Give a group these default header fields, in place of those it had (W143).

        Raises Invalid, QuotaExceeded or NotFound; then nothing was changed.
        """
        now_ms = self._clock.now_ms()
        header = domain.checked_header(given)
        asked = options.parse(domain.fields_of(header), {}, limits=self._limits, now_ms=now_ms)
        check_callbacks(asked, self._refusal_of_host, tenant)
        return await self._store.change_url_group(
            tenant,
            name_or_id,
            lambda group: domain.with_header(_there(group, name_or_id), header, now_ms=now_ms),
        )

    async def delete(self, tenant: str, name_or_id: str) -> None:
        """End a group, if it is there (W141).  What was published to it is still delivered."""
        await self._store.change_url_group(tenant, name_or_id, lambda _group: None)

    def _checked(self, tenant: str, at: int, told: Named) -> Endpoint:
        try:
            endpoint = domain.checked_endpoint(told.url or "", told.name)
            origin = origin_of(endpoint.url)
            refusal = self._refusal_of_host(origin.host, origin.port, tenant)
            if refusal is not None:
                raise Invalid(f"invalid destination url: {refusal}")
        except Invalid as fault:
            raise Invalid(f"endpoints[{at}]: {fault}") from None
        return endpoint


def _there(group: UrlGroup | None, name_or_id: str) -> UrlGroup:
    if group is None:
        raise NotFound(f"topic {name_or_id} not found")
    return group


def _some(told: Sequence[Named]) -> Sequence[Named]:
    if not told:
        raise Invalid("endpoints: there must be at least one")
    if len(told) > TOLD_MAX:
        raise Invalid(f"endpoints: more than {TOLD_MAX} at once")
    return told
