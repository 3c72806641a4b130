"""The home of cron expressions: what they may say, and when they fire next.

    */10 * * * *                            five fields, in UTC
    CRON_TZ=America/New_York 0 4 * * *      in a zone of the IANA database
    @daily                                  an alias; @every is none

| alias               | reads as    |
| ------------------- | ----------- |
| @hourly             | 0 * * * *   |
| @daily, @midnight   | 0 0 * * *   |
| @weekly             | 0 0 * * 0   |
| @monthly            | 0 0 1 * *   |
| @yearly, @annually  | 0 0 1 1 *   |

Clock changes are taken as vixie cron does.  An expression whose minute and hour
both name times (`30 2 * * *`) fires once a day at most for each of them: what
the spring clock skips fires at the first moment after the gap, and what the
autumn clock repeats fires the first time only.  One whose minute or hour begins
with `*` follows the clock on the wall: it fires in every minute that reads so.

`cronsim` reads the fields and finds the days; what a zone does to them is done
here, for its own walk loses minutes where a clock changes by half an hour.
Moments are UTC milliseconds.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from cronsim.cronsim import DAYS_IN_MONTH
from msgspec import Struct

from waypost.domain.errors import Invalid

CRON_CHARS_MAX: Final = 256
FIELDS: Final = 5

ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

LAST_MS: Final = 250_246_627_200_000
"""The year 9900: there are no dates beyond 9999, and a search may look 50 years ahead."""

_ZONED: Final = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+\-]+(?:/[A-Za-z0-9_+\-]+)*")
_FIELDS: Final = re.compile(r"[A-Za-z0-9*/,\-#\s]+")
_FEBRUARY: Final = 2
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)


class Cron(Struct, frozen=True):
    """An expression that was read: its five fields, and the zone they speak of."""

    fields: str
    zone: ZoneInfo

    @property
    def names_times(self) -> bool:
        """Whether it fires at times of the day, rather than whenever the clock reads so."""
        minute, hour = self.fields.split()[:2]
        return not (minute.startswith("*") or hour.startswith("*"))

    def next_ms(self, after_ms: int) -> int | None:
        """The first moment after `after_ms` at which it fires, or None: it never does again."""
        if not 0 <= after_ms < LAST_MS:
            return None
        after = datetime.fromtimestamp(after_ms // 1000, UTC)
        found = self._next_named(after) if self.names_times else self._next_read(after)
        return None if found is None else int(found.timestamp()) * 1000

    def latest_ms(self, *, since_ms: int, until_ms: int) -> int:
        """The latest moment up to `until_ms` at which it fires; `since_ms` is one."""
        low, high = since_ms, until_ms
        while True:
            following = self.next_ms(low)
            if following is None or following > until_ms:
                return low
            low = following
            # What is left is halved, for there may be a year of minutes.
            middle = self.next_ms((low + high) // 2)
            if middle is None or middle > until_ms:
                high = (low + high) // 2
            else:
                low = middle

    def _matches(self, local: datetime) -> Iterator[datetime]:
        """The local times after `local` that match, whether the clock ever reads so or not."""
        return CronSim(self.fields, local)

    def _next_named(self, after: datetime) -> datetime | None:
        for local in self._matches(self._local(after)):
            moment = self._first_reading(local)
            if moment > after:
                return moment
        return None

    def _next_read(self, after: datetime) -> datetime | None:
        local, offset = self._local(after), self._offset(after)
        while True:
            match = next(self._matches(local), None)
            if match is None:
                return None
            moment = (match - offset).replace(tzinfo=UTC)
            until = min(moment, after + _DAY)
            if self._offset(until) != offset:
                change = self._change(after, until)
                if moment < change:
                    return moment
                # From here on the clock reads otherwise, and may read the same again.
                after, offset = change, self._offset(change)
                local = self._local(change) - _SECOND
            elif until == moment:
                return moment
            else:
                # Nothing matches on the way, however the clock changes: go near.
                after = max(until, moment - _DAY)
                local, offset = self._local(after), self._offset(after)

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.astimezone(self.zone).utcoffset()
        assert offset is not None
        return offset

    def _first_reading(self, local: datetime) -> datetime:
        """When the clock first reads `local`, or jumps over it."""
        moment = local.replace(tzinfo=self.zone, fold=0).astimezone(UTC)
        if self._local(moment) == local:
            return moment
        return self._change(moment - _DAY, moment)

    def _change(self, before: datetime, after: datetime) -> datetime:
        """When the clock changes between two moments; `after` is already on the other side."""
        offset = self._offset(after)
        while after - before > _SECOND:
            middle = before + (after - before) // 2
            middle = middle.replace(microsecond=0)
            if self._offset(middle) == offset:
                after = middle
            else:
                before = middle
        return after


@lru_cache(maxsize=4096)
def read_cron(text: str) -> Cron:
    """Read an expression; blanks around it do not count.  Raises Invalid with the reason."""
    text = text.strip()
    if len(text) > CRON_CHARS_MAX:
        raise Invalid(f"the expression is longer than {CRON_CHARS_MAX} characters")
    zone = "UTC"
    zoned = _ZONED.fullmatch(text)
    if zoned is not None:
        zone, text = zoned.groups()
    elif "TZ=" in text:
        raise Invalid("after CRON_TZ=Zone comes a blank, and then the five fields")
    fields = _alias(text) if text.startswith("@") else " ".join(text.split())
    count = len(fields.split())
    if count != FIELDS:
        raise Invalid(f"there are {count} fields and not {FIELDS}: minute hour day month weekday")
    if _FIELDS.fullmatch(fields) is None:
        raise Invalid("a field holds a character that no field can")
    try:
        read = CronSim(fields, datetime(2000, 1, 1))  # noqa: DTZ001 -- read only, and never run
    except CronSimError as fault:
        raise Invalid(str(fault)) from None
    if not _comes(read):
        raise Invalid("no month has a day that is both of that number and of that weekday")
    return Cron(fields, _zone(zone))


def _comes(read: CronSim) -> bool:
    """Whether there is such a day.  To find that there is none would take 0.1 s of search."""
    if not read.day_and:
        return True
    return any(
        _may_match(read, day=day, last=last)
        for month in read.months
        for last in ((28, 29) if month == _FEBRUARY else (DAYS_IN_MONTH[month],))
        for day in range(1, last + 1)
    )


def _may_match(read: CronSim, *, day: int, last: int) -> bool:
    """Whether a day of a month that ends with the day `last` may match in some year."""
    by_number = day in read.days or (CronSim.LAST in read.days and day == last)
    # The last day from Monday to Friday; only where the month ends on a weekend is it a Friday.
    workdays = range(1, 6) if day == last else range(5, 6)
    by_workday = CronSim.LAST_WEEKDAY in read.days and day >= last - 2
    for weekday in read.weekdays:
        name, nth = weekday if isinstance(weekday, tuple) else (weekday, None)
        is_nth = nth is None or nth == (day + 6) // 7
        if not is_nth and not (nth == CronSim.LAST and day + 7 > last):
            continue
        if by_number or (by_workday and name in workdays):
            return True
    return False


def _alias(text: str) -> str:
    fields = ALIASES.get(text.lower())
    if fields is not None:
        return fields
    known = ", ".join(ALIASES)
    if text.lower().startswith("@every"):
        raise Invalid(f"@every is not supported; write five fields, or one of {known}")
    raise Invalid(f"there is no such alias; there are {known}")


def _zone(name: str) -> ZoneInfo:
    if _ZONE.fullmatch(name) is not None:
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise Invalid(f"there is no time zone {name[:64]!r}; zones are named as America/New_York is")
