"""The home of filters: which messages somebody means.

A field that is empty says nothing.  Of what a field names any will do, and
every field that says something must be met: OR within a field, AND across
them (contract section 0.4).  A filter without any field means every message.

| field            | is met by                                                       |
| ---------------- | --------------------------------------------------------------- |
| message_ids      | the message's id                                                |
| groups           | the name of the URL group that it was published to              |
| queues           | its queue                                                       |
| urls             | its URL, byte for byte; `api/llm`                               |
| hosts            | the host of its URL in any letter case, with or without its port |
| paths            | the path of its URL, exactly, as it stands or percent-decoded   |
| labels           | any of its labels                                               |
| flow_keys        | its flow-control key                                            |
| schedules        | the id of the schedule that made it                             |
| caller_ips       | who published it                                                |
| from_ms, to_ms   | the moment that it is asked about, both ends included           |
| statuses         | of dead letters: the status of the last answer, 0 for none      |
| dead_letter_ids  | of dead letters: their ids                                      |
"""

from urllib.parse import unquote

from msgspec import Struct

from waypost.domain.message import Message

NOTHING: frozenset[str] = frozenset()


class Filter(Struct, frozen=True, kw_only=True):
    """Which messages are meant; without any field, all."""

    message_ids: frozenset[str] = NOTHING
    groups: frozenset[str] = NOTHING
    queues: frozenset[str] = NOTHING
    urls: frozenset[str] = NOTHING
    hosts: frozenset[str] = NOTHING
    paths: frozenset[str] = NOTHING
    labels: frozenset[str] = NOTHING
    flow_keys: frozenset[str] = NOTHING
    schedules: frozenset[str] = NOTHING
    caller_ips: frozenset[str] = NOTHING
    from_ms: int | None = None
    to_ms: int | None = None
    statuses: frozenset[int] = frozenset()
    dead_letter_ids: frozenset[str] = NOTHING


EVERYTHING = Filter()


def matches(
    wanted: Filter,
    message: Message,
    *,
    at_ms: int,
    status: int | None = None,
    dead_letter_id: str | None = None,
) -> bool:
    """Whether `wanted` means this message.

    `at_ms` is the moment that its dates speak of: of a message when it was
    accepted, of a dead letter when it failed, of an entry of the log when that
    was written.  `status` and `dead_letter_id` are those of a dead letter.
    """
    if wanted.from_ms is not None and at_ms < wanted.from_ms:
        return False
    if wanted.to_ms is not None and at_ms > wanted.to_ms:
        return False
    for allowed, own in (
        (wanted.message_ids, message.id),
        (wanted.labels, message.labels),
        (wanted.queues, message.queue),
        (wanted.urls, message.url),
        (wanted.groups, message.group),
        (wanted.schedules, message.schedule),
        (wanted.caller_ips, message.caller_ip),
        (wanted.dead_letter_ids, dead_letter_id),
    ):
        if allowed and (allowed.isdisjoint(own) if isinstance(own, list) else own not in allowed):
            return False
    if wanted.statuses and status not in wanted.statuses:
        return False
    if wanted.flow_keys and (message.flow is None or message.flow.key not in wanted.flow_keys):
        return False
    if wanted.hosts and wanted.hosts.isdisjoint(hosts_of(message.url)):
        return False
    return not wanted.paths or not wanted.paths.isdisjoint(paths_of(message.url))


def hosts_of(url: str) -> tuple[str, ...]:
    """How the host of a URL may be called, in lower case; an API has none."""
    authority = _authority_and_rest(url)[0].rpartition("@")[2].lower()
    if not authority:
        return ()
    if authority.startswith("["):
        literal = authority[1:].partition("]")[0]
        return (authority, f"[{literal}]", literal)
    return (authority, authority.partition(":")[0])


def paths_of(url: str) -> tuple[str, ...]:
    """How the path of a URL may be written; an API has none."""
    authority, rest = _authority_and_rest(url)
    if not authority:
        return ()
    path = rest.partition("?")[0]
    return (path, unquote(path)) if path else ("", "/")


def _authority_and_rest(url: str) -> tuple[str, str]:
    _, scheme, after = url.partition("://")
    if not scheme:
        return "", ""
    for at, character in enumerate(after):
        if character in "/?":
            return after[:at], after[at:]
    return after, ""
