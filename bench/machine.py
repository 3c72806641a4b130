"""The home of what else the machine was doing: a rate on a busy machine says little."""

import os
import resource
import time
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s_of(pid: int) -> float:
    """User and system time of one process."""
    return sum(_times_s(pid)[:2])


def cpu_s_of_all(pid: int) -> float:
    """The same of one process and all that it has started, and that they have, those that have
    ended included."""
    try:
        return sum(_times_s(pid)) + sum(map(cpu_s_of_all, _children(pid)))
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # it ends just now


def _times_s(pid: int) -> list[float]:
    """User and system time of a process, and those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(ticks) / TICKS_PER_S for ticks in fields[11:15]]


class Others:
    """How many cores were busy with what is not ours, from now until `cores`."""

    def __init__(self) -> None:
        self._began = time.monotonic(), _busy_s(), _our_s()

    def cores(self) -> float:
        began_s, busy_s, our_s = self._began
        others_s = (_busy_s() - busy_s) - (_our_s() - our_s)
        return max(0.0, others_s / (time.monotonic() - began_s))


def _busy_s() -> float:
    """What all cores have worked, stolen time included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def _our_s() -> float:
    """What we and our children have worked, those that have ended included."""
    spent_s = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        spent_s += usage.ru_utime + usage.ru_stime
    return spent_s + sum(map(cpu_s_of_all, _children(os.getpid())))


def _children(pid: int) -> list[int]:
    """Those that its first thread has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
