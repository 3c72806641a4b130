"""The home of built-in APIs: destinations by name, whose address is the operator's (D9).

There is one, `api/llm`: any server that speaks OpenAI's chat completions.  A
message keeps its name only; the address and the key are added when sending, so
that neither is ever stored or shown.
"""

from typing import Final

from msgspec import Struct

from waypost.domain.errors import Invalid

LLM: Final = "llm"


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
