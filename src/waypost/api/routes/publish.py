"""The home of accepting messages over HTTP: publish, and enqueue, which names a queue.

The hot path.  What the request asks for is read by `services.publishing`.
"""

from waypost.api.answer import JSON, Answer, json_answer
from waypost.api.exchange import Api, Request
from waypost.services.publishing import Incoming


async def publish(api: Api, request: Request) -> Answer:
    return await _accept(api, request, destination=request.segments[0], queue=None)


async def enqueue(api: Api, request: Request) -> Answer:
    return await _accept(api, request, destination=request.segments[1], queue=request.segment(0))


async def _accept(api: Api, request: Request, *, destination: bytes, queue: str | None) -> Answer:
    body = await request.body(api)
    receipt = await api.publishing.publish(
        request.tenant,
        Incoming(
            destination=destination,
            query=request.query,
            header=request.header,
            body=body,
            caller_ip=request.caller_ip,
            queue=queue,
        ),
    )
    if receipt.deduplicated:
        return json_answer({"messageId": receipt.message_id, "deduplicated": True}, status=202)
    # Ids hold nothing that JSON would escape, and all have the same length.
    answer = b'{"messageId":"%b"}' % receipt.message_id.encode("ascii")
    return Answer(200, [JSON, (b"content-length", b"%d" % len(answer))], answer)
