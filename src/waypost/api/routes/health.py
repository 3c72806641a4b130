"""The home of what operators ask: is it alive, should it get requests, how is it."""

from waypost.api.answer import Answer, json_answer
from waypost.api.exchange import Api, Request


async def alive(_api: Api, _request: Request) -> Answer:
    return json_answer({"status": "alive"})


async def ready(api: Api, _request: Request) -> Answer:
    reasons = await api.health.reasons()
    if reasons:
        return json_answer({"error": "not ready", "reasons": reasons}, status=503)
    return json_answer({"status": "ready"})


async def metrics(api: Api, _request: Request) -> Answer:
    text = await api.metrics()
    header = [
        (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),
        (b"content-length", b"%d" % len(text)),
    ]
    return Answer(200, header, text)
