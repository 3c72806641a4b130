"""What the crash tests have to say is shown at the end of the run, also where they pass."""

from collections.abc import Callable, Iterator

import pytest

from tests.crash.cluster import DURABLE
from tests.support.postgres import SHIPPED, Server, running

_SAID = "said"


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the summary of the run."""

    def add(line: str) -> None:
        request.node.user_properties.append((_SAID, f"{request.node.name}: {line}"))
        print(line)  # noqa: T201 -- shown with a test that fails

    return add


@pytest.fixture
def postgres() -> Iterator[Server]:
    """One that nobody else misses."""
    with running(SHIPPED, DURABLE) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(line)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown" or getattr(report, "failed", False)
        for name, line in getattr(report, "user_properties", ())
        if name == _SAID
    ]
    if lines:
        terminalreporter.section("crash tests")
        for line in lines:
            terminalreporter.write_line(line)
