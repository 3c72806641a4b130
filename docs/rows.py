"""The home of the contract's rows: what each asserts, and which tests cite it.

A row is an assertion of contract_rows.toml.  A test cites it by its number in
the docstring: W14, or W14-W16.  Counted are the tests that talk to an
assembled server: those of the API, of the SDKs and of the command line.
"""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"


class Row(NamedTuple):
    """`priority`: 1, an SDK breaks without it; 2, it is documented; 3, it is good to have."""

    priority: int
    asserts: str


class Test(NamedTuple):
    """A test function.  `path` is below tests/, and `source` has its decorators."""

    path: str
    name: str
    doc: str
    arguments: tuple[str, ...]
    source: str

    @property
    def id(self) -> str:
        return f"{self.path}::{self.name}"


def contract() -> dict[int, Row]:
    """Every row by its number."""
    told = tomllib.loads((HERE / "contract_rows.toml").read_text(encoding="utf-8"))
    return {int(number): Row(**row) for number, row in told["rows"].items()}


def functions(*folders: str) -> Iterator[Test]:
    """The functions of all modules in these folders of tests/, by path and place."""
    for path in sorted(path for folder in folders for path in (TESTS / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min(each.lineno for each in (node, *node.decorator_list))
                yield Test(
                    path=path.relative_to(TESTS).as_posix(),
                    name=node.name,
                    doc=ast.get_docstring(node) or "",
                    arguments=tuple(each.arg for each in node.args.args),
                    source="\n".join(lines[first - 1 : node.end_lineno]),
                )


def tests_in(*folders: str) -> list[Test]:
    """The tests among them."""
    return [each for each in functions(*folders) if each.name.startswith("test_")]


def numbers(text: str) -> Iterator[int]:
    """The rows that a text names."""
    for first, last in re.findall(r"\bW(\d+)(?:-W?(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)


def cited() -> dict[int, Sequence[Test]]:
    """The tests that cite each row which any does."""
    found: dict[int, list[Test]] = {}
    for test in tests_in("api", "cli", "compat"):
        for number in dict.fromkeys(numbers(test.doc)):
            found.setdefault(number, []).append(test)
    return dict(found)
