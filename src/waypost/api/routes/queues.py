"""The home of queues over HTTP (contract section 7)."""

import msgspec
from msgspec import Struct

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import queue_json
from waypost.api.exchange import Api, Request
from waypost.api.json_body import read_json


class QueueToPut(Struct, frozen=True, rename="camel"):
    queue_name: str
    parallelism: int | None = None
    paused: bool | None = None


_put = msgspec.json.Decoder(QueueToPut)


async def page(api: Api, request: Request) -> Answer:
    return json_answer([queue_json(queue) for queue in await api.queues.all(request.tenant)])


async def get(api: Api, request: Request) -> Answer:
    return json_answer(queue_json(await api.queues.get(request.tenant, request.segment(0))))


async def put(api: Api, request: Request) -> Answer:
    asked = await read_json(api, request, _put)
    await api.queues.put(
        request.tenant,
        asked.queue_name,
        parallelism=1 if asked.parallelism is None else asked.parallelism,
        paused=asked.paused,
    )
    return json_answer({})


async def pause(api: Api, request: Request) -> Answer:
    await api.queues.pause(request.tenant, request.segment(0), paused=True)
    return json_answer({})


async def resume(api: Api, request: Request) -> Answer:
    await api.queues.pause(request.tenant, request.segment(0), paused=False)
    return json_answer({})


async def delete(api: Api, request: Request) -> Answer:
    """End a queue; it is no fault that there is none (W113)."""
    cancelled = await api.queues.delete(request.tenant, request.segment(0))
    return json_answer({"cancelled": cancelled})
