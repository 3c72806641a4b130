"""The home of the `Upstash-*` header grammar: what a publisher may ask for, beside where and what.

| header                              | reads as                           | else            |
| ----------------------------------- | ---------------------------------- | --------------- |
| Upstash-Method                      | GET POST PUT PATCH DELETE          | POST            |
| Upstash-Timeout                     | duration or seconds; 0 is unset    | the default     |
| Upstash-Retries                     | whole number                       | the default     |
| Upstash-Retry-Delay                 | expression, kept verbatim          | backoff         |
| Upstash-Delay                       | duration                           | now             |
| Upstash-Not-Before                  | unix seconds; beats Delay          | now             |
| Upstash-Deduplication-Id            | text without `:`                   | none            |
| Upstash-Content-Based-Deduplication | true / false                       | false           |
| Upstash-Label                       | comma list                         | none            |
| Upstash-Queue-Name                  | name                               | none            |
| Upstash-Redact-Fields               | comma list, see `redaction`        | none            |
| Upstash-Flow-Control-Key            | text; only with the next           | none            |
| Upstash-Flow-Control-Value          | see `flow`; only with the last     | none            |
| Upstash-Header-Forward              | true / false                       | false           |
| Upstash-Forward-<H>                 | passed on as `<H>`                 |                 |
| Upstash-Callback                    | http(s) URL, told of each attempt  | none            |
| Upstash-Callback-<X>                | as `Upstash-<X>`, for the callback | see below       |
| Upstash-Failure-Callback            | http(s) URL, told of the failure   | none            |
| Upstash-Failure-Callback-<X>        | as `Upstash-<X>`, for that one     | see below       |
| Content-Type                        | passed on                          | none (W19)      |

`<X>` is Method, Timeout, Retries (else: those of the message), Retry-Delay,
Delay, Not-Before, Label, Queue-Name, Redact-Fields, Flow-Control-Key and -Value
or `Forward-<H>`.  They mean nothing without the URL of their callback, and are then ignored.

Each may also come as a query parameter of the same name in lower case; a
header beats it.  A field with an empty value counts as absent (W13), save
`…-Forward-<H>`, for an empty header is one a destination can tell from none.
Of a field that comes twice the first counts, but those that are lists are put
together (labels, fields to redact, the limits of a key).  Unknown `Upstash-*` fields are
ignored and never passed on (W12).

`Upstash-Header-Forward: true` passes on every incoming field (the User-Agent
and the signature of a webhook are among them) but for `Upstash-*`, what
`header_fields` never lets through, `Authorization`, which is our own token,
and `Accept-Encoding`, which spoke of our answer.  `Upstash-Forward-<H>` beats
such a field, and beats `Content-Type`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import astuple

from waypost.domain.destination import checked_url
from waypost.domain.durations import parse_duration, parse_duration_or_seconds
from waypost.domain.errors import Invalid, QuotaExceeded
from waypost.domain.expression import check_expression
from waypost.domain.flow import KEY_CHARS_MAX, Flow, NoLimits, flow_of
from waypost.domain.header_fields import (
    LISTS,
    canonical_name,
    check_total,
    checked_value,
    end_to_end,
)
from waypost.domain.message import Callback
from waypost.domain.redaction import Redaction, parse_redaction

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
NAME_CHARS_MAX: Final = 255
DEDUPLICATION_ID_CHARS_MAX: Final = 1_024
LABEL_CHARS_MAX: Final = 256
SHOWN_BYTES_MAX: Final = 128
UNIX_S_MAX: Final = 99_999_999_999
"""In the year 5138; as milliseconds, 1973.  A number over it was not meant as seconds."""


class _Names(Struct, frozen=True):
    """How the fields are called that a message and its callbacks have in common."""

    method: bytes
    timeout: bytes
    retries: bytes
    retry_delay: bytes
    delay: bytes
    not_before: bytes
    label: bytes
    queue_name: bytes
    redact_fields: bytes
    flow_control_key: bytes
    flow_control_value: bytes


def _names(prefix: bytes) -> _Names:
    return _Names(*(prefix + name.replace("_", "-").encode() for name in _Names.__struct_fields__))


_MESSAGE: Final = _names(b"upstash-")
_CALLBACK: Final = b"upstash-callback"
_FAILURE_CALLBACK: Final = b"upstash-failure-callback"
_NAMES_OF: Final = {url: _names(url + b"-") for url in (_CALLBACK, _FAILURE_CALLBACK)}

_KNOWN: Final = frozenset(
    {
        *astuple(_MESSAGE),
        b"upstash-deduplication-id",
        b"upstash-content-based-deduplication",
        b"upstash-header-forward",
        *_NAMES_OF,
        *(name for names in _NAMES_OF.values() for name in astuple(names)),
    }
)

_OF_SCHEDULES: Final = frozenset({b"upstash-cron", b"upstash-schedule-id"})

_NOT_OF_CALLBACKS: Final = re.compile(
    rb"upstash-(?:failure-)?callback-(?:(?:failure-)?callback(?:-|\Z)"
    rb"|(?:deduplication-id|content-based-deduplication|header-forward|cron|schedule-id)\Z)"
)
"""What a message may have and a callback cannot (D25)."""

_OURS: Final = b"upstash-"
_FORWARD: Final = b"upstash-forward-"
_LOOKED_AT: Final = (
    b"upstash-callback-",
    b"upstash-failure-callback-",
    b"upstash-cron",
    b"upstash-schedule-id",
)
"""How all fields begin that are not known and yet not ignored."""

_CALLBACK_FORWARDS: Final = tuple(url + b"-forward-" for url in _NAMES_OF)
_STAY_WITH_US: Final = frozenset({b"authorization", b"accept-encoding"})

_WHOLE: Final = re.compile(r"[0-9]{1,15}")
_NAME: Final = re.compile(r"[A-Za-z0-9._\-]+")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_T = TypeVar("_T")


class Limits(Struct, frozen=True, kw_only=True):
    """What a tenant may ask for (D11)."""

    retries_default: int = 3
    retries_max: int = 100
    delay_ms_max: int = 31_536_000_000
    timeout_ms_default: int = 900_000
    timeout_ms_max: int = 7_200_000
    label_count_max: int = 100
    batch_count_max: int = 1_000
    queue_count_max: int = 10_000
    schedule_count_max: int = 10_000
    url_group_count_max: int = 1_000
    endpoint_count_max: int = 100
    flow_period_ms_max: int = 604_800_000


class AsksForSchedule(Invalid):
    """What was read as a message asks for a schedule: who can make one does so (W136)."""


class Options(Struct, frozen=True, kw_only=True):
    """What was asked for.  `not_before_ms` is never in the past; `header` is what is passed on.

    Schedules keep it as it is: a field that is added has a default, and none is renamed.
    """

    method: str
    header: dict[str, list[str]]
    timeout_ms: int
    retries: int
    retry_delay: str | None
    not_before_ms: int
    deduplication_id: str | None
    content_based_deduplication: bool
    labels: list[str]
    queue: str | None
    redaction: Redaction | None = None
    flow: Flow | None = None
    callback: Callback | None = None
    failure_callback: Callback | None = None


def parse(
    fields: Sequence[tuple[bytes, bytes]],
    query: Mapping[str, str],
    *,
    limits: Limits,
    now_ms: int,
) -> Options:
    """Read the fields of a publish request; their names are in lower case.

    `query` holds the configuration parameters (`destination.read_destination`).
    Raises Invalid or QuotaExceeded with the whole text to show.
    """
    given = _Given()
    for name, value in fields:
        if name.startswith(_OURS):
            given.take(name, value)
        elif name == b"content-type":
            given.content_type = given.content_type or value
    if query:
        given.from_query = True
        for parameter, text in query.items():
            given.take(parameter.encode(), text.encode())

    retries = _retries(given, _MESSAGE, limits)
    if retries is None:
        retries = limits.retries_default
    delay_ms, not_before_ms = _times(given, _MESSAGE, limits, now_ms)

    deduplication_id = given.read(b"upstash-deduplication-id", _deduplication_id)
    if deduplication_id is not None and ":" in deduplication_id:
        raise Invalid("DeduplicationId cannot contain ':'")

    forward_all = given.read(b"upstash-header-forward", _truth)
    callback = failure_callback = None
    if not _NAMES_OF.keys().isdisjoint(given.values):
        callback = _callback(given, _CALLBACK, limits, retries, now_ms)
        failure_callback = _callback(given, _FAILURE_CALLBACK, limits, retries, now_ms)

    return Options(
        method=given.read(_MESSAGE.method, _method) or "POST",
        header=given.header(fields if forward_all else ()),
        timeout_ms=_timeout_ms(given, _MESSAGE, limits),
        retries=retries,
        retry_delay=given.read(_MESSAGE.retry_delay, lambda text: _expression(text, retries)),
        not_before_ms=now_ms + delay_ms if not_before_ms is None else max(now_ms, not_before_ms),
        deduplication_id=deduplication_id,
        content_based_deduplication=bool(
            given.read(b"upstash-content-based-deduplication", _truth)
        ),
        labels=_labels(given, _MESSAGE, limits),
        queue=given.read(_MESSAGE.queue_name, checked_name),
        redaction=given.read(_MESSAGE.redact_fields, parse_redaction),
        flow=_flow(given, _MESSAGE, limits),
        callback=callback,
        failure_callback=failure_callback,
    )


def checked_name(text: str) -> str:
    """Check the name of a queue and answer it.  Raises Invalid with the reason."""
    if len(text) > NAME_CHARS_MAX:
        raise Invalid(f"the name is longer than {NAME_CHARS_MAX} characters")
    if _NAME.fullmatch(text) is None or text in {".", ".."}:
        raise Invalid("a name has letters, digits, '-', '_' and '.' only")
    return text


def _labels(given: "_Given", names: _Names, limits: Limits) -> list[str]:
    if names.label not in given.values:  # as with most messages
        return []
    return given.read(names.label, lambda text: _label_list(text, limits.label_count_max)) or []


def _retries(given: "_Given", names: _Names, limits: Limits) -> int | None:
    retries = given.read(names.retries, _whole)
    if retries is not None and retries > limits.retries_max:
        raise QuotaExceeded(f"{_said_of(names)}quota maxRetries exceeded")
    return retries


def _timeout_ms(given: "_Given", names: _Names, limits: Limits) -> int:
    timeout_ms = given.read(names.timeout, parse_duration_or_seconds)
    if timeout_ms is not None and timeout_ms > limits.timeout_ms_max:
        raise _quota(names, "maxTimeout", limits.timeout_ms_max)
    return timeout_ms or limits.timeout_ms_default


def _times(given: "_Given", names: _Names, limits: Limits, now_ms: int) -> tuple[int, int | None]:
    """The delay, and the moment, which beats it; it may be in the past."""
    delay_ms = given.read(names.delay, parse_duration) or 0
    not_before_s = given.read(names.not_before, _unix_s)
    not_before_ms = None if not_before_s is None else not_before_s * 1000
    wait_ms = delay_ms if not_before_ms is None else not_before_ms - now_ms
    if wait_ms > limits.delay_ms_max:
        raise _quota(names, "maxDelay", limits.delay_ms_max)
    return delay_ms, not_before_ms


def _flow(given: "_Given", names: _Names, limits: Limits) -> Flow | None:
    """The flow-control key and its limits; one does not go without the other."""
    name, lacking = names.flow_control_value, names.flow_control_key
    if lacking not in given.values:
        if name not in given.values:
            return None
        name, lacking = lacking, name
    key = given.read(names.flow_control_key, _flow_key)
    text = given.read(names.flow_control_value, str)
    if key is None or text is None:
        raise Invalid(f"{given.shown(lacking)} needs {given.shown(name)} beside it")
    try:
        return flow_of(key, text, period_ms_max=limits.flow_period_ms_max)
    except NoLimits as fault:
        raise Invalid(f"{given.shown(name)} {fault}") from None
    except Invalid as fault:
        raise Invalid(f"{given.shown(name)}: {fault}") from None


def _callback(
    given: "_Given", name: bytes, limits: Limits, retries: int, now_ms: int
) -> Callback | None:
    """The callback whose URL is the field `name`; `retries` are those of the message."""
    url = given.read(name, _callback_url)
    if url is None:
        return None
    names = _NAMES_OF[name]
    own_retries = _retries(given, names, limits)
    if own_retries is not None:
        retries = own_retries
    delay_ms, not_before_ms = _times(given, names, limits, now_ms)
    return Callback(
        url=url,
        method=given.read(names.method, _method) or "POST",
        header=given.callback_header(name),
        retries_max=retries,
        retry_delay=given.read(names.retry_delay, lambda text: _expression(text, retries)),
        timeout_ms=_timeout_ms(given, names, limits),
        delay_ms=0 if not_before_ms is not None else delay_ms,
        not_before_ms=not_before_ms or 0,
        queue=given.read(names.queue_name, checked_name),
        redaction=given.read(names.redact_fields, parse_redaction),
        flow=_flow(given, names, limits),
        labels=_labels(given, names, limits),
    )


def _callback_url(text: str) -> str:
    try:
        return checked_url(text.encode())
    except Invalid as fault:
        raise Invalid(str(fault).removeprefix("invalid destination url: ")) from None


class _Given:
    """The `Upstash-*` fields that were given; those of the query are taken last."""

    __slots__ = (
        "_callback_forwards", "_forwards", "_queried", "content_type", "from_query", "values",
    )  # fmt: skip

    def __init__(self) -> None:
        self.content_type = b""
        self.from_query = False
        self.values: dict[bytes, bytes] = {}
        self._queried: set[bytes] = set()
        self._forwards: dict[str, list[str]] = {}
        self._callback_forwards: list[tuple[bytes, bytes, bool]] = []

    def take(self, name: bytes, value: bytes) -> None:
        if name.startswith(_FORWARD):
            _forward(self._forwards, len(_FORWARD), name, value, from_query=self.from_query)
        elif name in _KNOWN:
            if _blank(value):
                return
            if name not in self.values:
                self.values[name] = value
                if self.from_query:
                    self._queried.add(name)
            elif name in LISTS and not self.from_query:
                self.values[name] += b", " + value
        elif name.startswith(_LOOKED_AT):
            if name.startswith(_CALLBACK_FORWARDS):
                self._callback_forwards.append((name, value, self.from_query))
            elif _blank(value):
                return
            elif name in _OF_SCHEDULES:
                shown = _shown(name, from_query=self.from_query)
                raise AsksForSchedule(f"{shown}: this cannot be a schedule; create it by itself")
            elif _NOT_OF_CALLBACKS.match(name) is not None:
                raise Invalid(f"{_shown(name, from_query=self.from_query)}: a callback has none")

    def read(self, name: bytes, reader: Callable[[str], _T]) -> _T | None:
        """What `reader` makes of a field; None when it was not given."""
        value = self.values.get(name)
        if value is None:
            return None
        try:
            return reader(_text(value))
        except Invalid as fault:
            raise Invalid(f"{self.shown(name)}: {fault}") from None

    def shown(self, name: bytes) -> str:
        return _shown(name, from_query=name in self._queried)

    def header(self, incoming: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
        """What is passed on: the `incoming` fields that may be, and under those what was asked."""
        passed: dict[str, list[str]] = {}
        for name, value in incoming:
            if not name.startswith(_OURS) and name not in _STAY_WITH_US:
                _add(passed, _canonical(name, 0, from_query=False), name, value, from_query=False)
        if not _blank(self.content_type):
            passed.pop("Content-Type", None)
            _add(passed, "Content-Type", b"content-type", self.content_type, from_query=False)
        header = end_to_end(passed)
        if self._forwards:
            header |= end_to_end(self._forwards)
        if header:
            check_total(header)
        return header

    def callback_header(self, url_name: bytes) -> dict[str, list[str]]:
        """What is passed on to the callback whose URL is the field `url_name`."""
        prefix = url_name + b"-forward-"
        forwards: dict[str, list[str]] = {}
        for name, value, from_query in self._callback_forwards:
            if name.startswith(prefix):
                _forward(forwards, len(prefix), name, value, from_query=from_query)
        header = end_to_end(forwards)
        check_total(header)
        return header


def _forward(
    forwards: dict[str, list[str]], skip: int, name: bytes, value: bytes, *, from_query: bool
) -> None:
    """Pass a field on without its prefix, unless one of the query comes after a header."""
    canonical = _canonical(name, skip, from_query=from_query)
    if not (from_query and canonical in forwards):
        _add(forwards, canonical, name, value, from_query=from_query)


def _add(
    header: dict[str, list[str]], canonical: str, name: bytes, value: bytes, *, from_query: bool
) -> None:
    try:
        text = checked_value(value)
    except Invalid as fault:
        raise Invalid(f"{_shown(name, from_query=from_query)}: {fault}") from None
    header.setdefault(canonical, []).append(text)


def _canonical(name: bytes, skip: int, *, from_query: bool) -> str:
    try:
        return canonical_name(name[skip:])
    except Invalid as fault:
        raise Invalid(f"{_shown(name, from_query=from_query)}: {fault}") from None


def _shown(name: bytes, *, from_query: bool) -> str:
    """How a field is called when speaking to people."""
    text = name[:SHOWN_BYTES_MAX].decode("ascii", "backslashreplace")
    if from_query:
        return f"{text} (query parameter)"
    return "-".join(part.capitalize() for part in text.split("-"))


def _blank(value: bytes) -> bool:
    return not value or value.isspace()


def _text(value: bytes) -> str:
    """Read a configuration value: UTF-8, or latin-1 as browsers' `fetch` sends it."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip(" \t")


def _said_of(names: _Names) -> str:
    """What stands before a limit that was passed: nothing for the message itself."""
    for url, those in _NAMES_OF.items():
        if names is those:
            return f"{_shown(url, from_query=False)}: "
    return ""


def _quota(names: _Names, name: str, limit_ms: int) -> QuotaExceeded:
    limit_s = limit_ms // 1000
    return QuotaExceeded(f"{_said_of(names)}quota {name} exceeded, current limit: {limit_s}")


def _whole(text: str) -> int:
    if _WHOLE.fullmatch(text) is None:
        raise Invalid("not a whole number from 0 up")
    return int(text)


def _unix_s(text: str) -> int:
    at_s = _whole(text)
    if at_s > UNIX_S_MAX:
        raise Invalid("not in seconds since 1970; are these milliseconds?")
    return at_s


def _truth(text: str) -> bool:
    lower = text.lower()
    if lower not in {"true", "false"}:
        raise Invalid("neither true nor false")
    return lower == "true"


def _method(text: str) -> str:
    method = text.upper()
    if method not in METHODS:
        raise Invalid(f"none of {', '.join(METHODS)}")
    return method


def _expression(text: str, retries: int) -> str:
    check_expression(text, retries_max=retries)
    return text


def _flow_key(text: str) -> str:
    if len(text) > KEY_CHARS_MAX:
        raise Invalid(f"the key is longer than {KEY_CHARS_MAX} characters")
    return _printable(text)


def _deduplication_id(text: str) -> str:
    if len(text) > DEDUPLICATION_ID_CHARS_MAX:
        raise Invalid(f"the id is longer than {DEDUPLICATION_ID_CHARS_MAX} characters")
    return _printable(text)


def _label_list(text: str, count_max: int) -> list[str]:
    labels = [label for item in _printable(text).split(",") if (label := item.strip())]
    if len(labels) > count_max:
        raise Invalid(f"more than {count_max} labels")
    if max(map(len, labels), default=0) > LABEL_CHARS_MAX:
        raise Invalid(f"a label is longer than {LABEL_CHARS_MAX} characters")
    return labels


def _printable(text: str) -> str:
    if _UNPRINTABLE.search(text) is not None:
        raise Invalid("contains a control character")
    return text
