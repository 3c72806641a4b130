"""Whatever was acknowledged survives `kill -9`, in order, once a dedup id (P1-P5), and of
each outcome its callback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.harness import run_kills

PLANTED = str(Path(__file__).with_name("planted.py"))
SEED = int(os.environ.get("CRASH_SEED", "2"))

Say = Callable[[str], None]


async def survives(place: Path, *, seed: int, kills: int, say: Say) -> None:
    run = await run_kills(place, seed=seed, kills=kills)

    say(f"seed {seed}: {run}")
    assert run.verdict.findings == {}
    assert run.unsound == []
    assert run.left == []
    assert run.refused == []
    assert run.verdict.kills == kills
    assert run.verdict.duplicates <= run.verdict.claimed_at_kills
    assert run.verdict.fan_outs > kills
    assert run.verdict.callbacks > 10 * kills


async def test_ten_kills_lose_nothing_and_keep_the_order(tmp_path: Path, say: Say):
    await survives(tmp_path, seed=SEED, kills=10, say=say)


@pytest.mark.prove
@pytest.mark.parametrize("seed", [SEED + 100, SEED + 101, SEED + 102])
async def test_sixty_kills_lose_nothing_and_keep_the_order(seed: int, tmp_path: Path, say: Say):
    await survives(tmp_path, seed=seed, kills=20, say=say)


@pytest.mark.parametrize(
    ("bug", "aim"), [("ack_first", "ack"), ("settle_first", "attempt")], ids=lambda value: value
)
async def test_the_harness_finds_a_bug_that_loses_messages(
    bug: str, aim: str, tmp_path: Path, say: Say
):
    run = await run_kills(
        tmp_path,
        seed=SEED,
        kills=3,
        program=(sys.executable, PLANTED, bug),
        aims=[aim],
    )

    say(f"seed {SEED}, planted {bug}: {run}")
    assert run.verdict.lost > 0


async def test_the_harness_finds_callbacks_that_are_written_after_their_outcome(
    tmp_path: Path, say: Say
):
    run = await run_kills(
        tmp_path,
        seed=SEED,
        kills=3,
        program=(sys.executable, PLANTED, "callback_later"),
        aims=["outcome"],
    )

    say(f"seed {SEED}, planted callback_later: {run}")
    assert run.verdict.callbacks_missing > 0
    assert any("no callback tells of" in fault for fault in run.unsound)


async def test_the_harness_finds_a_queue_that_does_not_wait_for_callbacks(tmp_path: Path, say: Say):
    run = await run_kills(
        tmp_path,
        seed=SEED,
        kills=2,
        program=(sys.executable, PLANTED, "free_early"),
    )

    say(f"seed {SEED}, planted free_early: {run}")
    assert any("the next one began before" in each for each in run.verdict.findings["I3"])
