"""What tests have to say is shown at the end of the run, also where they pass, and whichever
worker ran them."""

from collections.abc import Callable

import pytest

SAID = "said"


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the summary of the run."""

    def add(line: str) -> None:
        request.node.user_properties.append((SAID, f"{request.node.name}: {line}"))
        print(line)  # noqa: T201 -- shown with a test that fails

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(line)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "teardown" or getattr(report, "failed", False)
        for name, line in getattr(report, "user_properties", ())
        if name == SAID
    ]
    if lines:
        terminalreporter.section("what was seen")
        for line in lines:
            terminalreporter.write_line(line)
