"""What holds for every run: `--results FILE` writes how each test went, and PostgreSQL servers
are started once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
from hypothesis import settings

from tests.support.databases import Databases
from tests.support.lacking import LACKING
from tests.support.postgres import binaries, running

pytest_plugins = ("tests.support.results", "tests.support.saying")


# How long an example takes is no claim, and machines are busy.
settings.register_profile("claims", deadline=None)
settings.load_profile("claims")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-server",
        action="store_true",
        help="all of tests/store on the PostgreSQL of this machine too, as a proof",
    )


@pytest.fixture(scope="session")
def databases() -> Iterator[Callable[[str], Databases]]:
    """Empty databases on a PostgreSQL, by its name, whose server runs from then on."""
    with ExitStack() as servers:

        @cache
        def on(which: str) -> Databases:
            if binaries(which) is None:
                pytest.skip(f"{LACKING}a PostgreSQL of its own")
            return Databases(servers.enter_context(running(which)))

        yield on
