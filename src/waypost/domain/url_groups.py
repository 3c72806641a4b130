"""The home of URL groups: names under which one publish reaches many URLs (contract section 9).

A group has at least one endpoint; when the last one goes, so does the group.

| an endpoint is added with   | what becomes of the group                                  |
| --------------------------- | ---------------------------------------------------------- |
| a new name and a new URL    | it comes last                                              |
| a name that is there        | that one leads to the new URL, and keeps its place         |
| a URL that is there         | that one is called by the new name, and keeps its place    |
| both, of two endpoints      | the one of that name gets the URL, the other one goes      |

No two endpoints of a group have the same URL, nor the same name.  An endpoint
may be without a name; where it is added again without one, it keeps its own.

A group may have default header fields.  They are read as if the publisher had
sent them, where it has sent none of that name (W143).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from waypost.domain.destination import checked_url
from waypost.domain.errors import Invalid, QuotaExceeded
from waypost.domain.header_fields import canonical_name, check_total, checked_value
from waypost.domain.ids import URL_GROUP_PREFIX
from waypost.domain.options import checked_name

ENDPOINTS_MAX: Final = 100
ENDPOINT_NAME_CHARS_MAX: Final = 255

_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_FORWARDS: Final = re.compile(rb"upstash-(?:(?:failure-)?callback-)?forward-")

_YIELDS_TO: Final = {
    b"upstash-not-before": b"upstash-delay",
    b"upstash-callback-not-before": b"upstash-callback-delay",
    b"upstash-failure-callback-not-before": b"upstash-failure-callback-delay",
    b"upstash-forward-content-type": b"content-type",
    b"upstash-deduplication-id": b"upstash-content-based-deduplication",
}
"""Fields that beat another one of a publish; as a default they do not beat the publisher's."""

Fields = Sequence[tuple[bytes, bytes]]


class Endpoint(Struct, frozen=True, omit_defaults=True):
    """Where a group leads to."""

    url: str
    name: str | None = None


class UrlGroup(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A URL group.  `id` is for life, and works wherever the name does (D8).

    `header` maps the canonical names of the defaults to their values, one
    character per byte as everywhere.
    """

    id: str
    name: str
    created_ms: int
    updated_ms: int
    endpoints: list[Endpoint] = []
    header: dict[str, list[str]] = {}


def checked_group_name(text: str) -> str:
    """Check the name of a new group and answer it.  Raises Invalid with the reason."""
    if text.startswith(URL_GROUP_PREFIX):
        raise Invalid(f"a name cannot begin with {URL_GROUP_PREFIX}, for ids do")
    return checked_name(text)


def checked_endpoint(url: str, name: str | None) -> Endpoint:
    """Check an endpoint; an empty name is none.  Raises Invalid with the reason.

    The name is for people: it may hold blanks, but no control characters (D7).
    """
    if name and len(name) > ENDPOINT_NAME_CHARS_MAX:
        raise Invalid(f"the name is longer than {ENDPOINT_NAME_CHARS_MAX} characters")
    if name and _UNPRINTABLE.search(name) is not None:
        raise Invalid("the name contains a control character")
    return Endpoint(checked_url(url.encode(errors="surrogatepass")), name or None)


def with_endpoints(
    group: UrlGroup, added: Iterable[Endpoint], *, count_max: int = ENDPOINTS_MAX, now_ms: int
) -> UrlGroup:
    """The group with these endpoints too, as the table above has it.

    Raises QuotaExceeded when there would be more than `count_max`.
    """
    endpoints = list(group.endpoints)
    for new in added:
        at = _place(endpoints, new)
        if at is None:
            endpoints.append(new)
        else:
            endpoints[at] = Endpoint(new.url, new.name or endpoints[at].name)
            endpoints = [
                one for place, one in enumerate(endpoints) if place == at or one.url != new.url
            ]
        # Counted on the way, so that a long list of new ones cannot keep us busy.
        if len(endpoints) > count_max:
            raise QuotaExceeded(f"a URL group has at most {count_max} endpoints")
    return _changed(group, now_ms, endpoints=endpoints)


def without_endpoints(
    group: UrlGroup, removed: Iterable[tuple[str | None, str | None]], *, now_ms: int
) -> UrlGroup | None:
    """The group without these endpoints; None when none is left, which ends it (W140).

    Each is told by its URL or, where that is None, by its name; one that is not
    there is passed over.
    """
    endpoints = list(group.endpoints)
    for url, name in removed:
        if url is not None:
            endpoints = [one for one in endpoints if one.url != url]
        elif name is not None:
            endpoints = [one for one in endpoints if one.name != name]
        if not endpoints:
            return None
    return _changed(group, now_ms, endpoints=endpoints)


def with_header(group: UrlGroup, header: dict[str, list[str]], *, now_ms: int) -> UrlGroup:
    """The group with these defaults in place of those it had."""
    return _changed(group, now_ms, header=header)


def checked_header(given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Check the spelling of default header fields; a name without a value is left out.

    What the fields ask for is checked by `options.parse`, as it is for a publish.
    A field that a publish would not heed is refused here.  Raises Invalid with
    the whole text to show.
    """
    header: dict[str, list[str]] = {}
    for name, values in given.items():
        try:
            canonical = canonical_name(name.encode(errors="surrogatepass"))
            if canonical != "Content-Type" and not canonical.startswith("Upstash-"):
                raise Invalid(
                    "a default is Content-Type or begins with Upstash-; "
                    f"to have it passed on, name it Upstash-Forward-{canonical}"
                )
            checked = [checked_value(value.encode(errors="surrogatepass")) for value in values]
        except Invalid as fault:
            raise Invalid(f"{_shown(name)}: {fault}") from None
        if checked:
            header.setdefault(canonical, []).extend(checked)
    check_total(header)
    return header


def fields_of(header: Mapping[str, Sequence[str]]) -> list[tuple[bytes, bytes]]:
    """Default header fields, as a request would bring them."""
    return [
        (name.lower().encode(), value.encode("latin-1"))
        for name, values in header.items()
        for value in values
    ]


def with_defaults(
    fields: Fields, parameters: Mapping[str, str], header: Mapping[str, Sequence[str]]
) -> Fields:
    """The fields of a publish, and behind them the defaults for what it does not say itself.

    It says so by a header or by a parameter of its query.  A field with an empty
    value says nothing, save `…-Forward-<H>` (W13).
    """
    if not header:
        return fields
    given = {name for name, value in fields if _says_something(name, value)}
    for parameter, text in parameters.items():
        if _says_something(parameter.encode(), text.encode()):
            given.add(parameter.encode())
    return [
        *fields,
        *(
            (name, value)
            for name, value in fields_of(header)
            if name not in given and _YIELDS_TO.get(name) not in given
        ),
    ]


def _says_something(name: bytes, value: bytes) -> bool:
    return bool(value and not value.isspace()) or _FORWARDS.match(name) is not None


def _place(endpoints: Sequence[Endpoint], new: Endpoint) -> int | None:
    """Which endpoint is meant: the one of that name, else the one of that URL."""
    if new.name is not None:
        for at, one in enumerate(endpoints):
            if one.name == new.name:
                return at
    for at, one in enumerate(endpoints):
        if one.url == new.url:
            return at
    return None


def _changed(
    group: UrlGroup,
    now_ms: int,
    *,
    endpoints: list[Endpoint] | None = None,
    header: dict[str, list[str]] | None = None,
) -> UrlGroup:
    """The group with what is given; updated now, if anything is other than it was."""
    changed = msgspec.structs.replace(
        group,
        endpoints=group.endpoints if endpoints is None else endpoints,
        header=group.header if header is None else header,
    )
    if changed == group:
        return group
    return msgspec.structs.replace(changed, updated_ms=max(group.updated_ms, now_ms))


def _shown(name: str) -> str:
    return name[:128].encode("ascii", "backslashreplace").decode()
