"""The home of URL groups over HTTP, which calls them topics (contract section 9)."""

from typing import Any

import msgspec
from msgspec import Struct

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import url_group_json
from waypost.api.exchange import Api, Request
from waypost.api.json_body import read_json
from waypost.domain.errors import Invalid
from waypost.domain.url_groups import UrlGroup
from waypost.services.url_groups import Named


class EndpointToAdd(Struct, frozen=True):
    url: str
    name: str | None = None


class EndpointsToAdd(Struct, frozen=True):
    endpoints: list[EndpointToAdd]


class EndpointsToRemove(Struct, frozen=True):
    endpoints: list[Named]


class DefaultHeaders(Struct, frozen=True):
    headers: dict[str, Any]


_to_add = msgspec.json.Decoder(EndpointsToAdd)
_to_remove = msgspec.json.Decoder(EndpointsToRemove)
_defaults = msgspec.json.Decoder(DefaultHeaders)


async def page(api: Api, request: Request) -> Answer:
    groups = await api.url_groups.all(request.tenant)
    return json_answer([url_group_json(group) for group in groups])


async def get(api: Api, request: Request) -> Answer:
    return _shown(await api.url_groups.get(request.tenant, request.segment(0)))


async def add_endpoints(api: Api, request: Request) -> Answer:
    asked = await read_json(api, request, _to_add)
    told = [Named(one.url, one.name) for one in asked.endpoints]
    return _shown(await api.url_groups.add_endpoints(request.tenant, request.segment(0), told))


async def remove_endpoints(api: Api, request: Request) -> Answer:
    asked = await read_json(api, request, _to_remove)
    return _shown(
        await api.url_groups.remove_endpoints(request.tenant, request.segment(0), asked.endpoints)
    )


async def set_header(api: Api, request: Request) -> Answer:
    asked = await read_json(api, request, _defaults)
    header = {name: _values(name, value) for name, value in asked.headers.items()}
    return _shown(await api.url_groups.set_header(request.tenant, request.segment(0), header))


async def delete(api: Api, request: Request) -> Answer:
    """End a group; it is no fault that there is none (W141)."""
    await api.url_groups.delete(request.tenant, request.segment(0))
    return json_answer({})


def _shown(group: UrlGroup | None) -> Answer:
    """The group as it is now; nothing of one that has ended."""
    return json_answer({} if group is None else url_group_json(group))


def _values(name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    texts = [one for one in values if isinstance(one, str)]
    if len(texts) < len(values):
        raise Invalid(f"headers: {name[:128]!r} is neither a text nor a list of texts")
    return texts
