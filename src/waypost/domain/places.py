"""The home of how many attempts may be under way at once, in all and at each host.

Places belong to this process and live in memory: a message without a queue
costs no row for them.  Four bounds hold together:

- `count_max` attempts in all;
- `host_count_max` to one host, and less while it comes back from failures: one
  after a fault of the host, one more for each answer that follows (D21);
- half of `count_max` to hosts that are *unproven*: those that have not lately
  answered within `SLOW_MS`.  A thousand hanging hosts can hold half of the
  places and no more;
- `bytes_max` of bodies in memory, of which one message may be more than all.

A suspect, a message whose attempts a crash cut short several times, is sent
while no other suspect is, so that only the guilty one goes on counting (D18).

What is refused a place waits for a *resource*; `freed` names those that have
room again.
"""

from enum import Enum, auto

SUSPECT_AFTER = 3
"""Interrupted attempts that make a message a suspect (D18)."""

INTERRUPTED_MAX = 20
"""A message interrupted so often goes to the dead letter queue (D18)."""

SLOW_MS = 5_000
"""An attempt that runs longer than this speaks against its host."""

SUSPECT = "suspect"
"""The resource of which there is one: being the suspect that is sent."""


class Sign(Enum):
    """What an attempt that ended says about its host."""

    WELL = auto()  # an answer came in good time, whatever its status
    SLOW = auto()  # an answer came late
    DOWN = auto()  # no answer: refused, reset, timed out, not found
    NONE = auto()  # the attempt was given back unsent


class _Host:
    """What is known of one host."""

    __slots__ = ("in_flight", "proven", "room")

    def __init__(self, room: int) -> None:
        self.in_flight = 0
        self.proven = False
        self.room = room


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
        self._host_count_max = host_count_max
        self._bytes_max = bytes_max
        self._hosts_known_max = hosts_known_max
        self._hosts: dict[str, _Host] = {}
        self._in_flight = 0
        self._bytes = 0
        self._closed = False
        self._unproven_in_flight = 0
        self._suspect_in_flight = False
        self._refused: dict[str, None] = {}
        self._freed: dict[str, None] = {}

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def free(self) -> int:
        """Places that may be taken; none once `close` was called."""
        return 0 if self._closed else self._count_max - self._in_flight

    def close(self) -> None:
        """Let nothing more begin."""
        self._closed = True

    def room_for_body(self, size: int) -> bool:
        """Whether a body of that size may come into memory."""
        return not self._bytes or self._bytes + size <= self._bytes_max

    def room(self, host: str) -> int:
        """How many more attempts `host` may have now."""
        known = self._hosts.get(host)
        room = self._count_max - self._in_flight
        if known is None or not known.proven:
            room = min(room, self._count_max // 2 - self._unproven_in_flight)
        mine = self._host_count_max if known is None else known.room - known.in_flight
        return max(0, min(room, mine))

    def suspect_may_go(self) -> bool:
        return not self._suspect_in_flight

    def take(self, host: str, *, size: int = 0, suspect: bool = False) -> None:
        """Begin an attempt with a body of `size` bytes."""
        known = self._hosts.get(host)
        if known is None:
            known = self._hosts[host] = _Host(self._host_count_max)
        known.in_flight += 1
        self._in_flight += 1
        self._bytes += size
        if not known.proven:
            self._unproven_in_flight += 1
        if suspect:
            self._suspect_in_flight = True

    def give_back(self, host: str, sign: Sign, *, size: int = 0, suspect: bool = False) -> None:
        """End an attempt, and learn from it."""
        known = self._hosts[host]
        known.in_flight -= 1
        self._in_flight -= 1
        self._bytes -= size
        if not known.proven:
            self._unproven_in_flight -= 1
        if suspect:
            self._suspect_in_flight = False
            self._freed[SUSPECT] = None
        if sign is Sign.DOWN:
            known.room = 1
        elif sign is not Sign.NONE and known.room < self._host_count_max:
            known.room += 1
        if sign is not Sign.NONE:
            self._prove(known, proven=sign is Sign.WELL)
        if self._refused:
            self._free(host)
        if not known.in_flight and len(self._hosts) > self._hosts_known_max:
            del self._hosts[host]

    def doubt(self, host: str) -> None:
        """Note that an attempt at `host` has been running for longer than `SLOW_MS`."""
        known = self._hosts.get(host)
        if known is not None:
            self._prove(known, proven=False)

    def refuse(self, host: str) -> str:
        """Note that something waits for a place at `host`; the name of that resource."""
        self._refused[host] = None
        return f"host:{host}"

    @property
    def any_freed(self) -> bool:
        """Whether `freed` has something to say."""
        return bool(self._freed)

    def freed(self) -> list[str]:
        """The resources that have room again since this was last asked."""
        freed = list(self._freed)
        self._freed.clear()
        return freed

    def _free(self, host: str) -> None:
        if host in self._refused and self.room(host):
            del self._refused[host]
            self._freed[f"host:{host}"] = None
        # Whoever has waited longest among the unproven goes first; those whose own
        # host is full are passed over, a few at a time so that this stays short.
        if self._unproven_in_flight < self._count_max // 2:
            for waiting in list(self._refused)[:4]:
                del self._refused[waiting]
                if self.room(waiting):
                    self._freed[f"host:{waiting}"] = None
                else:
                    self._refused[waiting] = None

    def _prove(self, known: _Host, *, proven: bool) -> None:
        if known.proven != proven:
            self._unproven_in_flight += -known.in_flight if proven else known.in_flight
            known.proven = proven
