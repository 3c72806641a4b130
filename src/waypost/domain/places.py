"""The home of how many attempts may be under way at once, in all and at each host.

Places belong to this process and live in memory: a message without a queue
costs no row for them.  An attempt holds a place while it is *young*; one that
has run for `SLOW_MS` *lingers*: it leaves its place, so that others may begin,
and is counted apart.

| bound            | on what                                                      |
| ---------------- | ------------------------------------------------------------ |
| `count_max`      | young attempts                                               |
| `lingering_max`  | lingering attempts: `LINGERING_SHARE` times as many          |
| `host_count_max` | attempts at one host, lingering ones too; less while it comes |
|                  | back from failures: one after a fault, one more for each answer (D21) |
| `bytes_max`      | bodies in memory, of which one may be more than all          |

A host is *proven* by an answer within `SLOW_MS`, until an attempt lingers or
ends with a fault of the host.  All that are not proven share half of the
places and half of the bytes; while they have many attempts under way, each of
them may only begin its first.  So a thousand hanging hosts cannot stop the
rest, and a host never seen before is tried, proven and trusted beside them
(docs/decisions/0004-places-and-proven-hosts.md).

A suspect, a message whose attempts a crash cut short several times, is sent
while no other suspect is, so that only the guilty one goes on counting (D18).

Whoever is refused waits for a *resource*; `openings` names those with room.
"""

from collections import OrderedDict
from enum import Enum, auto

SUSPECT_AFTER = 3
"""Interrupted attempts that make a message a suspect (D18)."""

INTERRUPTED_MAX = 20
"""A message interrupted so often goes to the dead letter queue (D18)."""

SLOW_MS = 2_000
"""An attempt that runs longer than this speaks against its host, and lingers."""

LINGERING_SHARE = 4
"""Lingering attempts for each place: what they cost is a connection and a body each."""

NODE = "node"
"""This process has no room at all, and nobody else's attempt may begin either."""

SUSPECT = "suspect"
"""The resource of which there is one: being the suspect that is sent."""

BODIES = "bodies"
"""The resource that the bodies for hosts that are not proven share."""

BODIES_OPENED = 16
"""Lanes that look again when there is room for bodies: which of them fit, nobody knows."""

HOST = "host:"


class Sign(Enum):
    """What an attempt that ended says about its host."""

    WELL = auto()  # an answer came in good time, whatever its status
    SLOW = auto()  # an answer came late
    DOWN = auto()  # no answer: refused, reset, timed out, not found
    NONE = auto()  # the attempt was given back unsent


class _Line(Enum):
    """What the next attempt at a host has to wait for."""

    FULL = auto()  # its own attempts
    PROVEN = auto()  # any place
    FIRST = auto()  # a place of the unproven; it has nothing under way
    FURTHER = auto()  # the same, after those who wait for their first


class _Host:
    """What is known of one host; `line` is where it stands while something waits for it."""

    __slots__ = ("bytes", "in_flight", "line", "lingering", "proven", "room")

    def __init__(self, room: int) -> None:
        self.in_flight = 0
        self.lingering = 0
        self.bytes = 0
        self.proven = False
        self.room = room
        self.line: _Line | None = None


class Places:
    """The places of one node.  Every `take` has its `give_back`."""

    def __init__(
        self,
        *,
        count_max: int,
        host_count_max: int,
        bytes_max: int,
        hosts_known_max: int = 10_000,
    ) -> None:
        self._count_max = count_max
        self._unproven_young_max = -(-count_max // 2)
        self._lingering_max = LINGERING_SHARE * count_max
        self._host_count_max = host_count_max
        self._bytes_max = bytes_max
        self._hosts_known_max = hosts_known_max
        self._hosts: dict[str, _Host] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()  # those that may be forgotten
        self._lines: dict[_Line, OrderedDict[str, None]] = {line: OrderedDict() for line in _Line}
        self._standing = 0  # hosts in these lines
        self._young = 0
        self._lingering = 0
        self._bytes = 0
        self._unproven_young = 0
        self._unproven_lingering = 0
        self._unproven_bytes = 0
        self._closed = False
        self._node_refused = False
        self._suspect_in_flight = False
        self._suspect_waits = False
        self._bodies_wait = False
        self._bodies_went = False

    @property
    def in_flight(self) -> int:
        return self._young + self._lingering

    @property
    def lingering(self) -> int:
        return self._lingering

    @property
    def free(self) -> int:
        """Places that may be taken; none once `close` was called."""
        return 0 if self._closed else self._count_max - self._young

    @property
    def full(self) -> bool:
        """Whether nothing can begin before an attempt ends or lingers."""
        return self._node_refused or self.free <= 0

    def close(self) -> None:
        """Let nothing more begin."""
        self._closed = True

    def room(self, host: str) -> int:
        """How many more attempts `host` may have now."""
        known = self._hosts.get(host)
        if known is None:
            known = _Host(self._host_count_max)
        line = self._line_of(known)
        room = self._room_in(line)
        if line is _Line.FIRST and room > 1:
            room = max(1, self._room_in(_Line.FURTHER))
        return max(0, min(room, known.room - known.in_flight))

    def refusal(self, host: str, *, size: int = 0, suspect: bool = False) -> str | None:
        """What keeps an attempt with a body of `size` bytes from beginning, or None."""
        if (
            self._young >= self._count_max
            or self._closed
            or (size and self._bytes and self._bytes + size > self._bytes_max)
        ):
            return NODE
        if suspect and self._suspect_in_flight:
            return SUSPECT
        known = self._hosts.get(host)
        line = _Line.FIRST if known is None else self._line_of(known)
        if line is _Line.PROVEN:
            return None
        if self._room_in(line) <= 0:
            return f"{HOST}{host}"
        if size:
            held = self._unproven_bytes
            if held and held + size > self._bytes_max // 2:
                return BODIES
        return None

    def take(self, host: str, *, size: int = 0, suspect: bool = False) -> None:
        """Begin an attempt with a body of `size` bytes."""
        known = self._hosts.get(host)
        if known is None:
            known = self._hosts[host] = _Host(self._host_count_max)
        else:
            self._idle.pop(host, None)
        known.in_flight += 1
        known.bytes += size
        self._young += 1
        self._bytes += size
        if not known.proven:
            self._unproven_young += 1
            self._unproven_bytes += size
        if suspect:
            self._suspect_in_flight = True
        if known.line is not None:
            self._stand(host, known)

    def linger(self, host: str) -> bool:
        """Let an attempt that has run for `SLOW_MS` leave its place, and doubt its host.

        Whether it could: it keeps its place while too many linger.
        """
        known = self._hosts[host]
        if known.proven:
            self._prove(known, proven=False)
        may = self._lingering < self._lingering_max
        if may:
            known.lingering += 1
            self._lingering += 1
            self._unproven_lingering += 1
            self._young -= 1
            self._unproven_young -= 1
        if known.line is not None:
            self._stand(host, known)
        return may

    def give_back(
        self,
        host: str,
        sign: Sign,
        *,
        size: int = 0,
        suspect: bool = False,
        lingers: bool = False,
    ) -> None:
        """End an attempt, and learn from it.  `lingers` is what `linger` said of it."""
        known = self._hosts[host]
        known.in_flight -= 1
        known.bytes -= size
        self._bytes -= size
        self._node_refused = False
        if lingers:
            known.lingering -= 1
            self._lingering -= 1
        else:
            self._young -= 1
        if not known.proven:
            self._unproven_bytes -= size
            self._bodies_went = True
            if lingers:
                self._unproven_lingering -= 1
            else:
                self._unproven_young -= 1
        if suspect:
            self._suspect_in_flight = False
        if sign is not Sign.NONE:
            if sign is Sign.DOWN:
                known.room = 1
            elif known.room < self._host_count_max:
                known.room += 1
            proven = sign is Sign.WELL
            if known.proven is not proven:
                self._prove(known, proven=proven)
        if known.line is not None:
            self._stand(host, known)
        elif not known.in_flight:
            self._rest(host)

    def wait_for(self, resource: str) -> None:
        """Note that something waits for what `refusal` named."""
        if resource == NODE:
            self._node_refused = True
        elif resource == SUSPECT:
            self._suspect_waits = True
        elif resource == BODIES:
            if not self._bodies_wait:
                self._bodies_went = False
            self._bodies_wait = True
        else:
            host = resource.removeprefix(HOST)
            known = self._hosts.get(host)
            if known is None:
                known = self._hosts[host] = _Host(self._host_count_max)
            self._idle.pop(host, None)
            self._stand(host, known)

    @property
    def anyone_waits(self) -> bool:
        """Whether something waits for a host."""
        return self._standing > 0

    @property
    def any_open(self) -> bool:
        """Whether `openings` has something to name."""
        if not (self._standing or self._suspect_waits or self._bodies_wait) or self.free <= 0:
            return False
        lines = self._lines
        return (
            (self._suspect_waits and not self._suspect_in_flight)
            or (self._bodies_wait and (self._bodies_went or not self._unproven_bytes))
            or bool(lines[_Line.PROVEN])
            or (bool(lines[_Line.FIRST]) and self._room_in(_Line.FIRST) > 0)
            or (bool(lines[_Line.FURTHER]) and self._room_in(_Line.FURTHER) > 0)
        )

    def openings(self) -> list[tuple[str, int]]:
        """The resources that have room and somebody waits for, and how many may look again.

        They are forgotten here: `wait_for` those for which somebody goes on waiting.
        """
        self._node_refused = False
        found: list[tuple[str, int]] = []
        if not self.any_open:
            return found
        if self._suspect_waits and not self._suspect_in_flight:
            self._suspect_waits = False
            found.append((SUSPECT, 1))
        if self._bodies_wait and (self._bodies_went or not self._unproven_bytes):
            self._bodies_wait = False
            found.append((BODIES, BODIES_OPENED))
        unproven = 0
        for line in (_Line.PROVEN, _Line.FIRST, _Line.FURTHER):
            hosts, left = self._lines[line], self._room_in(line)
            if line is _Line.FURTHER:
                left -= unproven  # they share the places with those who come before them
            while hosts and left > 0:
                host, _ = hosts.popitem(last=False)
                room = self.room(host)
                left -= room
                if line is _Line.FIRST:
                    unproven += room
                found.append((f"{HOST}{host}", room))
                known = self._hosts[host]
                known.line = None
                self._standing -= 1
                if not known.in_flight:
                    self._rest(host)
        return found

    def _line_of(self, known: _Host) -> _Line:
        if known.in_flight >= known.room:
            return _Line.FULL
        if known.proven:
            return _Line.PROVEN
        return _Line.FURTHER if known.in_flight else _Line.FIRST

    def _room_in(self, line: _Line) -> int:
        """How many attempts may begin of those who stand in a line."""
        if line is _Line.FULL:
            return 0
        if line is _Line.PROVEN:
            return self.free
        many = self._lingering_max if line is _Line.FIRST else self._lingering_max // 2
        return min(
            self.free,
            self._unproven_young_max - self._unproven_young,
            many - self._unproven_young - self._unproven_lingering,
        )

    def _stand(self, host: str, known: _Host) -> None:
        """Let a host that something waits for stand in the line that is right for it now."""
        line = self._line_of(known)
        if known.line is not line:
            if known.line is None:
                self._standing += 1
            else:
                del self._lines[known.line][host]
            self._lines[line][host] = None
            known.line = line

    def _rest(self, host: str) -> None:
        """Remember a host of which nothing is under way, but not for ever."""
        self._idle[host] = None
        if len(self._hosts) > self._hosts_known_max:
            oldest, _ = self._idle.popitem(last=False)
            del self._hosts[oldest]

    def _prove(self, known: _Host, *, proven: bool) -> None:
        """Count all that a host has under way with the others of its kind from now on."""
        known.proven = proven
        by = -1 if proven else 1
        self._unproven_young += by * (known.in_flight - known.lingering)
        self._unproven_lingering += by * known.lingering
        self._unproven_bytes += by * known.bytes
        self._bodies_went = self._bodies_went or proven
