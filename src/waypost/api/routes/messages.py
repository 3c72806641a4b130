"""The home of messages over HTTP: read, cancelled one by one and many at once (section 6)."""

from typing import Final

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import message_json
from waypost.api.exchange import Api, Request
from waypost.api.filters import MESSAGE_FILTERS, check_names, count_of, fields_of_body, filter_of
from waypost.domain.errors import NotFound

CANCELLED_MAX: Final = 500

KNOWN: Final = MESSAGE_FILTERS | {"count"}


async def get(api: Api, request: Request) -> Answer:
    message_id = request.segment(0)
    found = await api.reader.message(request.tenant, message_id)
    if found is None:
        raise NotFound(f"message {message_id} not found")
    return json_answer(message_json(*found))


async def cancel(api: Api, request: Request) -> Answer:
    """Cancel a message; one that has ended is known, and 0 were cancelled (D16)."""
    message_id = request.segment(0)
    cancelled = await api.deliveries.cancel(request.tenant, message_id, now_ms=api.clock.now_ms())
    if not cancelled.known:
        raise NotFound(f"message {message_id} not found")
    return json_answer({"cancelled": cancelled.count})


async def cancel_many(api: Api, request: Request) -> Answer:
    """Cancel what the query and the body name; without a filter, everything (D36)."""
    query = request.parameters(blank=True)
    check_names(query, known=KNOWN)
    body = await fields_of_body(api, request, known=KNOWN, everything="messageIds")
    said = {**body, **query}
    cancelled = await api.messages.cancel_many(
        request.tenant,
        filter_of(query, body),
        count_max=count_of(said, most=CANCELLED_MAX) if said.get("count") else None,
    )
    return json_answer({"cancelled": cancelled})
