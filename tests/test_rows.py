"""Every row of the contract that our features touch is cited by a test that talks HTTP.

A test cites a row by its number in the docstring: W14, or W14-W16.  Counted are
the tests that talk to an assembled server: those of the API, of the SDKs and of
the command line.
"""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

TESTS = Path(__file__).parent

ROWS = {*range(1, 63), *range(75, 81), *range(137, 145), *range(177, 203)}
"""What publishing, enqueueing and delivering have to do with, and URL groups; of 236 rows."""

LATER = {
    7: "rotating keys, and its alias, come with the keys",
}
"""Rows that are left to a later issue, and why.  Whoever cites one takes it out of here."""


def cited() -> Iterator[int]:
    """The rows that the docstrings of tests name."""
    folders = (TESTS / "api", TESTS / "compat", TESTS / "cli")
    for path in chain.from_iterable(folder.rglob("test_*.py") for folder in folders):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                for first, last in re.findall(r"\bW(\d+)(?:-W?(\d+))?", text):
                    yield from range(int(first), int(last or first) + 1)


def test_every_row_is_cited_by_a_test_or_left_to_a_later_issue() -> None:
    found = set(cited())

    assert sorted(ROWS - found - set(LATER)) == []
    assert sorted(found & set(LATER)) == []
    assert max(found) <= 236
