"""The home of the dead letter queue over HTTP (contract section 10)."""

from typing import Final

from waypost.api.answer import Answer, json_answer, shown
from waypost.api.encoding import dead_letter_json
from waypost.api.exchange import Api, Request
from waypost.api.filters import (
    DEAD_LETTER_FILTERS,
    IGNORED,
    Given,
    check_names,
    count_of,
    fields_of_body,
    filter_of,
    latest_first,
    one_of,
    trim_of,
)
from waypost.domain.errors import NotFound
from waypost.domain.filters import Filter

COUNT_MAX: Final = 100

CHANGED: Final = DEAD_LETTER_FILTERS | {"count", "cursor"}
LISTED: Final = CHANGED | IGNORED | {"order", "trimBody"}
LATER: Final = frozenset({"source"})


async def page(api: Api, request: Request) -> Answer:
    given = request.parameters()
    check_names(given, known=LISTED, later=LATER)
    trim_bytes = trim_of(given)
    found = await api.dead_letters.page(
        request.tenant,
        _where(given),
        latest_first=latest_first(given, default=False),
        cursor=one_of(given, "cursor"),
        count_max=count_of(given, most=COUNT_MAX),
        bytes_max=api.limits.page_bytes_max,
        bodies=trim_bytes != 0,
    )
    messages = await shown(found.dead_letters, lambda letter: dead_letter_json(letter, trim_bytes))
    answer: dict[str, object] = {"messages": messages}
    if found.cursor is not None:
        answer["cursor"] = found.cursor
    return json_answer(answer)


async def get(api: Api, request: Request) -> Answer:
    letter = await api.dead_letters.get(request.tenant, request.segment(0))
    return json_answer(dead_letter_json(letter))


async def delete(api: Api, request: Request) -> Answer:
    await api.dead_letters.delete(request.tenant, request.segment(0))
    return json_answer({"deleted": 1})


async def delete_many(api: Api, request: Request) -> Answer:
    """Delete what the query and the body name, all of it where no count is given."""
    said, where = await _asked(api, request)
    deleted = await api.dead_letters.delete_many(
        request.tenant,
        where,
        cursor=one_of(said, "cursor"),
        count_max=count_of(said, most=COUNT_MAX) if said.get("count") else None,
    )
    answer: dict[str, object] = {"deleted": deleted.count}
    if deleted.cursor is not None:  # among numbers alone where it can be (W163)
        answer["cursor"] = deleted.cursor
    return json_answer(answer)


async def retry(api: Api, request: Request) -> Answer:
    message_id = await api.dead_letters.retry(
        request.tenant, request.segment(0), header=request.header
    )
    return json_answer({"messageId": message_id}, status=201)


async def retry_many(api: Api, request: Request) -> Answer:
    """Retry what the query and the body name: all that are named by id, else at most `count`.

    Ids that are gone are passed over, unless all of them are (A30).
    """
    said, where = await _asked(api, request)
    every = not said.get("count") and bool(where.dead_letter_ids)
    retried = await api.dead_letters.retry_many(
        request.tenant,
        where,
        cursor=one_of(said, "cursor"),
        count_max=None if every else count_of(said, most=COUNT_MAX),
        header=request.header,
    )
    if where.dead_letter_ids and not retried.message_ids:
        raise NotFound("none of these dead letters was found")
    answer: dict[str, object] = {
        "responses": [{"messageId": message_id} for message_id in retried.message_ids]
    }
    if retried.cursor is not None:
        answer["cursor"] = retried.cursor
    return json_answer(answer, status=201)


async def _asked(api: Api, request: Request) -> tuple[Given, Filter]:
    """What a change is asked for by query and body together, and the filter in it."""
    query = request.parameters(blank=True)
    check_names(query, known=CHANGED, later=LATER)
    body = await fields_of_body(api, request, known=CHANGED)
    return {**body, **query}, _where(query, body)


def _where(query: Given, body: Given | None = None) -> Filter:
    """The filter that is asked for.  Where ids of dead letters are named, they are it alone."""
    where = filter_of(query, body)
    return Filter(dead_letter_ids=where.dead_letter_ids) if where.dead_letter_ids else where
