"""The home of how problems look in HTTP: one table from code to status.

Every answer of 400 and above is `{"error": "<text>"}` (W4).
"""

import secrets
from collections.abc import Sequence
from typing import Final

import structlog

from waypost.api.answer import Answer, json_answer
from waypost.domain.errors import Problem, RateLimited

log = structlog.stdlib.get_logger()


class TooSlow(Problem):
    """The body did not arrive in time."""

    code = "too_slow"


class TooManyFailures(Problem):
    """Too many wrong tokens came from this address."""

    code = "too_many_failures"


class Busy(Problem):
    """More is being received at once than there is room for."""

    code = "busy"


class BadGateway(Problem):
    """What the request was passed on to did not answer, or did not let us in."""

    code = "bad_gateway"


STATUS: Final = {
    "invalid": 400,
    "quota_exceeded": 400,
    "limit_reached": 412,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "stale_claim": 409,
    "too_large": 413,
    "too_many_failures": 429,
    "rate_limited": 429,
    "headers_too_large": 431,
    "bad_gateway": 502,
    "busy": 503,
    "store_unavailable": 503,
    "store_full": 507,
}

BURST: Final = b"burst-"
"""Before the names of fields that tell of a second, and not of a day (contract section 0.5)."""

TEXT: Final = {"store_unavailable": "the store cannot answer now, try again"}
"""What callers are told in place of what operators are: where the store is, and who we are there,
is none of their business."""

RETRY_AFTER_S: Final = {"too_many_failures": 60, "busy": 1, "store_unavailable": 1}


def answer(problem: Problem, *, header: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    """Tell the caller of a problem."""
    if isinstance(problem, RateLimited):
        prefix = b"" if problem.daily else BURST
        header = [*header, *rate_fields(prefix, problem.limit, 0, problem.reset_s)]
    wait_s = RETRY_AFTER_S.get(problem.code)
    if wait_s is not None:
        header = [*header, (b"retry-after", b"%d" % wait_s)]
    text = TEXT.get(problem.code) or str(problem)
    return json_answer({"error": text}, status=STATUS[problem.code], header=header)


def rate_fields(
    prefix: bytes, limit: int, remaining: int, reset_s: int
) -> list[tuple[bytes, bytes]]:
    """What is left of a rate, as header fields."""
    return [
        (prefix + b"ratelimit-limit", b"%d" % limit),
        (prefix + b"ratelimit-remaining", b"%d" % remaining),
        (prefix + b"ratelimit-reset", b"%d" % reset_s),
    ]


def unexpected(route: str) -> Answer:
    """Log the exception that is being handled; name the entry to the caller and nothing else."""
    fault = secrets.token_hex(6)
    log.exception("request_fault", fault=fault, route=route)
    return json_answer({"error": f"internal error, see log entry {fault}"}, status=500)
