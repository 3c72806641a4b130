"""The home of the dead letter queue over HTTP (contract section 10)."""

from typing import Final

from waypost.api.answer import Answer, json_answer
from waypost.api.encoding import dead_letter_json
from waypost.api.exchange import Api, Request
from waypost.api.filters import check_names, count_of, one_of
from waypost.domain.errors import NotFound

COUNT_MAX: Final = 100

KNOWN: Final = frozenset({"cursor", "count"})
LATER: Final = frozenset(
    {
        "callerIp", "callerIP", "dlqIds", "flowControlKey", "fromDate", "label", "messageId",
        "order", "queueName", "responseStatus", "scheduleId", "source", "toDate", "topicName",
        "trimBody", "url",
    }
)  # fmt: skip


async def page(api: Api, request: Request) -> Answer:
    given = request.parameters()
    check_names(given, known=KNOWN, later=LATER)
    found = await api.reader.dead_letters(
        request.tenant,
        cursor=one_of(given, "cursor"),
        count_max=count_of(given, most=COUNT_MAX),
    )
    answer: dict[str, object] = {
        "messages": [dead_letter_json(dead_letter) for dead_letter in found.dead_letters]
    }
    if found.cursor is not None:
        answer["cursor"] = found.cursor
    return json_answer(answer)


async def get(api: Api, request: Request) -> Answer:
    dead_letter_id = request.segment(0)
    dead_letter = await api.reader.dead_letter(request.tenant, dead_letter_id)
    if dead_letter is None:
        raise NotFound(f"dead letter {dead_letter_id} not found")
    return json_answer(dead_letter_json(dead_letter))
