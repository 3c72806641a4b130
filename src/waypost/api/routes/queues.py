"""The home of queues over HTTP (contract section 7)."""

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import queue_json
from waypost.api.exchange import Api, Request
from waypost.domain.errors import NotFound


async def get(api: Api, request: Request) -> Answer:
    name = request.segment(0)
    queue = await api.reader.queue(request.tenant, name)
    if queue is None:
        raise NotFound(f"queue {name} not found")
    return json_answer(queue_json(queue))
