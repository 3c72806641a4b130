"""The home of what Waypost promises to do as QStash does, beside the tests that show it.

    python -m docs.compatibility --results FILE            prints the page by what a run told
    python -m docs.compatibility --results FILE --check    fails where the run told otherwise

| part                  | from                | shown by                               |
| --------------------- | ------------------- | -------------------------------------- |
| the mission documents | mission.toml        | the tests that it names                |
| the SDKs              | sdk_operations.toml | the tests in tests/compat that call it |
| the wire contract     | contract_rows.toml  | the tests that cite the row            |

Why a row is not done stands in `NOT_DONE` of tests/test_rows.py, and nowhere else.
How a test went is told by a run; without one, it stays as the page says.
"""

import argparse
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docs.markdown import code, page, table
from docs.results import UNTOLD, Outcome, Result, link, of_page, of_run, worst
from docs.rows import HERE, TESTS, Test, cited, contract, functions, tests_in
from tests.test_rows import NOT_DONE

PAGE = HERE / "compatibility.md"

REFUSED = frozenset({"attempt.mjs"})
"""What calls an SDK in order to be refused, which is no exercise of what it can do."""


class Line(NamedTuple):
    """What a mission document promises about one of its fields."""

    about: str
    documents: Sequence[str]
    promise: str
    how: str
    tests: Sequence[str]


def mission() -> list[Line]:
    told = tomllib.loads((HERE / "mission.toml").read_text(encoding="utf-8"))
    return [
        Line(
            about=line["about"],
            documents=line["in"],
            promise=line["promise"],
            how=line.get("how", ""),
            tests=line["tests"],
        )
        for line in told["line"]
    ]


@cache
def operations() -> dict[str, dict[str, list[str]]]:
    """The tests that exercise each operation of each SDK, by the name of its package."""
    told = tomllib.loads((HERE / "sdk_operations.toml").read_text(encoding="utf-8"))
    texts = list(_python()), list(_javascript())
    return {
        sdk["package"]: {
            operation: [test.id for test, text in by_test if _calls(text, operation)]
            for operation in sdk["operations"]
        }
        for sdk, by_test in zip((told["python"], told["javascript"]), texts, strict=True)
    }


def _python() -> Iterator[tuple[Test, str]]:
    """Each test of the SDKs, and its source with that of its fixtures."""
    fixtures = {each.name: each.source for each in functions("compat")}
    for test in tests_in("compat"):
        yield test, "\n".join([test.source, *(fixtures.get(n, "") for n in test.arguments)])


def _javascript() -> Iterator[tuple[Test, str]]:
    """Each test that runs JavaScript, and the programs that it runs."""
    for test, source in _python():
        programs = sorted(set(re.findall(r'"(\w+\.mjs)"', source)) - REFUSED)
        texts = [(TESTS / "compat" / "js" / each).read_text(encoding="utf-8") for each in programs]
        if texts:
            yield test, "\n".join(texts)


def _calls(text: str, operation: str) -> bool:
    """Whether an operation is called: on a client, or on what a variable was set to."""
    owner, _, method = operation.rpartition(".")
    if not owner:
        return re.search(rf"[\w)]\.{method}\(", text) is not None
    variables = re.findall(rf"\b(\w+) = \w+\.{owner}\b", text)
    owners = [rf"\.{owner}", *(rf"\b{each}" for each in variables)]
    return any(re.search(rf"{each}(\([^()]*\))?\s*\.{method}\(", text) for each in owners)


def entries() -> Iterator[tuple[str, list[str]]]:
    """Everything that is promised, each with the tests that show it."""
    for line in mission():
        yield line.about, list(line.tests)
    for by_operation in operations().values():
        for operation, tests in by_operation.items():
            yield code(operation), tests
    for number, tests in by_row().items():
        yield f"W{number}", tests


@cache
def by_row() -> dict[int, list[str]]:
    """The tests that cite each row which any does."""
    return {number: [test.id for test in tests] for number, tests in sorted(cited().items())}


def as_it_is() -> str:
    return PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""


def compatibility_page(run: Mapping[str, Outcome] | None = None) -> str:
    """`run`: what one told of tests; of others the page is believed that is there."""
    outcomes = of_page(as_it_is()) | dict(run or {})

    def result(tests: Iterable[str]) -> Result:
        return worst(outcomes.get(each, UNTOLD) for each in tests)

    def shown(tests: Sequence[str]) -> tuple[str, str]:
        good = result(tests) in (Result.WORKS, Result.NOT_DONE)
        links = "<br>".join(link(each, outcomes.get(each, UNTOLD)) for each in tests)
        return result(tests) if good else f"**{result(tests)}**", links or "no test yet"

    def tally(all_tests: Iterable[Sequence[str]]) -> str:
        counts = Counter(map(result, all_tests))
        return ", ".join(f"{each}: {counts[each]}" for each in Result if counts[each])

    rows, found = contract(), by_row()
    not_done = {number: NOT_DONE[number] for number in rows if number not in found}
    lines, sdks = mission(), operations()
    methods = "; ".join(
        f"{len(by_operation)} methods of `{package}` ({tally(by_operation.values())})"
        for package, by_operation in sdks.items()
    )
    return page(
        "Compatibility",
        f"""What Waypost does as QStash does, in our own words, each with the tests that show it.
Paths are below `tests/`; all of them run with `make test`, against an assembled server, and it
fails where a result on this page is not that of the run.

| result | of the tests that show it |
| --- | --- |
| works | all passed |
| **not run** | one was skipped, or no run has told of it; the reason stands beside it |
| **red** | one fails |
| not done | there is none |

- [The two documents](#the-two-documents) that Waypost was built from: {len(lines)} promises
  ({tally(each.tests for each in lines)}).
- [The official SDKs](#the-official-sdks), unmodified: {methods}.
- [The wire contract](#the-wire-contract), gathered from everything public: {len(rows)} rows
  ({tally(found.get(number, []) for number in rows)}).""",
        """## The two documents

*Publish a message* and *enqueue a message*, line by line. Whatever is promised to publishers is
tried through both doors.""",
        table(
            ("about", "in", "what is promised", "how", "result", "shown by"),
            (
                (each.about, ", ".join(each.documents), each.promise, each.how,
                 *shown(each.tests))
                for each in lines
            ),
        ),
        """## The official SDKs

Each method that makes a request, and the tests that call it and look at what came of it.

The Go SDK, `qstash-go`, is **not run**: the Go module proxy refuses to say which versions of it
there are. The rows of the contract that come from its own tests are tried over HTTP.""",
        *(
            f"### `{package}`\n\n" + table(
                ("method", "result", "shown by"),
                ((code(name), *shown(tests)) for name, tests in by_operation.items()),
            )
            for package, by_operation in sdks.items()
        ),
        """## The wire contract

Priority 1: an official SDK breaks without it; 2: it is documented; 3: it is good to have.""",
        f"### Not done: {len(not_done)}",
        table(
            ("row", "priority", "asserts", "why"),
            (
                (f"W{number}", str(rows[number].priority), rows[number].asserts, why)
                for number, why in not_done.items()
            ),
        ),
        f"### With tests: {len(found)}",
        table(
            ("row", "priority", "asserts", "result", "shown by"),
            (
                (f"W{number}", str(row.priority), row.asserts, *shown(found[number]))
                for number, row in rows.items()
                if number in found
            ),
        ),
    )  # fmt: skip


def differences(told: Mapping[str, Outcome], run: Mapping[str, Outcome]) -> list[str]:
    """The tests of which a page told otherwise than a run, and what they were to show."""
    by_name = list(entries())
    return [
        f"tests/{test} is {run[test].result}, and the page says {said.result}; it shows "
        + ", ".join(dict.fromkeys(name for name, tests in by_name if test in tests))
        for test, said in told.items()
        if test in run and run[test].result is not said.result
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.compatibility")
    parser.add_argument("--results", type=Path, required=True, help="the file of a run")
    parser.add_argument("--check", action="store_true", help="compare, and print nothing")
    asked = parser.parse_args()
    if not asked.results.exists():
        sys.stderr.write(
            f"compatibility.md keeps its results: no run has left any at {asked.results};"
            " `make test` does\n"
        )
        return 1 if asked.check else 0
    run = of_run(asked.results.read_text(encoding="utf-8"))
    if not asked.check:
        PAGE.write_text(compatibility_page(run), encoding="utf-8")
        return 0
    differ = differences(of_page(as_it_is()), run)
    if differ:
        sys.stderr.write("compatibility.md is not what this run showed; `make docs` corrects it\n")
    sys.stderr.writelines(f"  {each}\n" for each in differ)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
