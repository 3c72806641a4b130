"""The home of batches over HTTP: many messages in one request (contract section 3).

An item is a publish request in JSON.  Header fields of the HTTP request speak of
no item, but for `CDN-Loop`, which tells through how many hands all of it went.
"""

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct, defstruct, field
from msgspec.structs import astuple

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import item_json
from waypost.api.exchange import Api, Request
from waypost.api.json_body import read_json
from waypost.domain.errors import Invalid, QuotaExceeded, TooLarge
from waypost.domain.header_fields import canonical_name
from waypost.services.publishing import Incoming

SHOWN_CHARS_MAX: Final = 128


_HeadersUnread = Annotated[
    Raw, Meta(extra_json_schema={"anyOf": [{"type": "object"}, {"type": "null"}]})
]


class BatchItem(Struct, frozen=True):
    destination: str | None = None
    headers: _HeadersUnread = field(default_factory=Raw)
    body: str | None = None
    queue: str | None = None


_item = msgspec.json.Decoder(BatchItem)
_headers = msgspec.json.Decoder(dict[str, Any] | None)


@cache
def _items_of(count_max: int) -> msgspec.json.Decoder[Struct]:
    """Reads an array of items, which stay as they are, and stops at the first too many.

    Each place is a field: a list would be built whole before it could be counted, and of
    the smallest items 100 MB have 33 million.
    """

    def refuse(_self: Struct) -> None:
        raise QuotaExceeded(f"quota maxBatchMessages exceeded, current limit: {count_max}")

    too_many = defstruct("TooMany", [], namespace={"__post_init__": refuse})
    places = [(f"at_{at}", Raw, Raw()) for at in range(count_max)]
    items = defstruct("Items", [*places, ("after", too_many | None, None)], array_like=True)
    return msgspec.json.Decoder(items)


async def batch(api: Api, request: Request) -> Answer:
    limits = api.limits
    decoder = _items_of(limits.batch_count_max)
    items = astuple(await read_json(api, request, decoder, bytes_max=limits.batch_bytes_max))
    answers = await api.publishing.publish_all(request.tenant, _read(api, request, items[:-1]))
    return json_answer([item_json(one) for one in answers])


def _read(api: Api, request: Request, items: tuple[Raw, ...]) -> Iterator[Incoming]:
    """The items, each read when it is asked for.  Raises Invalid and TooLarge."""
    passages = [one for one in request.header if one[0] == b"cdn-loop"]
    for at, raw in enumerate(items):
        if not raw:
            break
        try:
            item = _item.decode(raw)
        except (msgspec.ValidationError, UnicodeDecodeError) as fault:
            raise Invalid(f"[{at}]: {fault}") from None
        yield _incoming(api, request, at, item, passages)


def _incoming(
    api: Api, request: Request, at: int, item: BatchItem, passages: list[tuple[bytes, bytes]]
) -> Incoming:
    if len(item.headers) > api.limits.head_bytes_max:
        raise TooLarge(f"[{at}]: headers: larger than {api.limits.head_bytes_max} bytes")
    body = (item.body or "").encode()
    if len(body) > api.limits.body_bytes_max:
        raise TooLarge(f"[{at}]: the body is larger than {api.limits.body_bytes_max} bytes")
    destination, _, query = (item.destination or "").encode().partition(b"?")
    try:
        header = passages + _fields(_headers.decode(item.headers or b"null") or {})
    except (Invalid, msgspec.ValidationError, UnicodeDecodeError) as fault:
        raise Invalid(f"[{at}]: headers: {fault}") from None
    return Incoming(
        destination=destination,
        query=query,
        header=header,
        body=body,
        caller_ip=request.caller_ip,
        queue=item.queue or None,
    )


def _fields(headers: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """What a map of headers says as fields of a request, whose names are in lower case."""
    fields = []
    for name, value in headers.items():
        raw = name.encode()
        try:
            canonical_name(raw)
        except Invalid as fault:
            raise Invalid(f"{name[:SHOWN_CHARS_MAX]!r}: {fault}") from None
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str):
                raise Invalid(f"{name[:SHOWN_CHARS_MAX]} is neither a text nor a list of texts")
            fields.append((raw.lower(), one.encode()))
    return fields
