"""The home of a schedule as a document, which is what engines keep."""

import msgspec
import structlog

from waypost.domain.schedules import Schedule

log = structlog.stdlib.get_logger()

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Schedule).decode


def read(facts: bytes, tenant: str, schedule_id: str) -> Schedule | None:
    """The schedule that a row holds; None, and a line in the log, where it cannot be read."""
    try:
        return _decode(facts)
    except ValueError as fault:  # no JSON, not of this form, or no UTF-8
        log.error("schedule_unreadable", tenant=tenant, schedule_id=schedule_id, why=str(fault))
        return None
