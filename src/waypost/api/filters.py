"""The home of reading what a list is asked for: filters, order, count, and how much of a body.

| name                                  | of a message                              |
| ------------------------------------- | ----------------------------------------- |
| messageIds, messageId                 | its id                                    |
| topicName queueName label             | its URL group, its queue, its labels      |
| url host path                         | where it goes; the path exactly           |
| flowControlKey scheduleId callerIp    | its key, its schedule, its publisher      |
| fromDate toDate                       | milliseconds, both ends included          |
| responseStatus dlqIds                 | of dead letters: the last answer, the id  |

In a query a name may come several times, and its values may be separated by
commas; of the values of a name any will do.  A JSON body names the same, each
with one value or a list, taken as they are.  Where both say something, the
values are put together (A17).

A name that is not known is an error and not ignored: a filter that is
misspelled would otherwise mean everything (contract section 10.1).  To a change
so is one without a value; a list that is only looked at takes it for absent.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import structs

from waypost.api.exchange import Api, Request
from waypost.api.json_body import read_json
from waypost.domain.errors import Invalid
from waypost.domain.filters import EVERYTHING, Filter

IGNORED: Final = frozenset({"api"})
"""Sent by some clients that look at lists, and meant for others (contract sections 10.1 and
11.2).  A change refuses it: it would mean everything."""

Given = Mapping[str, Sequence[str]]

_FIELDS: Final = {
    "messageIds": "message_ids",
    "messageId": "message_ids",
    "topicName": "groups",
    "queueName": "queues",
    "url": "urls",
    "host": "hosts",
    "path": "paths",
    "label": "labels",
    "flowControlKey": "flow_keys",
    "scheduleId": "schedules",
    "callerIp": "caller_ips",
    "callerIP": "caller_ips",
    "dlqIds": "dead_letter_ids",
}
_STATUS: Final = "responseStatus"

MESSAGE_FILTERS: Final = frozenset({*_FIELDS, "fromDate", "toDate"}) - {"dlqIds"}
"""What any message has."""

DEAD_LETTER_FILTERS: Final = MESSAGE_FILTERS - {"host", "path"} | {"dlqIds", _STATUS}

_EVERY_FILTER: Final = MESSAGE_FILTERS | DEAD_LETTER_FILTERS

VALUES_MAX: Final = 10_000
"""How many values all fields of a filter may have between them."""

BODY_BYTES_MAX: Final = 1_000_000
"""How much JSON may say what is meant: it is read while all others wait."""

_AT_COMMAS: Final = re.compile(r",")
_SEPARATORS: Final = {
    "url": re.compile(r",(?=https?://|api/)", re.IGNORECASE),
    "path": re.compile(r",(?=/)"),
}
"""URLs may have commas of their own."""

_NUMBER_DIGITS_MAX: Final = 15

_decode_values: Final = msgspec.json.Decoder(list[str | int] | str | int | None).decode
_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


def check_names(
    given: Mapping[str, Sequence[str]], *, known: Collection[str], later: Collection[str] = ()
) -> None:
    """Raise Invalid for the first parameter that is not `known`, or comes only `later` (D5)."""
    for name in given:
        if name in later:
            raise Invalid(f"the query parameter {name} is not supported yet")
        if name not in known:
            raise Invalid(f"there is no query parameter {name}")


async def fields_of_body(
    api: Api, request: Request, *, known: Collection[str], everything: str | None = None
) -> Given:
    """What a JSON body names, as a query does; no body and `null` name nothing (W103).

    A name with `null` is there without values, which `filter_of` judges; that of
    `everything` says nothing where its list is empty.
    Raises Invalid for what is not `known`, for a name that is empty, and for too many
    values; TooLarge.
    """
    if not await request.body(api, bytes_max=BODY_BYTES_MAX):
        return {}
    given: dict[str, list[str]] = {}
    room = VALUES_MAX
    found = await read_json(api, request, _decoder, bytes_max=BODY_BYTES_MAX)
    for name, written in (found or {}).items():
        if name not in known:
            raise Invalid(f"the body: there is no filter {name}")
        try:
            said = _decode_values(written)
        except (msgspec.DecodeError, UnicodeDecodeError):
            fault = f"the body: {name} is neither a text, a number, nor a list of these"
            raise Invalid(fault) from None
        if said is None:
            given[name] = []
            continue
        values = said if isinstance(said, list) else [said]
        room -= len(values)
        if room < 0:
            raise _too_many()
        if "" in values or not (values or name == everything):
            raise Invalid(f"the body: {name} is empty")
        if values:
            given[name] = list(map(str, values))
    return given


def filter_of(query: Given, body: Given | None = None) -> Filter:
    """The filter that a query and a body ask for; what is no filter is passed over.

    Raises Invalid for a value that is none, for too many, for a name of the query that
    has none, and where all that is named in the body has none.
    """
    body = body or {}
    texts: dict[str, set[str]] = {}
    for name, field in _FIELDS.items():
        if values := _values(name, query, body):
            texts.setdefault(field, set()).update(values)
    if "hosts" in texts:
        texts["hosts"] = {host.lower() for host in texts["hosts"]}
    statuses = {_number(_STATUS, text) for text in _values(_STATUS, query, body)}
    if sum(map(len, texts.values())) + len(statuses) > VALUES_MAX:
        raise _too_many()
    where = structs.replace(
        Filter(
            from_ms=_moment("fromDate", query, body),
            to_ms=_moment("toDate", query, body),
            statuses=frozenset(statuses),
        ),
        **{field: frozenset(values) for field, values in texts.items()},
    )
    if where == EVERYTHING and (empty := [name for name in body if name in _EVERY_FILTER]):
        raise Invalid(f"the body: {empty[0]} is empty")
    return where


def _values(name: str, query: Given, body: Given) -> list[str]:
    values = all_of(query, name)
    if name in query and not values:
        raise Invalid(f"{name} is empty")
    return [*values, *body.get(name, ())]


def _too_many() -> Invalid:
    return Invalid(f"the filter has more than {VALUES_MAX} values")


def _moment(name: str, query: Given, body: Given) -> int | None:
    text = one_of({name: [*query.get(name, ()), *body.get(name, ())]}, name)
    return None if text is None else _number(name, text)


def all_of(given: Given, name: str) -> list[str]:
    """Every value of a parameter, whether repeated or separated by commas (W107)."""
    separator = _SEPARATORS.get(name, _AT_COMMAS)
    return [
        text
        for value in given.get(name, ())
        for part in separator.split(value)
        if (text := part.strip())
    ]


def one_of(given: Given, name: str) -> str | None:
    """The value of a parameter that may be given once."""
    values = given.get(name, ())
    if len(values) > 1:
        raise Invalid(f"{name} is given more than once")
    return values[0] if values else None


def count_of(given: Given, *, most: int) -> int:
    """How many rows are asked for; `most` where nothing is said."""
    text = one_of(given, "count")
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise Invalid(f"count must be a whole number from 1 to {most}")
    return int(text)


def latest_first(given: Given, *, default: bool) -> bool:
    """Whether the newest are asked for first; `default` where nothing is said."""
    text = one_of(given, "order")
    if text is None:
        return default
    if text not in {"latestFirst", "earliestFirst"}:
        raise Invalid("order must be latestFirst or earliestFirst")
    return text == "latestFirst"


def trim_of(given: Given) -> int | None:
    """How many bytes of a body are asked for; None for all, which is also what -1 says (A34)."""
    text = one_of(given, "trimBody")
    if text is None or text == "-1":
        return None
    return _number("trimBody", text, besides=", or -1 for all")


def _number(name: str, text: str, *, besides: str = "") -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS_MAX):
        raise Invalid(f"{name} must be a whole number from 0 up{besides}")
    return int(text)
