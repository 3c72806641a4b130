"""The home of built-in APIs: destinations by name, whose address is the operator's (D9).

There is one, `api/llm`: any server that speaks OpenAI's chat completions.  A
message keeps its name only; the address and the key are added when sending, so
that neither is ever stored or shown.

It can also be asked directly, through `/llm/v1/chat/completions`; what goes to
it then, and what comes back of its header, is decided here too.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw, Struct

from waypost.domain.errors import Invalid

LLM: Final = "llm"

_ASKED_FIELDS: Final = {b"content-type": "Content-Type", b"accept": "Accept"}
_ANSWERED_FIELDS: Final = frozenset(
    ("cache-control", "content-encoding", "content-length", "content-type", "retry-after",
     "x-request-id")
)  # fmt: skip
_RATES: Final = "x-ratelimit-"
"""What is left of a rate, which the SDKs raise errors of their own from."""


class Api(Struct, frozen=True):
    """Where an API is.  `key` goes out as a bearer token; without one, as the publisher says."""

    url: str
    key: str = ""

    def __repr__(self) -> str:
        return "Api(…)"


def llm(base_url: str, key: str) -> Api | None:
    """The API for language models; None where the operator has set none."""
    return Api(f"{base_url.rstrip('/')}/chat/completions", key) if base_url else None


def destination_of(name: str) -> str:
    """How an API is written: `api/llm`."""
    return f"api/{name}"


def check_api(name: str, *, llm_known: bool, called_back: bool) -> None:
    """Raise Invalid where a message to an API cannot be accepted."""
    if name != LLM:
        raise Invalid(
            f"there is no API named api/{name}; there is api/llm, with the setting llm_base_url"
        )
    if not llm_known:
        raise Invalid("api/llm is not configured: set llm_base_url")
    if not called_back:
        raise Invalid("Upstash-Callback: api/llm needs one, for that is where its answer goes")


def authorized(header: list[tuple[str, str]], key: str) -> list[tuple[str, str]]:
    """The header that goes out to an API: the operator's key, and no other beside it."""
    if not key:
        return header
    kept = [field for field in header if field[0].lower() != "authorization"]
    return [*kept, ("Authorization", f"Bearer {key}")]


def question_header(header: Iterable[tuple[bytes, bytes]], key: str) -> list[tuple[str, str]]:
    """The header of a direct question: the caller's token never goes out, also without a key."""
    asked = [
        (_ASKED_FIELDS[name], value.decode("latin-1"))
        for name, value in header
        if name in _ASKED_FIELDS
    ]
    own = [("User-Agent", "Upstash-QStash"), ("Accept-Encoding", "identity")]
    return authorized([*own, *asked], key)


def question_body(body: bytes) -> bytes:
    """The body of a direct question, untouched, but for what the JavaScript SDK says to itself.

    It sends its own `provider` object, with `system` beside it, which OpenAI's
    API refuses; the `provider` that OpenRouter knows has no such owner.
    """
    if b'"owner":"upstash"' not in body:
        return body
    try:
        fields = _fields.decode(body)
        owner = _provider.decode(fields["provider"]).owner
    except (msgspec.DecodeError, KeyError):
        return body
    if owner != "upstash":
        return body
    return _encode({name: fields[name] for name in fields if name not in ("provider", "system")})


def answer_header(header: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """What is passed back of an answer's header: no cookies, nothing of the connection."""
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in header
        if name in _ANSWERED_FIELDS or name.startswith(_RATES)
    ]


class _Provider(Struct):
    owner: str


_fields = msgspec.json.Decoder(dict[str, Raw])
_provider = msgspec.json.Decoder(_Provider)
_encode = msgspec.json.Encoder().encode
