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
| Upstash-Header-Forward              | true / false                       | false           |
| Upstash-Forward-<H>                 | passed on as `<H>`                 |                 |
| Content-Type                        | passed on                          | none (W19)      |

Each may also come as a query parameter of the same name in lower case; a
header beats it.  A field with an empty value counts as absent (W13), save
`Upstash-Forward-<H>`, for an empty header is one a destination can tell from
none.  Of a field that comes twice the first counts.  Unknown `Upstash-*`
fields are ignored and never passed on (W12).

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

from waypost.domain.durations import parse_duration, parse_duration_or_seconds
from waypost.domain.errors import Invalid, QuotaExceeded
from waypost.domain.expression import check_expression
from waypost.domain.header_fields import (
    canonical_name,
    check_total,
    checked_value,
    end_to_end,
)

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
NAME_CHARS_MAX: Final = 255
DEDUPLICATION_ID_CHARS_MAX: Final = 1_024
LABEL_CHARS_MAX: Final = 256
LABEL_COUNT_MAX: Final = 100
SHOWN_BYTES_MAX: Final = 128

_NOT_YET: Final = (
    "upstash-callback",
    "upstash-callback-",
    "upstash-failure-callback",
    "upstash-failure-callback-",
    "upstash-flow-control-",
    "upstash-cron",
    "upstash-schedule-id",
    "upstash-redact-fields",
)
"""Refused by name until its issue has landed (D5); a dash at the end stands for a family."""

_NOT_YET_EXACTLY: Final = frozenset(name.encode() for name in _NOT_YET if not name.endswith("-"))
_NOT_YET_FAMILIES: Final = tuple(name.encode() for name in _NOT_YET if name.endswith("-"))

_KNOWN: Final = frozenset(
    {
        b"upstash-method",
        b"upstash-timeout",
        b"upstash-retries",
        b"upstash-retry-delay",
        b"upstash-delay",
        b"upstash-not-before",
        b"upstash-deduplication-id",
        b"upstash-content-based-deduplication",
        b"upstash-label",
        b"upstash-queue-name",
        b"upstash-header-forward",
    }
)

_OURS: Final = b"upstash-"
_FORWARD: Final = b"upstash-forward-"
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


class Options(Struct, frozen=True, kw_only=True):
    """What was asked for.  `not_before_ms` is never in the past; `header` is what is passed on."""

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

    retries = given.read(b"upstash-retries", _whole)
    if retries is None:
        retries = limits.retries_default
    elif retries > limits.retries_max:
        raise QuotaExceeded("quota maxRetries exceeded")
    retry_delay = given.read(b"upstash-retry-delay", lambda text: _expression(text, retries))

    timeout_ms = given.read(b"upstash-timeout", parse_duration_or_seconds)
    if timeout_ms is not None and timeout_ms > limits.timeout_ms_max:
        raise _quota("maxTimeout", limits.timeout_ms_max)

    delay_ms = given.read(b"upstash-delay", parse_duration) or 0
    not_before_s = given.read(b"upstash-not-before", _whole)
    not_before_ms = now_ms + delay_ms if not_before_s is None else not_before_s * 1000
    if not_before_ms - now_ms > limits.delay_ms_max:
        raise _quota("maxDelay", limits.delay_ms_max)

    deduplication_id = given.read(b"upstash-deduplication-id", _deduplication_id)
    if deduplication_id is not None and ":" in deduplication_id:
        raise Invalid("DeduplicationId cannot contain ':'")

    forward_all = given.read(b"upstash-header-forward", _truth)
    return Options(
        method=given.read(b"upstash-method", _method) or "POST",
        header=given.header(fields if forward_all else ()),
        timeout_ms=timeout_ms or limits.timeout_ms_default,
        retries=retries,
        retry_delay=retry_delay,
        not_before_ms=max(now_ms, not_before_ms),
        deduplication_id=deduplication_id,
        content_based_deduplication=bool(
            given.read(b"upstash-content-based-deduplication", _truth)
        ),
        labels=given.read(b"upstash-label", _labels) or [],
        queue=given.read(b"upstash-queue-name", checked_name),
    )


def checked_name(text: str) -> str:
    """Check the name of a queue and answer it.  Raises Invalid with the reason."""
    if len(text) > NAME_CHARS_MAX:
        raise Invalid(f"the name is longer than {NAME_CHARS_MAX} characters")
    if _NAME.fullmatch(text) is None or text in {".", ".."}:
        raise Invalid("a name has letters, digits, '-', '_' and '.' only")
    return text


class _Given:
    """The `Upstash-*` fields that were given; those of the query are taken last."""

    __slots__ = ("_forwards", "_queried", "_values", "content_type", "from_query")

    def __init__(self) -> None:
        self.content_type = b""
        self.from_query = False
        self._values: dict[bytes, bytes] = {}
        self._queried: set[bytes] = set()
        self._forwards: dict[str, list[str]] = {}

    def take(self, name: bytes, value: bytes) -> None:
        if name.startswith(_FORWARD):
            canonical = _canonical(name, len(_FORWARD), from_query=self.from_query)
            if not (self.from_query and canonical in self._forwards):
                _add(self._forwards, canonical, name, value, from_query=self.from_query)
        elif _blank(value):
            return
        elif name in _KNOWN:
            if name not in self._values:
                self._values[name] = value
                if self.from_query:
                    self._queried.add(name)
        elif name in _NOT_YET_EXACTLY or name.startswith(_NOT_YET_FAMILIES):
            raise Invalid(f"{_shown(name, from_query=self.from_query)} is not supported yet")

    def read(self, name: bytes, reader: Callable[[str], _T]) -> _T | None:
        """What `reader` makes of a field; None when it was not given."""
        value = self._values.get(name)
        if value is None:
            return None
        try:
            return reader(_text(value))
        except Invalid as fault:
            shown = _shown(name, from_query=name in self._queried)
            raise Invalid(f"{shown}: {fault}") from None

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


def _quota(name: str, limit_ms: int) -> QuotaExceeded:
    return QuotaExceeded(f"quota {name} exceeded, current limit: {limit_ms // 1000}")


def _whole(text: str) -> int:
    if _WHOLE.fullmatch(text) is None:
        raise Invalid("not a whole number")
    return int(text)


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


def _deduplication_id(text: str) -> str:
    if len(text) > DEDUPLICATION_ID_CHARS_MAX:
        raise Invalid(f"the id is longer than {DEDUPLICATION_ID_CHARS_MAX} characters")
    return _printable(text)


def _labels(text: str) -> list[str]:
    labels = [label for item in _printable(text).split(",") if (label := item.strip())]
    if len(labels) > LABEL_COUNT_MAX:
        raise Invalid(f"more than {LABEL_COUNT_MAX} labels")
    if max(map(len, labels), default=0) > LABEL_CHARS_MAX:
        raise Invalid(f"a label is longer than {LABEL_CHARS_MAX} characters")
    return labels


def _printable(text: str) -> str:
    if _UNPRINTABLE.search(text) is not None:
        raise Invalid("contains a control character")
    return text
