"""The home of how a command ends where something is wrong: one line, and an exit status.

| exit status | what is wrong                                                      | systemd       |
| ----------- | ------------------------------------------------------------------ | ------------- |
| 2           | what was said, or what is there: usage, a setting, a name, a file  | lets it be    |
|             | or a schema that is not for this program, a right that is missing  |               |
| 75          | what may mend itself: an address that is taken or not there yet, a | tries again   |
|             | database that is away, locked or open in another server, a full    |               |
|             | disk, an I/O error                                                 |               |

75 is EX_TEMPFAIL.  A traceback means a bug of ours, and so does the 1 that comes with it.
"""

import errno
import os

from cyclopts import CycloptsError

from waypost.domain.errors import Problem, StoreFull, StoreUnavailable
from waypost.engines import LASTING
from waypost.settings import SettingsError
from waypost.store.copying import Differs

FAULTS = (CycloptsError, SettingsError, Problem, OSError)
"""All that is told in one line."""

WRONG = 2
TRY_AGAIN = os.EX_TEMPFAIL

PASSING = frozenset((errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ENOSPC, errno.EDQUOT, errno.EIO))
"""What the system says of things that may be otherwise soon."""


def line_of(fault: Exception) -> str:
    return f"waypost: {' '.join(str(fault).split())}\n"


def status_of(fault: Exception) -> int:
    """The exit status for one of `FAULTS`."""
    if isinstance(fault, (*LASTING, Differs)):
        return WRONG
    if isinstance(fault, StoreFull | StoreUnavailable):
        return TRY_AGAIN
    return TRY_AGAIN if isinstance(fault, OSError) and fault.errno in PASSING else WRONG
