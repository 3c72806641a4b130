"""The home of signing keys over HTTP (contract section 13)."""

from waypost.api.answer import Answer, json_answer
from waypost.api.exchange import Api, Request
from waypost.domain.errors import NotFound


async def get(api: Api, request: Request) -> Answer:
    keys = api.access.keys(request.tenant)
    if keys is None:
        raise NotFound("this tenant has no signing keys")
    return json_answer({"current": keys.current, "next": keys.next})


async def rotate(api: Api, request: Request) -> Answer:
    keys = await api.access.rotate(request.tenant)
    return json_answer({"current": keys.current, "next": keys.next})
