"""The home of accepting messages over HTTP: publish, and enqueue, which names a queue.

The hot path.  What the request asks for is read by `services.publishing`.
"""

from collections.abc import Sequence

from waypost.api.answer import JSON, Answer, json_answer
from waypost.api.encoding import receipt_json
from waypost.api.exchange import Api, Request
from waypost.api.routes import schedules
from waypost.domain.options import AsksForSchedule
from waypost.services.publishing import Incoming, Receipt


async def publish(api: Api, request: Request) -> Answer:
    return await _accept(api, request, destination=request.segments[0], queue=None)


async def enqueue(api: Api, request: Request) -> Answer:
    return await _accept(api, request, destination=request.segments[1], queue=request.segment(0))


async def _accept(api: Api, request: Request, *, destination: bytes, queue: str | None) -> Answer:
    body = await request.body(api)
    incoming = Incoming(
        destination=destination,
        query=request.query,
        header=request.header,
        body=body,
        caller_ip=request.caller_ip,
        queue=queue,
    )
    try:
        receipt = await api.publishing.publish(request.tenant, incoming)
    except AsksForSchedule:
        return await schedules.created(api, request, incoming)
    if isinstance(receipt, list):
        return _fanned_out(receipt)
    if receipt.deduplicated:
        return json_answer({"messageId": receipt.message_id, "deduplicated": True}, status=202)
    # Ids hold nothing that JSON would escape, and all have the same length.
    answer = b'{"messageId":"%b"}' % receipt.message_id.encode("ascii")
    return Answer(200, [JSON, (b"content-length", b"%d" % len(answer))], answer)


def _fanned_out(receipts: Sequence[Receipt]) -> Answer:
    """What became of the message for each endpoint of a URL group; 202 where all are
    duplicates (D1)."""
    duplicates = all(receipt.deduplicated for receipt in receipts)
    return json_answer(
        [receipt_json(receipt) for receipt in receipts], status=202 if duplicates else 200
    )
