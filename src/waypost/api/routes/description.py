"""The home of the API's description of itself, over HTTP."""

from waypost.api.answer import JSON, Answer
from waypost.api.exchange import Api, Request


async def get(api: Api, _request: Request) -> Answer:
    text = api.description()
    return Answer(200, [JSON, (b"content-length", b"%d" % len(text))], text)
