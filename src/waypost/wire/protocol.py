"""The home of what a sender promises."""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from msgspec import Struct

from waypost.domain.attempt import Outcome


def always() -> bool:
    """Nothing stands against it."""
    return True


class NotBegun(Exception):
    """A request was not sent, for it may not begin any more."""


class Request(Struct, frozen=True, kw_only=True):
    """One HTTP request, ready to go out.

    `url` is sent byte for byte as it was published (D4).  `header` is the whole
    list of header fields but for `Host` and the framing (`Content-Length`),
    which the sender adds.  `tenant` is whose message it is, for the egress
    policy; it is not asked about a `trusted` URL, which is the operator's (D9).
    `may_begin` is asked at the last moment before the first byte goes out.
    """

    method: str
    url: str
    header: list[tuple[str, str]]
    body: bytes
    timeout_ms: int
    tenant: str = ""
    trusted: bool = False
    may_begin: Callable[[], bool] = always


class BrokenOff(Exception):
    """An answer that is passed on ended before its end; the text says how."""


class Streamed(Protocol):
    """An answer that is passed on as it comes.

    `outcome` is its status and header, without the body; a status of 0 says that
    there is no answer, and `error` says why.
    """

    @property
    def outcome(self) -> Outcome: ...

    def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes, to be asked for once.

        What is not asked for is not read either, but for some 64 KB.  Raises
        BrokenOff where the body has no end, or none in time.
        """
        ...

    def close(self) -> None:
        """Let go of the answer, and end the exchange where it is under way."""
        ...


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

        Raises NotBegun where the request may not begin any more, and then has sent nothing
        of it.
        """
        ...

    async def stream(self, request: Request) -> Streamed:
        """As `send`, but return with the answer's head; the body is passed on as it comes.

        For what the operator trusts: the egress policy is not asked.  Whoever
        gets the answer closes it.
        """
        ...
