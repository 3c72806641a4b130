"""What is true of the repository as a whole: what is promised is written down, and kept."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate
from waypost.api.app import ROUTES
from waypost.settings import SETTINGS
from waypost.telemetry import EVENTS, metrics

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "waypost"
TESTS = ROOT / "tests"


def modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def called(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module, by the name it is called by: `time.sleep`, `now`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_every_generated_page_is_what_the_code_says():
    assert generate.stale() == []


def test_every_setting_metric_log_event_and_route_is_documented():
    pages = {name: (ROOT / "docs" / name).read_text() for name in generate.PAGES}

    for setting in SETTINGS:
        assert f"`{setting.name}`" in pages["settings.md"]
    for metric in metrics():
        assert f"`{metric.name}`" in pages["metrics.md"]
    for event in EVENTS:
        assert f"`{event}`" in pages["metrics.md"]
    for route in ROUTES:
        assert f"| {route.method} | `{route.pattern}` |" in pages["routes.md"]


def test_every_log_event_is_in_the_table_and_the_table_has_no_other():
    logged = set()
    for path, tree in modules(SOURCE):
        for name, call in called(tree):
            if re.fullmatch(r"log\.(debug|info|warning|error|exception|critical)", name):
                event = call.args[0]
                assert isinstance(event, ast.Constant), f"{path}:{call.lineno}"
                logged.add(event.value)

    assert logged == set(EVENTS)


@pytest.mark.parametrize("floor", ["domain", "store"])
def test_no_clock_is_read_below_the_loops(floor: str):
    """But for the event loop's, which is a stopwatch: it cannot say what moment it is."""
    sql = [(str(path), path.read_text()) for path in (SOURCE / floor).rglob("*.sql")]
    for path, tree in modules(SOURCE / floor):
        for name, call in called(tree):
            clock = re.search(r"(^|(?<!loop)\.)(time|time_ns|now|utcnow|today)$", name)
            assert clock is None, f"{path}:{call.lineno} calls {name}"
        sql += [
            (path, node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    for path, text in sql:
        clock = re.search(
            r"CURRENT_(TIMESTAMP|TIME|DATE)|'now'|\b(julianday|unixepoch|strftime)\(", text
        )
        assert clock is None, f"{path}: {clock}"


def test_no_test_sleeps():
    for path, tree in modules(TESTS):
        for name, call in called(tree):
            slept = name in ("time.sleep", "sleep") or (
                name == "asyncio.sleep" and ast.unparse(call.args[0]) != "0"
            )
            assert not (slept and "/test_" in path), f"{path}:{call.lineno}"


def test_links_between_pages_lead_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_changelog_speaks_of_what_comes_next():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_commands_for_people_are_those_of_ci():
    makefile = (ROOT / "Makefile").read_text()
    ci = (ROOT / ".ci" / "run").read_text()

    for command in ("setup", "dev", "test", "prove", "check", "bench", "docs"):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command
    assert re.findall(r"^make (\w+)$", ci, re.MULTILINE) == ["check", "test", "prove"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_wheel_holds_the_package_and_its_migrations(tmp_path: Path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel",
         "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip(f"cannot fetch {project['build-system']['requires']} here")
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("waypost-*.whl")

    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip

    for path in SOURCE.rglob("*"):
        if path.suffix in (".py", ".sql", ".typed"):
            assert str(path.relative_to(SOURCE.parent)) in listed
