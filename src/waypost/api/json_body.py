"""The home of JSON bodies, read whatever their Content-Type says (contract section 0.4)."""

from typing import TypeVar

import msgspec

from waypost.api.exchange import Api, Request
from waypost.domain.errors import Invalid

T = TypeVar("T")


async def read_json(
    api: Api, request: Request, decoder: msgspec.json.Decoder[T], *, bytes_max: int | None = None
) -> T:
    """The body as the decoder's type; keys that it does not know are ignored.

    Raises Invalid with a text that says where the fault is, and what `Request.body` raises.
    """
    body = await request.body(api, bytes_max=bytes_max)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        raise Invalid(f"the body: {fault}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise Invalid(f"the body is not JSON: {fault}") from None
