"""The home of what a caller can act on: a tree of problems, each with a stable code.

What a remote did is an `Outcome`, not an error; what we did wrong is an
assertion or a crash.  `waypost.api.problems` turns codes into HTTP.

    Problem
    ├── Invalid              the request is wrong; the text names the field and the fault
    ├── QuotaExceeded        the request asks for more than the caller's plan allows
    ├── LimitReached         the caller has as many of these as the plan allows
    ├── RateLimited          too much was asked for in a period; later it is fine
    ├── Unauthenticated      no token, or one that nobody has
    ├── Forbidden            the token may not do this
    ├── NotFound             nothing of that name is the caller's
    ├── MethodNotAllowed     the path exists, but not with this method
    ├── TooLarge             the body is over its limit
    ├── HeadersTooLarge      the request head is over its limit
    ├── StaleClaim           the claim was lost; nothing was changed
    ├── StoreFull            no room to accept more; what is kept stays kept
    └── StoreUnavailable     the store cannot answer now; the result is unknown
        └── StoreBroken      nor will it, until it is opened again
"""

from typing import ClassVar


class Problem(Exception):
    """Something the caller can act on.  `code` is read by programs and never changes."""

    code: ClassVar[str] = "problem"


class Invalid(Problem):
    code = "invalid"


class QuotaExceeded(Problem):
    code = "quota_exceeded"


class LimitReached(Problem):
    code = "limit_reached"


class RateLimited(Problem):
    """`limit` is what a period allows; the next one begins at `reset_s` (unix seconds)."""

    code = "rate_limited"

    def __init__(self, text: str, *, limit: int = 0, reset_s: int = 0, daily: bool = False) -> None:
        super().__init__(text)
        self.limit = limit
        self.reset_s = reset_s
        self.daily = daily


class Unauthenticated(Problem):
    code = "unauthenticated"


class Forbidden(Problem):
    code = "forbidden"


class NotFound(Problem):
    code = "not_found"


class MethodNotAllowed(Problem):
    code = "method_not_allowed"


class TooLarge(Problem):
    code = "too_large"


class HeadersTooLarge(Problem):
    code = "headers_too_large"


class StaleClaim(Problem):
    code = "stale_claim"


class StoreFull(Problem):
    code = "store_full"


class StoreUnavailable(Problem):
    code = "store_unavailable"


class StoreBroken(StoreUnavailable):
    pass
