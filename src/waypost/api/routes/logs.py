"""The home of the log over HTTP: `/v2/events`, and `/v2/logs`, which says the same in three ways.

The SDKs read `events`; the documentation says `logs`; the hosted service's
own tools read `messages`, the entries gathered by message (A4).  With
`groupBy=messageId` both answer `messages` alone, and count them.
"""

from collections.abc import Sequence
from typing import Final, cast

from msgspec import Raw
from msgspec.structs import replace

from waypost.api.answer import Answer, encode, json_answer, shown
from waypost.api.encoding import LogEntryJson, LogGroupJson, log_entry_json, log_group_json
from waypost.api.exchange import Api, Request
from waypost.api.filters import (
    IGNORED,
    MESSAGE_FILTERS,
    Given,
    all_of,
    check_names,
    count_of,
    filter_of,
    latest_first,
    one_of,
    trim_of,
)
from waypost.domain.errors import Invalid
from waypost.domain.filters import Filter
from waypost.domain.message import IN_PROGRESS, Logged
from waypost.store.protocol import LogEntry, LogFilter, LogPage, LogView

COUNT_MAX: Final = 1_000
MESSAGE_COUNT_MAX: Final = 10
"""How many messages a page has, where they are counted."""

KNOWN: Final = (
    MESSAGE_FILTERS | IGNORED | {"cursor", "count", "groupBy", "order", "state", "trimBody"}
)

STATES: Final = {state.value: (state,) for state in Logged} | {
    "CANCELLED": (Logged.CANCELED,),
    "IN_PROGRESS": IN_PROGRESS,
}


async def events(api: Api, request: Request) -> Answer:
    given = _given(request)
    if _by_message(given):
        return await _messages(api, request, given)
    page = await _page(api, request, given, bytes_max=api.limits.page_bytes_max)
    trim_bytes = trim_of(given)
    entries = [log_entry_json(entry, trim_bytes) for entry in page.entries]
    return _answer(page, {"events": entries})


async def logs(api: Api, request: Request) -> Answer:
    given = _given(request)
    if _by_message(given):
        return await _messages(api, request, given)
    # Every entry is written three times, so a third of the bytes fills the page.
    page = await _page(api, request, given, bytes_max=api.limits.page_bytes_max // 3)
    trim_bytes = trim_of(given)
    events = await shown(page.entries, lambda entry: _written(entry, trim_bytes))
    messages = await _gathered(page.entries, events, trim_bytes)
    return _answer(page, {"events": events, "logs": events, "messages": messages})


async def _messages(api: Api, request: Request, given: Given) -> Answer:
    page = await _page(api, request, given, bytes_max=api.limits.page_bytes_max)
    trim_bytes = trim_of(given)
    events = await shown(page.entries, lambda entry: log_entry_json(entry, trim_bytes))
    return _answer(page, {"messages": await _gathered(page.entries, events, trim_bytes)})


def _written(entry: LogEntry, trim_bytes: int | None) -> LogEntryJson:
    """An entry as JSON that is there already, and is put in wherever it is shown."""
    return cast(LogEntryJson, Raw(encode(log_entry_json(entry, trim_bytes))))


async def _gathered(
    entries: Sequence[LogEntry], events: Sequence[LogEntryJson], trim_bytes: int | None
) -> list[LogGroupJson]:
    """The messages that entries speak of, each with those events that are its own."""
    firsts: dict[str, LogEntry] = {}
    its: dict[str, list[LogEntryJson]] = {}
    for entry, event in zip(entries, events, strict=True):
        firsts.setdefault(entry.message.id, entry)
        its.setdefault(entry.message.id, []).append(event)
    return await shown(
        firsts.values(), lambda entry: log_group_json(entry, its[entry.message.id], trim_bytes)
    )


def _answer(page: LogPage, answer: dict[str, object]) -> Answer:
    if page.cursor is not None:
        answer["cursor"] = page.cursor
    return json_answer(answer)


def _given(request: Request) -> Given:
    given = request.parameters()
    check_names(given, known=KNOWN)
    return given


async def _page(api: Api, request: Request, given: Given, *, bytes_max: int) -> LogPage:
    by_message = _by_message(given)
    view = LogView(
        latest_first=latest_first(given, default=True),
        by_message=by_message,
        bodies=trim_of(given) != 0,
    )
    count_max = count_of(given, most=MESSAGE_COUNT_MAX if by_message else COUNT_MAX)
    of, states = _filter(given), [state for text in all_of(given, "state") for state in _of(text)]
    if of is None:
        return LogPage([], None)
    return await api.reader.log(
        request.tenant,
        where=LogFilter(of=of, states=states),
        view=view,
        cursor=one_of(given, "cursor"),
        count_max=count_max,
        bytes_max=bytes_max,
    )


def _filter(given: Given) -> Filter | None:
    """Which messages are meant; None: `messageId` and `messageIds` have none in common."""
    of = filter_of({name: values for name, values in given.items() if name != "messageId"})
    message_id = one_of(given, "messageId")
    if message_id is None:
        return of
    if of.message_ids and message_id not in of.message_ids:
        return None
    return replace(of, message_ids=frozenset({message_id}))


def _by_message(given: Given) -> bool:
    text = one_of(given, "groupBy")
    if text not in {None, "messageId"}:
        raise Invalid("groupBy must be messageId")
    return text is not None


def _of(text: str) -> tuple[Logged, ...]:
    states = STATES.get(text.upper())
    if states is None:
        raise Invalid(f"there is no state {text}; states are {', '.join(STATES)}")
    return states
