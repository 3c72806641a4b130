"""The home of what makes two messages the same one (D2).

The key is the store's to keep, beside the tenant, for `WINDOW_MS`.

| asked for     | key                                                                    |
| ------------- | ---------------------------------------------------------------------- |
| an id         | `id:<id>`, for a group `id:<id>:<group>:<url>`                         |
| by content    | `content:<sha256>` of url, forwarded headers, body                     |
|               | for a group `content:<sha256>:<url>`, of group, forwarded headers, body |
| both          | the id's                                                               |
| any of these, | `long:<sha256>` of that key                                            |
| too long      |                                                                        |

Neither an id nor the name of a group may contain a colon, so no two keys
can be confused.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

WINDOW_MS: Final = 600_000

KEY_BYTES_MAX: Final = 512
"""As long as a key may be, in UTF-8.  An id may take 4 KB and a URL 8 KB, and PostgreSQL has
no room for a row of more than 2,704 bytes in an index."""


def dedup_key(
    *,
    deduplication_id: str | None,
    content_based: bool,
    url: str,
    header: Mapping[str, Sequence[str]],
    body: bytes,
) -> str | None:
    """The key of one message, or None when it is not to be deduplicated.

    `header` is what is forwarded, with canonical names; the order of names
    makes no difference, the order of values does (W56).
    """
    if deduplication_id is not None:
        return _bounded(f"id:{deduplication_id}")
    if not content_based:
        return None
    return _content("", url, header, body)


def group_dedup_keys(
    *,
    deduplication_id: str | None,
    content_based: bool,
    group: str,
    urls: Sequence[str],
    header: Mapping[str, Sequence[str]],
    body: bytes,
) -> list[str | None]:
    """The keys of the messages of a fan-out, one for each of its `urls`.

    However many there are, the body is read once.
    """
    if deduplication_id is not None:
        return [_bounded(f"id:{deduplication_id}:{group}:{url}") for url in urls]
    if not content_based:
        return [None for _ in urls]
    content = _content(group, "", header, body)
    return [_bounded(f"{content}:{url}") for url in urls]


def _bounded(key: str) -> str:
    raw = key.encode()
    return key if len(raw) <= KEY_BYTES_MAX else f"long:{sha256(raw).hexdigest()}"


def _content(group: str, url: str, header: Mapping[str, Sequence[str]], body: bytes) -> str:
    parts = [group.encode(), url.encode()]
    for name in sorted(header):
        parts += [name.encode(), b"%d" % len(header[name])]
        parts += [value.encode("latin-1") for value in header[name]]
    # Every part is preceded by its length, so that no text can pass for another split of it.
    framed = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    digest = sha256(b"%d:%b" % (len(framed), framed))
    digest.update(body)
    return f"content:{digest.hexdigest()}"
