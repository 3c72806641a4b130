"""What is counted, how it is scraped, and what never reaches a log."""

import json
import logging
import re

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from waypost.domain.attempt import Outcome
from waypost.domain.message import Logged
from waypost.telemetry import (
    RESULTS,
    Readings,
    Telemetry,
    configure_logging,
    metrics,
    result_of,
    scrub,
)

READINGS = Readings(
    messages_waiting=3,
    messages_claimed=2,
    dead_letters=1,
    oldest_due_seconds=0.5,
    store_bytes=4096,
    free_bytes=1 << 30,
    attempts_in_flight=2,
    refusing=0,
)


def scraped(telemetry: Telemetry, readings: Readings | None = READINGS) -> dict[str, float]:
    """Samples by name and labels, as Prometheus reads them."""
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())):
            sample.value
        for family in text_string_to_metric_families(telemetry.render(readings).decode())
        for sample in family.samples
    }  # fmt: skip


def test_what_was_counted_is_scraped():
    telemetry = Telemetry()
    telemetry.messages_accepted += 2
    telemetry.messages_settled[Logged.DELIVERED] += 1
    telemetry.answered("publish", 200)
    telemetry.answered("publish", 200)

    samples = scraped(telemetry)

    assert samples["waypost_messages_accepted_total"] == 2
    assert samples["waypost_messages_settled_total state=delivered"] == 1
    assert samples["waypost_answers_total route=publish status=200"] == 2
    assert samples["waypost_messages_waiting"] == 3
    assert samples["waypost_store_up"] == 1


def test_an_attempt_is_counted_by_its_result_and_its_time():
    telemetry = Telemetry()
    telemetry.attempted(Outcome(status=204), took_ms=30)
    telemetry.attempted(Outcome(status=503, redialled=True), took_ms=3_000)
    telemetry.attempted(Outcome(error="timed out"), took_ms=2_000_000)

    samples = scraped(telemetry)

    assert samples["waypost_attempts_total result=2xx"] == 1
    assert samples["waypost_attempts_total result=5xx"] == 1
    assert samples["waypost_attempts_total result=no_answer"] == 1
    assert samples["waypost_redials_total"] == 1
    assert samples["waypost_attempt_seconds_bucket le=0.025"] == 0
    assert samples["waypost_attempt_seconds_bucket le=0.05"] == 1
    assert samples["waypost_attempt_seconds_bucket le=900.0"] == 2
    assert samples["waypost_attempt_seconds_bucket le=+Inf"] == 3
    assert samples["waypost_attempt_seconds_sum"] == pytest.approx(2003.03)


def test_a_value_on_a_bound_counts_under_it():
    telemetry = Telemetry()
    telemetry.store_batch_calls.observe(4)

    samples = scraped(telemetry)

    assert samples["waypost_store_batch_calls_bucket le=2.0"] == 0
    assert samples["waypost_store_batch_calls_bucket le=4.0"] == 1


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        (Outcome(status=200), "2xx"),
        (Outcome(status=302), "3xx"),
        (Outcome(status=404), "4xx"),
        (Outcome(status=500), "5xx"),
        (Outcome(status=200, error="closed early"), "broken"),
        (Outcome(status=999), "broken"),
        (Outcome(error="refused"), "no_answer"),
        (Outcome(error="forbidden", refused=True), "forbidden"),
    ],
)
def test_every_outcome_has_one_result(outcome: Outcome, result: str):
    assert result_of(outcome) == result
    assert result in RESULTS


def test_while_the_store_is_away_its_gauges_are_missing_and_it_is_down():
    samples = scraped(Telemetry(), None)

    assert samples["waypost_store_up"] == 0
    assert "waypost_messages_waiting" not in samples


def test_every_metric_that_is_scraped_is_documented_and_the_other_way_round():
    telemetry = Telemetry()
    telemetry.answered("publish", 200)
    documented = {metric.name for metric in metrics()}

    ours = {name.split(" ")[0] for name in scraped(telemetry) if name.startswith("waypost_")}
    bare = {re.sub(r"_(bucket|count|sum)$", "", name) for name in ours}

    assert {name for name in bare if name not in documented} == set()
    assert {name for name in documented if name not in bare} == set()


def test_labels_have_a_fixed_set_of_values():
    allowed = {"state", "result", "route", "status"}

    assert {label for metric in metrics() for label in metric.labels} <= allowed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("POST https://u:p@host/a/b?key=1#x failed", "POST https://host/a/b?… failed"),
        ("https://host/a", "https://host/a"),
        ("http://user@host:8080/", "http://host:8080/"),
        ("http://host?token=1 and http://b?c", "http://host?… and http://b?…"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer …"),
        ("key sig_7kYjw48mhY7k", "key …"),
        ("eyJVc2VySUQiOiJhIn0= was shown", "… was shown"),
        ("qstash_token=abc&x=1", "qstash_token=…&x=1"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, shown: str):
    assert scrub(text) == shown


@pytest.fixture
def log_as(capfd):
    """Configures logging, and answers a function that reads what was logged."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def lines(form: str, level: str = "info"):
        configure_logging(level=level, format=form)
        return lambda: capfd.readouterr().err.splitlines()

    yield lines
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_our_entries_and_a_librarys_are_json_lines_on_stderr(log_as):
    logged = log_as("json")

    structlog.get_logger("a").info("server_started", address="http://u:p@host/?q")
    logging.getLogger("library").warning("fetching %s", "http://u:p@host/?q")

    ours, theirs = map(json.loads, logged())
    assert (ours["event"], ours["level"]) == ("server_started", "info")
    assert ours["address"] == "http://host/?…"
    assert theirs["event"] == "fetching http://host/?…"
    assert ours["timestamp"].endswith("Z")


def test_a_traceback_shows_no_secret_and_no_local_variable(log_as):
    logged = log_as("text")
    token = "eyJVc2VySUQiOiJhIn0="

    try:
        raise ValueError(f"bad token {token}")
    except ValueError:
        structlog.get_logger("a").exception("request_fault")

    text = "\n".join(logged())
    assert "ValueError: bad token …" in text
    assert token not in text


def test_what_is_under_the_level_is_not_logged(log_as):
    logged = log_as("json", "warning")

    structlog.get_logger("a").info("server_started")
    logging.getLogger("library").info("hello")

    assert logged() == []
