"""The home of reading and cancelling one message over HTTP (contract sections 6.1, 6.2)."""

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import message_json
from waypost.api.exchange import Api, Request
from waypost.domain.errors import NotFound


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
