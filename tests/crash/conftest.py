"""What the crash tests have to say is shown at the end of the run, also where they pass."""

from collections.abc import Callable

import pytest

_LINES: list[str] = []


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the summary of the run."""

    def add(line: str) -> None:
        _LINES.append(f"{request.node.name}: {line}")
        print(line)  # noqa: T201 -- shown with a test that fails

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _LINES:
        terminalreporter.section("crash tests")
        for line in _LINES:
            terminalreporter.write_line(line)
