"""The home of batches over HTTP: many messages in one request (contract section 3).

An item is a publish request in JSON.  Header fields of the HTTP request speak of
no item, but for `CDN-Loop`, which tells through how many hands all of it went.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import item_json
from waypost.api.exchange import Api, Request
from waypost.api.json_body import read_json
from waypost.domain.errors import Invalid, TooLarge
from waypost.domain.header_fields import canonical_name
from waypost.services.publishing import Incoming

SHOWN_CHARS_MAX: Final = 128


class BatchItem(Struct, frozen=True):
    destination: str | None = None
    headers: dict[str, Any] | None = None
    body: str | None = None
    queue: str | None = None


_items = msgspec.json.Decoder(list[BatchItem])


async def batch(api: Api, request: Request) -> Answer:
    items = await read_json(api, request, _items, bytes_max=api.limits.batch_bytes_max)
    passages = [field for field in request.header if field[0] == b"cdn-loop"]
    answers = await api.publishing.publish_all(
        request.tenant,
        [_incoming(api, request, at, item, passages) for at, item in enumerate(items)],
    )
    return json_answer([item_json(one) for one in answers])


def _incoming(
    api: Api, request: Request, at: int, item: BatchItem, passages: list[tuple[bytes, bytes]]
) -> Incoming:
    body = (item.body or "").encode()
    if len(body) > api.limits.body_bytes_max:
        raise TooLarge(f"[{at}]: the body is larger than {api.limits.body_bytes_max} bytes")
    destination, _, query = (item.destination or "").encode().partition(b"?")
    try:
        header = passages + _fields(item.headers or {})
    except Invalid as fault:
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
