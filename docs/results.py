"""The home of how the tests on a page went: as a run told, or as the page says already.

| a test                                           | is                     |
| ------------------------------------------------ | ---------------------- |
| passed                                           | works                  |
| failed, though it may have been expected to      | red                    |
| was skipped, or left out of the run              | not run                |
| was skipped for what the machine lacks           | what the page says     |
| was not there in that run                        | what the page says     |
| and the page does not name it                    | not run                |

What several tests show is as the worst of them, and not done where there is none.
"""

import json
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from tests.support.lacking import LACKING


class Result(StrEnum):
    """From best to worst."""

    WORKS = "works"
    NOT_RUN = "not run"
    RED = "red"
    NOT_DONE = "not done"


class Outcome(NamedTuple):
    """`why` is the reason of a test that was not run."""

    result: Result
    why: str = ""


UNTOLD = Outcome(Result.NOT_RUN, "no run has told of it yet")

OF_PYTEST = {"passed": Result.WORKS, "skipped": Result.NOT_RUN, "failed": Result.RED}


def of_run(told: str) -> dict[str, Outcome]:
    """What a run has to say, from the file of `--results`, by the names of the tests."""
    return {
        name: Outcome(OF_PYTEST[test["outcome"]], test["why"])
        for name, test in json.loads(told).items()
        if not test["why"].startswith(LACKING)
    }


def of_page(text: str) -> dict[str, Outcome]:
    """What a page says of the tests that it names: `link`, read back."""
    found = re.findall(
        r"\[`([^`]+::[^`]+)`\]\([^)]*\)(?: \*\*([a-z ]+)\*\*(?:: (.*?))?)?(?=<br>| \|)", text
    )
    return {name: Outcome(Result(said or "works"), why) for name, said, why in found}


def link(name: str, outcome: Outcome) -> str:
    """A test as a page names it: a link to its file, and what there is to say if it is not good."""
    said = "" if outcome.result is Result.WORKS else f" **{outcome.result}**"
    why = f": {outcome.why}" if outcome.why else ""
    return f"[`{name}`](../tests/{name.partition('::')[0]}){said}{why}"


def worst(outcomes: Iterable[Outcome]) -> Result:
    order = list(Result)
    return max((each.result for each in outcomes), key=order.index, default=Result.NOT_DONE)
