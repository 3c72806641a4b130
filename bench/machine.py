"""The home of what else the machine was doing: a rate on a busy machine says little."""

import os
import resource
import time
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s_of(pid: int) -> float:
    """User and system time of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


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
    return spent_s + sum(map(cpu_s_of, _children()))


def _children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]
