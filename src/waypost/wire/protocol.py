"""The home of what a sender promises."""

from typing import Protocol

from msgspec import Struct

from waypost.domain.attempt import Outcome


class Request(Struct, frozen=True, kw_only=True):
    """One HTTP request, ready to go out.

    `url` is sent byte for byte as it was published (D4).  `header` is the whole
    list of header fields but for `Host` and the framing (`Content-Length`),
    which the sender adds.  `tenant` is whose message it is, for the egress
    policy; it is not asked about a `trusted` URL, which is the operator's (D9).
    """

    method: str
    url: str
    header: list[tuple[str, str]]
    body: bytes
    timeout_ms: int
    tenant: str = ""
    trusted: bool = False


class Sender(Protocol):
    """Sends requests.  What the remote does is a value, never an exception."""

    async def send(self, request: Request) -> Outcome:
        """Exchange one request for an answer within `request.timeout_ms`.

        The deadline covers the whole exchange: name look-up, connection, TLS,
        request and answer.  Redirects are never followed.  The answer's body is
        read to its end or to the sender's cap, whichever comes first, and never
        decompressed.

        A fault of the proxy on the way, where there is one, is an outcome with
        `proxy_fault`.
        """
        ...
