"""A small server that speaks OpenAI's chat completions, as far as `api/llm` has to do with it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from msgspec import Struct, field

KEY = "sk-operator"
WORDS = ("Hello", " from", " the", " model", ".")
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-test",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(WORDS)},
            "finish_reason": "stop",
        }
    ],
}


def chunks() -> bytes:
    """The answer as a stream: one event for each word, and the end."""
    events = [
        json.dumps({"object": "chat.completion.chunk", "choices": [{"delta": {"content": word}}]})
        for word in WORDS
    ]
    return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()


class Asked(Struct, frozen=True):
    """One request.  Names in `header` are in lower case."""

    target: str
    header: dict[str, str]
    body: bytes


class LlmServer(Struct):
    """`refusals` are answered first, one for each request: a status and header fields."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        header = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.raw_path, header, body))
        if request.raw_path != "/v1/chat/completions" or request.method != "POST":
            return _fault(404, "unknown_url")
        if header.get("authorization") != f"Bearer {KEY}":
            return _fault(401, "invalid_api_key")
        if self.refusals:
            status, fields = self.refusals.pop(0)
            return _fault(status, "try_again", fields)
        if not json.loads(body).get("stream"):
            return web.json_response(COMPLETION)
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for event in chunks().split(b"\n\n")[:-1]:
            await stream.write(event + b"\n\n")
        await stream.write_eof()
        return stream


def _fault(status: int, code: str, header: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"code": code}}, status=status, headers=header)


@asynccontextmanager
async def llm_server(host: str = "127.0.0.1") -> AsyncIterator[LlmServer]:
    """Such a server on a port of its own; its `url` is the base that clients are given."""
    llm = LlmServer()
    runner = web.ServerRunner(web.Server(llm.handle), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, 0).start()
        at, port = runner.addresses[0][:2]
        llm.url = f"http://{at}:{port}/v1"
        yield llm
    finally:
        await runner.cleanup()
