"""The home of chat completions over HTTP: passed through to the operator's model (W229).

Status, body and what the header says of rates come back as they are, but for a
401: it speaks of the operator's key and not of the caller's token, and its text
may show a part of that key.
"""

from waypost.api.answer import Answer
from waypost.api.exchange import Api, Request
from waypost.api.problems import BadGateway
from waypost.domain.apis import answer_header


async def complete(api: Api, request: Request) -> Answer:
    body = await request.body(api)
    with request.while_there():
        answered = await api.chat.ask(request.header, body)
    outcome = answered.outcome
    if outcome.status == 0:
        answered.close()
        raise BadGateway(f"the model at llm_base_url did not answer: {outcome.error}")
    if outcome.status == 401:
        answered.close()
        raise BadGateway("the model at llm_base_url did not accept the operator's llm_api_key")
    return Answer(outcome.status, answer_header(outcome.header), b"", answered)
