"""The home of how problems look in HTTP: one table from code to status.

Every answer of 400 and above is `{"error": "<text>"}` (W4).
"""

import secrets
from collections.abc import Sequence
from typing import Final

import structlog

from waypost.api.answer import Answer, json_answer
from waypost.domain.errors import Problem

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


STATUS: Final = {
    "invalid": 400,
    "quota_exceeded": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "stale_claim": 409,
    "too_large": 413,
    "too_many_failures": 429,
    "headers_too_large": 431,
    "busy": 503,
    "store_unavailable": 503,
    "store_full": 507,
}

RETRY_AFTER_S: Final = {"too_many_failures": 60, "busy": 1, "store_unavailable": 1}


def answer(problem: Problem, *, header: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    """Tell the caller of a problem."""
    wait_s = RETRY_AFTER_S.get(problem.code)
    if wait_s is not None:
        header = [*header, (b"retry-after", b"%d" % wait_s)]
    return json_answer({"error": str(problem)}, status=STATUS[problem.code], header=header)


def unexpected(route: str) -> Answer:
    """Log the exception that is being handled; name the entry to the caller and nothing else."""
    fault = secrets.token_hex(6)
    log.exception("request_fault", fault=fault, route=route)
    return json_answer({"error": f"internal error, see log entry {fault}"}, status=500)
