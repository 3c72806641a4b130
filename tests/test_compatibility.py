"""docs/compatibility.md leaves nothing out, and names no test that is not there."""

import pytest
from qstash import AsyncQStash, QStash

from docs import compatibility, rows

IN_BOTH = {
    "Path", "`destination`", "`body`", "`Content-Type`", "`Upstash-Method`", "`Upstash-Timeout`",
    "`Upstash-Retries`", "`Upstash-Forward-*`", "`Upstash-Callback`", "`Upstash-Callback-*`",
    "`Upstash-Callback-Forward-*`", "`Upstash-Failure-Callback`", "`Upstash-Failure-Callback-*`",
    "`Upstash-Failure-Callback-Forward-*`", "`Upstash-Deduplication-Id`",
    "`Upstash-Content-Based-Deduplication`", "Response", "Response: `messageId`",
    "Response: `url`", "Response: `deduplicated`",
}  # fmt: skip

SECTIONS = {
    "publish": IN_BOTH | {"`Upstash-Delay`", "`Upstash-Not-Before`"},
    "enqueue": IN_BOTH | {"`queueName`"},
}
"""What each of the two mission documents speaks of."""


@pytest.mark.parametrize("document", SECTIONS)
def test_every_section_of_the_mission_documents_is_there(document: str) -> None:
    told = {line.about for line in compatibility.mission() if document in line.documents}

    assert told == SECTIONS[document]


def test_every_promise_names_tests_and_each_of_them_exists() -> None:
    there = {test.id for test in rows.tests_in("api", "cli", "compat")}

    for line in compatibility.mission():
        assert line.tests, line.promise
        assert set(line.tests) <= there, line.promise
        assert set(line.documents) <= set(SECTIONS), line.promise


def test_what_was_written_to_show_the_documents_is_on_the_page() -> None:
    named = {name for line in compatibility.mission() for name in line.tests}

    assert {test.id for test in rows.tests_in("api") if test.path == "api/test_mission.py"} <= named


def test_the_contract_is_whole() -> None:
    assert list(rows.contract()) == list(range(1, 237))
    assert {row.priority for row in rows.contract().values()} == {1, 2, 3}


@pytest.mark.parametrize("kind", [QStash, AsyncQStash])
def test_every_method_of_the_python_sdk_is_listed(kind: type) -> None:
    methods = {
        f"{name}.{method}"
        for name, part in vars(kind("token")).items()
        if name != "http"
        for method in dir(part)
        if not method.startswith("_") and type(part).__module__.startswith("qstash.")
    }

    assert set(compatibility.operations()["qstash"]) == methods
