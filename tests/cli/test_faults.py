"""Which faults of a command may mend themselves, so that a supervisor tries again."""

import errno
import os

import pytest

from waypost.cli.faults import TRY_AGAIN, WRONG, line_of, status_of
from waypost.domain.errors import Invalid, NotFound, StoreFull, StoreUnavailable
from waypost.settings import SettingsError
from waypost.store.copying import Differs
from waypost.store.migrations import SchemaTooNew
from waypost.store.sqlite.database import Locked, Unusable


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "fault",
    [
        SettingsError("retries_max = -1 is under 0"),
        Invalid("there is a tenant acme already"),
        NotFound("there is no tenant acme"),
        SchemaTooNew(5, 4),
        Unusable("waypost.db is another program's database"),
        Differs("what was written is not what was read"),
        system(errno.ENOENT),
        system(errno.EACCES),
        system(errno.EROFS),
    ],
    ids=repr,
)
def test_what_somebody_has_to_mend_ends_with_2(fault: Exception):
    assert status_of(fault) == WRONG == 2


@pytest.mark.parametrize(
    "fault",
    [
        StoreUnavailable("cannot reach the database"),
        StoreFull("the disk is full"),
        Locked("another server has waypost.db open"),
        system(errno.EADDRINUSE),
        system(errno.EADDRNOTAVAIL),
        system(errno.ENOSPC),
        system(errno.EDQUOT),
        system(errno.EIO),
    ],
    ids=repr,
)
def test_what_may_mend_itself_ends_with_75(fault: Exception):
    assert status_of(fault) == TRY_AGAIN == 75


def test_a_fault_is_told_in_one_line_whatever_it_says():
    assert line_of(Invalid("one\n  and\tthe other")) == "waypost: one and the other\n"
