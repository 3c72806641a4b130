"""The home of how each test went, which docs/compatibility.md is printed from: a plugin of pytest.

    pytest --results FILE

writes as JSON, for each test function by its path below tests/ and its name,
the worst outcome of its parameters, and why it was skipped.  A run that did
not come to its end leaves no file, nor that of an earlier run.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

LEFT_OUT = "left_out"
WORSE = ("passed", "skipped", "failed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="FILE", help="where to write how it went")


def pytest_configure(config: pytest.Config) -> None:
    path: Path | None = config.getoption("--results")
    if path is None:
        return
    if hasattr(config, "workeroutput"):  # of pytest-xdist: another process writes the file
        config.pluginmanager.register(OfWorker(config.workeroutput))
    else:
        path.unlink(missing_ok=True)
        config.pluginmanager.register(Results(path))


class OfWorker:
    """Tells the process that writes the file which tests are not run."""

    def __init__(self, output: dict[str, Any]) -> None:
        self._left_out: list[str] = output.setdefault(LEFT_OUT, [])

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        self._left_out += [item.nodeid for item in items]


class Results:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, tuple[str, str]] = {}
        self._unread = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._unread = self._unread or report.failed

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        for item in items:
            self._leave_out(item.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for left_out in getattr(node, "workeroutput", {}).get(LEFT_OUT, ()):
            self._leave_out(left_out)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and hasattr(report, "wasxfail"):
            self._add(report.nodeid, "failed", "")
        elif report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self._add(report.nodeid, "skipped", " ".join(reason.split()))
        else:
            self._add(report.nodeid, report.outcome, "")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        done = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if done and not self._unread:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            told = {
                name: {"outcome": outcome, "why": why}
                for name, (outcome, why) in sorted(self._found.items())
            }
            self._path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def _leave_out(self, node: str) -> None:
        self._add(node, "skipped", "it was left out of the run")

    def _add(self, node: str, outcome: str, why: str) -> None:
        name = node.removeprefix("tests/").partition("[")[0]
        before, _ = self._found.get(name, ("passed", ""))
        if name not in self._found or WORSE.index(outcome) > WORSE.index(before):
            self._found[name] = outcome, why
