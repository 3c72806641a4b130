"""The home of an attempt: what the destination did, and what follows from it.

What a remote does is a value here and never an exception.  A network fault
has status 0 and an `error` that says what happened (D14).
"""

from msgspec import Struct


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one attempt ended.

    `header` has lower-case names, in order of arrival.  `body` is the answer up
    to the cap; `truncated` says that there was more.  `error` is None only when
    an answer was read to its end or to the cap.  `refused` is set when our own
    egress policy forbade the address: trying again cannot help (D10).
    `host_down` is set when the fault speaks of the host and not of the message:
    refused, reset, timed out, name not found, no TLS (D21).  `redialled` says
    that a pooled connection was found closed and the request was sent a second
    time (D15).  `proxy_fault` is set when our own forward proxy failed, and the
    destination was not asked: it uses up no retry (D10).
    """

    status: int = 0
    header: list[tuple[str, str]] = []
    body: bytes = b""
    truncated: bool = False
    error: str | None = None
    refused: bool = False
    host_down: bool = False
    redialled: bool = False
    proxy_fault: bool = False

    @property
    def delivered(self) -> bool:
        """A 2xx status, and the answer read to its end or to the cap (D14)."""
        return 200 <= self.status < 300 and self.error is None


class Delivered(Struct, frozen=True):
    """The destination took the message."""


class TryAgain(Struct, frozen=True):
    """The attempt failed; the next one is due at `at_ms`.

    `counts` says whether it uses up a retry.
    """

    at_ms: int
    counts: bool = True


class GiveUp(Struct, frozen=True):
    """The message goes to the dead letter queue; `why` is shown to people."""

    why: str


Verdict = Delivered | TryAgain | GiveUp
