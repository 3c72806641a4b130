"""The home of schedules: what is kept of them, and which of their firings run (contract section 8).

A schedule is a publish request that is kept, and made again at each fire time.
What it asked for is kept as it was read, so that neither another default nor
another version changes it; where it leads is looked at anew each time.  Only to
a URL group that has default headers is it read again at each run, with them.

What was not fired in time, for the server was down or late, is a misfire:

| misfire  | what runs of the firings that are due                        |
| -------- | ------------------------------------------------------------ |
| `none`   | the latest, where it is less than a minute late              |
| `latest` | the latest, where it is no later than the window             |
| `all`    | all that are no later than the window, one after the other   |

The others are skipped, and logged so.  While a schedule is paused its firings
are ignored, and its next fire time goes on (`upcoming_ms`).
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from waypost.domain.cron import read_cron
from waypost.domain.errors import Invalid
from waypost.domain.options import Options, checked_name

LATE_MS: Final = 60_000
"""A firing that runs within so long is on time: fire times are minutes."""

SET_BACK_MS: Final = 86_400_000
"""A fire time that ran no farther ahead than this does not run again, for the clock was set
back; one that is farther ahead was a wrong clock's, and holds up nothing."""

CRON: Final = b"upstash-cron"
SCHEDULE_ID: Final = b"upstash-schedule-id"
_NOT_BEFORE: Final = b"upstash-not-before"

_ONLY_PASSING: Final = frozenset(
    {b"authorization", b"accept-encoding", b"content-length", b"host", b"cdn-loop"}
)
"""Fields of a request that say nothing of the messages it asks for."""

Fields = Sequence[tuple[bytes, bytes]]


class Rule(Struct, frozen=True):
    """What becomes of misfires."""

    misfire: Literal["none", "latest", "all"] = "latest"
    window_ms: int = 3_600_000


class Schedule(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A schedule.  The body is kept beside it.

    `destination` is as it was given: a URL, `api/llm`, or the name of a URL group.
    A run asks for `asked`, and is due `delay_ms` after it was made.  For a group
    `fields` and `parameters` are what the request itself said, for what it did
    not say the group may say (W143).

    `next_ms` is when it fires next, and None while it is paused or where it never
    fires again; `fired_ms` is the latest fire time that ran, which made the
    messages `run`.  `error` says why the latest one could not.  `updated_ms` only
    grows, whatever the clock does.
    """

    tenant: str
    id: str
    cron: str
    destination: str
    asked: Options
    delay_ms: int = 0
    fields: list[tuple[str, str]] = []
    parameters: dict[str, str] = {}
    caller_ip: str | None = None
    created_ms: int
    updated_ms: int
    paused: bool = False
    next_ms: int | None = None
    fired_ms: int | None = None
    run: list[str] = []
    error: str | None = None


class Turn(Struct, frozen=True, kw_only=True):
    """What is to be done when a schedule is due: `fire_ms` runs, and those from
    `skipped_ms` until it, or until `next_ms`, do not."""

    fire_ms: int | None = None
    skipped_ms: int | None = None
    next_ms: int | None = None


class Said(Struct, frozen=True, kw_only=True):
    """What a request says of the schedule itself, and all else that it says."""

    cron: str
    id: str | None
    fields: Fields
    parameters: Mapping[str, str]


def read_request(fields: Fields, parameters: Mapping[str, str]) -> Said:
    """Part a request to make a schedule.  Raises Invalid with the whole text to show."""
    cron = _value(CRON, fields, parameters)
    if cron is None:
        raise Invalid("Upstash-Cron: a schedule needs one, such as */5 * * * *")
    if _value(_NOT_BEFORE, fields, parameters) is not None:
        raise Invalid("Upstash-Not-Before: a schedule has none; Upstash-Delay delays each run")
    cron = cron.strip()
    try:
        read_cron(cron)
    except Invalid as fault:
        raise Invalid(f"Upstash-Cron: {fault}") from None
    schedule_id = _value(SCHEDULE_ID, fields, parameters)
    if schedule_id is not None:
        schedule_id = schedule_id.strip()
        try:
            checked_name(schedule_id)
        except Invalid as fault:
            raise Invalid(f"Upstash-Schedule-Id: {fault}") from None
    ours = {CRON, SCHEDULE_ID}
    return Said(
        cron=cron,
        id=schedule_id,
        fields=[
            (name, value)
            for name, value in fields
            if name not in ours and name not in _ONLY_PASSING
        ],
        parameters={name: text for name, text in parameters.items() if name.encode() not in ours},
    )


def check_asked(asked: Options) -> None:
    """Raise Invalid for what a message may ask for and a schedule cannot (D2)."""
    for name, given in (
        ("Upstash-Deduplication-Id", asked.deduplication_id is not None),
        ("Upstash-Content-Based-Deduplication", asked.content_based_deduplication),
    ):
        if given:
            raise Invalid(f"{name}: a schedule has none, for each of its runs is a new message")


def kept_fields(fields: Fields) -> list[tuple[str, str]]:
    """Header fields as texts, one character per byte."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]


def fields_of(schedule: Schedule) -> list[tuple[bytes, bytes]]:
    """What the request said, as it came."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in schedule.fields]


def upcoming_ms(schedule: Schedule, *, now_ms: int) -> int | None:
    """The next fire time, be it ignored or not (W134)."""
    if not schedule.paused:
        return schedule.next_ms
    try:
        cron = read_cron(schedule.cron)
    except Invalid:  # its zone is not in this database of zones
        return None
    return cron.next_ms(_ran_ms(schedule, now_ms))


def in_place_of(before: Schedule | None, after: Schedule, *, now_ms: int) -> Schedule:
    """`after`, as it is kept where `before` was: whole, but for its age and its latest run.

    It is not paused (A47), what has been fired is not fired again, and a firing that is
    due at the same times as before is not lost.
    """
    next_ms = None
    if before is not None:
        if before.cron == after.cron and before.next_ms is not None and before.next_ms <= now_ms:
            next_ms = before.next_ms
        after = replace(
            after,
            created_ms=before.created_ms,
            updated_ms=before.updated_ms,
            fired_ms=before.fired_ms,
            run=before.run,
        )
    if next_ms is None:
        next_ms = _next_ms(after, now_ms)
    return _changed(after, now_ms=now_ms, next_ms=next_ms)


def paused(schedule: Schedule, *, now_ms: int) -> Schedule:
    """The schedule, paused; one that is paused stays as it is."""
    if schedule.paused:
        return schedule
    return replace(_changed(schedule, now_ms=now_ms, next_ms=None), paused=True)


def resumed(schedule: Schedule, *, now_ms: int) -> Schedule:
    """The schedule, going on with the next fire time after now."""
    if not schedule.paused:
        return schedule
    next_ms = _next_ms(schedule, now_ms)
    return replace(_changed(schedule, now_ms=now_ms, next_ms=next_ms), paused=False)


def turn(schedule: Schedule, *, rule: Rule, now_ms: int) -> Turn:
    """What is to be done now with a schedule that is due."""
    due_ms = schedule.next_ms
    assert due_ms is not None, schedule.id
    assert due_ms <= now_ms, (due_ms, now_ms)
    cron = read_cron(schedule.cron)
    if rule.misfire == "all":
        fire_ms: int | None = due_ms
        if due_ms < now_ms - rule.window_ms:
            fire_ms = cron.next_ms(now_ms - rule.window_ms - 1)
    else:
        window_ms = LATE_MS if rule.misfire == "none" else rule.window_ms
        fire_ms = cron.latest_ms(since_ms=due_ms, until_ms=now_ms)
        if fire_ms < now_ms - window_ms:
            fire_ms = None
    if fire_ms is None or fire_ms > now_ms:
        return Turn(skipped_ms=due_ms, next_ms=cron.next_ms(now_ms))
    return Turn(
        fire_ms=fire_ms,
        skipped_ms=due_ms if due_ms < fire_ms else None,
        next_ms=cron.next_ms(fire_ms),
    )


def moved_on(
    schedule: Schedule, done: Turn, *, run: Sequence[str], error: str | None, now_ms: int
) -> Schedule:
    """The schedule after its turn.  `error` says why nothing could be made of a run."""
    after = _changed(schedule, now_ms=now_ms, next_ms=done.next_ms)
    if done.fire_ms is None:
        return replace(after, error=error or schedule.error)
    return replace(after, fired_ms=done.fire_ms, run=list(run), error=error)


def _next_ms(schedule: Schedule, now_ms: int) -> int:
    """Raises Invalid where the schedule would never fire."""
    next_ms = read_cron(schedule.cron).next_ms(_ran_ms(schedule, now_ms))
    if next_ms is None:
        raise Invalid("Upstash-Cron: this never comes")
    return next_ms


def _ran_ms(schedule: Schedule, now_ms: int) -> int:
    """The moment up to which nothing fires any more."""
    fired_ms = schedule.fired_ms
    return now_ms if fired_ms is None or fired_ms > now_ms + SET_BACK_MS else max(now_ms, fired_ms)


def _changed(schedule: Schedule, *, now_ms: int, next_ms: int | None) -> Schedule:
    updated_ms = max(now_ms, schedule.updated_ms + 1)
    return replace(schedule, next_ms=next_ms, updated_ms=updated_ms)


def _value(name: bytes, fields: Fields, parameters: Mapping[str, str]) -> str | None:
    """What a field says: the first header of the name that is not blank, else the parameter."""
    for one, value in fields:
        if one == name and not value.isspace() and value:
            return value.decode("utf-8", "replace")
    text = parameters.get(name.decode())
    return text if text is not None and text.strip() else None
