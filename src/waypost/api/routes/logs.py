"""The home of the log over HTTP: `/v2/events`, and `/v2/logs`, which says the same in three ways.

The SDKs read `events`; the documentation says `logs`; the hosted service's
own tools read `messages`, the entries gathered by message (A4).
"""

from typing import Final

from msgspec import Raw

from waypost.api.answer import Answer, encode, json_answer
from waypost.api.encoding import log_entry_json, log_group_json
from waypost.api.exchange import Api, Request
from waypost.api.filters import all_of, check_names, count_of, one_of
from waypost.domain.errors import Invalid
from waypost.domain.message import IN_PROGRESS, Logged
from waypost.store.protocol import LogEntry, LogFilter, LogPage

COUNT_MAX: Final = 1_000

KNOWN: Final = frozenset({"cursor", "count", "messageId", "messageIds", "state"})
LATER: Final = frozenset(
    {
        "callerIp", "callerIP", "flowControlKey", "fromDate", "groupBy", "host", "label", "order",
        "path", "queueName", "scheduleId", "toDate", "topicName", "trimBody", "url",
    }
)  # fmt: skip

STATES: Final = {state.value: (state,) for state in Logged} | {
    "CANCELLED": (Logged.CANCELED,),
    "IN_PROGRESS": IN_PROGRESS,
}


async def events(api: Api, request: Request) -> Answer:
    page = await _page(api, request, bytes_max=api.limits.page_bytes_max)
    answer: dict[str, object] = {"events": [log_entry_json(entry) for entry in page.entries]}
    if page.cursor is not None:
        answer["cursor"] = page.cursor
    return json_answer(answer)


async def logs(api: Api, request: Request) -> Answer:
    # Every entry is written three times, so a third of the bytes fills the page.
    page = await _page(api, request, bytes_max=api.limits.page_bytes_max // 3)
    entries = Raw(encode([log_entry_json(entry) for entry in page.entries]))
    gathered: dict[str, list[LogEntry]] = {}
    for entry in page.entries:
        gathered.setdefault(entry.message.id, []).append(entry)
    answer: dict[str, object] = {
        "events": entries,
        "logs": entries,
        "messages": [log_group_json(group) for group in gathered.values()],
    }
    if page.cursor is not None:
        answer["cursor"] = page.cursor
    return json_answer(answer)


async def _page(api: Api, request: Request, *, bytes_max: int) -> LogPage:
    given = request.parameters()
    check_names(given, known=KNOWN, later=LATER)
    count_max = count_of(given, most=COUNT_MAX)
    states = [state for text in all_of(given, "state") for state in _states(text)]
    message_ids = all_of(given, "messageIds")
    message_id = one_of(given, "messageId")
    if message_id is not None:
        if message_ids and message_id not in message_ids:
            return LogPage([], None)
        message_ids = [message_id]
    return await api.reader.log(
        request.tenant,
        where=LogFilter(message_ids=message_ids, states=states),
        cursor=one_of(given, "cursor"),
        count_max=count_max,
        bytes_max=bytes_max,
    )


def _states(text: str) -> tuple[Logged, ...]:
    states = STATES.get(text.upper())
    if states is None:
        raise Invalid(f"there is no state {text}; states are {', '.join(STATES)}")
    return states
