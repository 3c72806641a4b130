"""The home of what Waypost promises to do as QStash does, beside the tests that show it.

| part                  | from                | shown by                               |
| --------------------- | ------------------- | -------------------------------------- |
| the mission documents | mission.toml        | the tests that it names                |
| the SDKs              | sdk_operations.toml | the tests in tests/compat that call it |
| the wire contract     | contract_rows.toml  | the tests that cite the row            |

Why a row is not done stands in `LATER` of tests/test_rows.py, and nowhere else.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from docs.markdown import code, page, table
from docs.rows import HERE, TESTS, Test, cited, contract, functions, tests_in
from tests.test_rows import LATER

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


def operations() -> dict[str, dict[str, list[Test]]]:
    """The tests that exercise each operation of each SDK, by the name of its package."""
    told = tomllib.loads((HERE / "sdk_operations.toml").read_text(encoding="utf-8"))
    texts = list(_python()), list(_javascript())
    return {
        sdk["package"]: {
            operation: [test for test, text in by_test if _calls(text, operation)]
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


def compatibility_page() -> str:
    rows, found = contract(), cited()
    not_done = {
        number: LATER.get(number, "no test cites it yet") for number in rows if number not in found
    }
    lines, sdks = mission(), operations()
    return page(
        "Compatibility",
        f"""What Waypost does as QStash does, in our own words, each with the tests that show it.
Paths are below `tests/`; all of them run with `make test`, against an assembled server.

- [The two documents](#the-two-documents) that Waypost was built from: {len(lines)} promises.
- [The official SDKs](#the-official-sdks), unmodified: {_counts(sdks)}.
- [The wire contract](#the-wire-contract), gathered from everything public: {len(found)} of
  {len(rows)} rows are shown, {len(not_done)} are not.""",
        """## The two documents

*Publish a message* and *enqueue a message*, line by line. Whatever is promised to publishers is
tried through both doors.""",
        table(
            ("about", "in", "what is promised", "how", "shown by"),
            (
                (each.about, ", ".join(each.documents), each.promise, each.how,
                 _links(each.tests))
                for each in lines
            ),
        ),
        """## The official SDKs

Each method that makes a request, and the tests that call it and look at what came of it.""",
        *(_sdk(package, by_operation) for package, by_operation in sdks.items()),
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
        f"### Shown: {len(found)}",
        table(
            ("row", "priority", "asserts", "shown by"),
            (
                (f"W{number}", str(row.priority), row.asserts,
                 _links(test.id for test in found[number]))
                for number, row in rows.items()
                if number in found
            ),
        ),
    )  # fmt: skip


def _counts(sdks: Mapping[str, Mapping[str, Sequence[Test]]]) -> str:
    return ", ".join(
        f"{sum(map(bool, by_operation.values()))} of {len(by_operation)} methods of `{package}`"
        for package, by_operation in sdks.items()
    )


def _sdk(package: str, by_operation: Mapping[str, Sequence[Test]]) -> str:
    rows = (
        (code(operation), _links(test.id for test in found) or "no test yet")
        for operation, found in by_operation.items()
    )
    return f"### `{package}`\n\n{table(('method', 'shown by'), rows)}"


def _links(ids: Iterable[str]) -> str:
    """The tests, each as a link to its file."""
    return "<br>".join(f"[`{each}`](../tests/{each.partition('::')[0]})" for each in ids)
