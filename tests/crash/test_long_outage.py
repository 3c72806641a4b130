"""PostgreSQL is away for ten minutes, which are some three hundred leases.

In a file of its own: other tests run beside it, for it waits most of the time.
"""

from pathlib import Path

import pytest

from tests.crash.test_database import Say, held, outages
from tests.support.postgres import Server

AWAY_S = 600.0


@pytest.mark.prove
async def test_ten_minutes_without_a_database_lose_nothing_and_bring_no_mass_resend(
    postgres: Server, tmp_path: Path, say: Say
):
    held(*await outages(postgres, tmp_path, (AWAY_S,), say=say))
