"""Each result on docs/compatibility.md is that of a run: what one tells, and what comes of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from docs import compatibility
from docs.results import UNTOLD, Outcome, Result, link, of_page, of_run, worst
from tests.support.lacking import LACKING

ROOT = Path(__file__).parent.parent

WORKS, RED = Outcome(Result.WORKS), Outcome(Result.RED)
SKIPPED = Outcome(Result.NOT_RUN, "needs 3/4 of a disk")

ALONE_OR_TOGETHER = [[], ["-p", "xdist.plugin", "-n", "2"]]

PLANTED = """
import pytest

@pytest.fixture
def broken():
    raise OSError

@pytest.fixture
def breaks_later():
    yield
    raise OSError

def test_good(): pass
def test_bad(): assert False
def test_of_a_broken_fixture(broken): pass
def test_of_a_fixture_that_breaks_later(breaks_later): pass

@pytest.mark.xfail
def test_known_to_be_bad(): assert False

@pytest.mark.parametrize("n", [1, 2, 3])
def test_bad_for_two(n): assert n != 2

@pytest.mark.parametrize("n", [1, 2])
def test_skipped_for_one(n):
    if n == 1: pytest.skip("one is\\ntoo few")

@pytest.mark.skip(reason="not today")
def test_skipped(): pass

def test_left_out(): pass
"""


def run(place: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a text, with results in build/results.json."""
    (place / "test_it.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.support.results",
         "--results", "build/results.json", *words],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", ALONE_OR_TOGETHER)
def test_a_run_tells_the_worst_outcome_of_each_test(tmp_path: Path, how: list[str]) -> None:
    run(tmp_path, PLANTED, "--deselect", "test_it.py::test_left_out", *how)

    told = json.loads((tmp_path / "build" / "results.json").read_text())
    by_name = {name.removeprefix("test_it.py::test_"): one for name, one in told.items()}
    assert {name: (one["outcome"], one["why"]) for name, one in by_name.items()} == {
        "good": ("passed", ""),
        "bad": ("failed", ""),
        "of_a_broken_fixture": ("failed", ""),
        "of_a_fixture_that_breaks_later": ("failed", ""),
        "known_to_be_bad": ("failed", ""),
        "bad_for_two": ("failed", ""),
        "skipped_for_one": ("skipped", "one is too few"),
        "skipped": ("skipped", "not today"),
        "left_out": ("skipped", "it was left out of the run"),
    }  # fmt: skip


@pytest.mark.parametrize("how", ALONE_OR_TOGETHER)
def test_a_run_that_does_not_come_to_its_end_leaves_no_results_not_even_older_ones(
    tmp_path: Path, how: list[str]
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "results.json").write_text("{}")

    assert run(tmp_path, "import nothing_of_that_name", *how).returncode

    assert not (tmp_path / "build" / "results.json").exists()


def test_what_the_machine_lacks_says_nothing_of_a_test() -> None:
    told = {
        "a.py::test_good": {"outcome": "passed", "why": ""},
        "a.py::test_bad": {"outcome": "failed", "why": ""},
        "a.py::test_skipped": {"outcome": "skipped", "why": SKIPPED.why},
        "a.py::test_on_node": {"outcome": "skipped", "why": f"{LACKING}node"},
    }

    assert of_run(json.dumps(told)) == {
        "a.py::test_good": WORKS,
        "a.py::test_bad": RED,
        "a.py::test_skipped": SKIPPED,
    }


def test_what_several_tests_show_is_as_the_worst_of_them() -> None:
    assert worst([WORKS, WORKS]) == "works"
    assert worst([WORKS, SKIPPED]) == "not run"
    assert worst([RED, SKIPPED, WORKS]) == "red"
    assert worst([]) == "not done"


def test_a_page_is_read_back_as_it_was_written() -> None:
    outcomes = {"a.py::test_1": WORKS, "a.py::test_2": RED, "b/c.py::test_3": SKIPPED}
    links = [link(name, outcome) for name, outcome in outcomes.items()]

    assert of_page(f"| W1 | {'<br>'.join(links)} |\n| W2 | {links[2]} |\n") == outcomes


# The page itself.

CITES_W1 = compatibility.by_row()[1][0]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page on which all is well."""
    monkeypatch.setattr(compatibility, "PAGE", tmp_path / "compatibility.md")
    tests = {test for _, tests in compatibility.entries() for test in tests}
    compatibility.PAGE.write_text(compatibility.compatibility_page(dict.fromkeys(tests, WORKS)))
    return compatibility.PAGE


def row_1() -> str:
    [line] = [each for each in compatibility.PAGE.read_text().splitlines() if "| W1 |" in each]
    return line


def asked(
    monkeypatch: pytest.MonkeyPatch, place: Path, told: Mapping[str, str], *words: str
) -> int:
    """The command, asked about a run with these outcomes: its exit status."""
    results = place / "results.json"
    results.write_text(
        json.dumps({name: {"outcome": how, "why": ""} for name, how in told.items()})
    )
    monkeypatch.setattr(sys, "argv", ["compatibility", "--results", str(results), *words])
    return compatibility.main()


@pytest.mark.parametrize(("outcome", "result"), [("failed", "red"), ("skipped", "not run")])
def test_a_page_that_claims_what_did_not_pass_is_refused_until_it_is_printed_anew(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: str,
    result: str,
) -> None:
    told = {CITES_W1: outcome}
    assert "| works |" in row_1()

    assert asked(monkeypatch, tmp_path, told, "--check") == 1
    said = capsys.readouterr().err
    assert f"tests/{CITES_W1} is {result}, and the page says works; it shows " in said
    assert re.search(r"it shows .*\bW1\b", said)

    assert asked(monkeypatch, tmp_path, told) == 0
    assert f"| **{result}** |" in row_1()
    assert asked(monkeypatch, tmp_path, told, "--check") == 0
    assert compatibility.compatibility_page() == page.read_text()

    assert asked(monkeypatch, tmp_path, {CITES_W1: "passed"}, "--check") == 1


def test_a_run_without_some_tests_leaves_what_the_page_says_of_them(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = page.read_text()

    assert asked(monkeypatch, tmp_path, {}, "--check") == 0
    assert asked(monkeypatch, tmp_path, {}) == 0
    assert page.read_text() == before


def test_what_no_run_has_told_of_is_not_said_to_work(page: Path) -> None:
    page.write_text("")

    page.write_text(compatibility.compatibility_page())

    assert f"**not run**: {UNTOLD.why}" in row_1()
    assert "| **not run** |" in row_1()


def test_without_results_the_page_stays_and_a_check_fails(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = page.read_text()
    words = ["compatibility", "--results", str(tmp_path / "none.json")]

    monkeypatch.setattr(sys, "argv", words)
    assert compatibility.main() == 0
    monkeypatch.setattr(sys, "argv", [*words, "--check"])
    assert compatibility.main() == 1

    assert page.read_text() == before
    assert "`make test`" in capsys.readouterr().err
