"""The home of what we say about ourselves: every metric and every log event there is.

A counter is a plain int (or a dict of them) that whoever does the work adds to;
a histogram is a list of ints and a bisect.  Nothing else happens on the hot
path: names, help and the text format are put together when somebody scrapes.

No label has a value that a caller can choose: no tenant, host, queue or URL.
Log entries hold no token, body, key, URL userinfo or query (D33); the last
processor before the renderer takes out what slipped in.
"""

import logging
import re
import sys
from bisect import bisect_left
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Annotated, Any, Literal, get_type_hints

import structlog
from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from waypost.domain.attempt import Outcome
from waypost.domain.message import Logged

PREFIX = "waypost_"

RESULTS = ("2xx", "3xx", "4xx", "5xx", "broken", "no_answer", "forbidden")
"""Every way an attempt ends; `result_of` says which is which."""

FIRINGS = ("fired", "failed", "skipped")
"""A firing that failed made no message, for its destination would not be accepted; one that is
skipped was too late."""

ATTEMPT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
SYNC_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5)
BATCH_CALLS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metric(Struct, frozen=True, kw_only=True):
    """What the documentation says of one metric.

    `name` is the full name as it is scraped.  `labels` maps a label to its
    values, or to a phrase where they are fixed elsewhere.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: dict[str, Sequence[str] | str] = {}


class Counter(Struct, frozen=True):
    """Marks an attribute of `Telemetry` as a counter."""

    help: str
    labels: dict[str, Sequence[str] | str] = {}


class Distribution(Struct, frozen=True):
    """Marks an attribute of `Telemetry` as a histogram with these upper bounds."""

    help: str
    bounds: tuple[float, ...]


class Gauge(Struct, frozen=True):
    """Marks an attribute of `Readings` as a gauge."""

    help: str


class Histogram:
    """How often a value fell under each bound, and the sum of all."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append((str(float(bound)) if bound != float("inf") else "+Inf", total))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum)


class Readings(Struct, frozen=True, kw_only=True):
    """What is read at the moment of a scrape: the store's pulse and the places taken."""

    messages_waiting: Annotated[int, Gauge("Messages waiting for their time, a place or a retry")]
    messages_claimed: Annotated[int, Gauge("Messages claimed: an attempt is under way")]
    dead_letters: Annotated[int, Gauge("Messages in the dead letter queue")]
    oldest_due_seconds: Annotated[
        float, Gauge("How long the oldest message that may be claimed has been due; 0: none is")
    ]
    store_bytes: Annotated[int, Gauge("Size of the store on disk")]
    free_bytes: Annotated[
        float, Gauge("Free space where the store is; infinite where that cannot be seen")
    ]
    attempts_in_flight: Annotated[int, Gauge("Places taken on this node")]
    refusing: Annotated[int, Gauge("1 while publishes are refused for want of space")]


class Telemetry:
    """The counters of one process.  Add to them: `telemetry.messages_accepted += 1`."""

    messages_accepted: Annotated[int, Counter("Messages accepted: on disk, and answered 2xx")] = 0
    callbacks_accepted: Annotated[int, Counter("Callbacks accepted: on disk, with an outcome")] = 0
    messages_deduplicated: Annotated[
        int, Counter("Publishes answered with the id of an earlier message")
    ] = 0
    messages_settled: Annotated[
        dict[Logged, int],
        Counter("Attempts settled, by the last word of the log", {"state": tuple(Logged)}),
    ]
    attempts: Annotated[
        dict[str, int], Counter("Attempts ended, by what the destination did", {"result": RESULTS})
    ]
    attempt_seconds: Annotated[
        Histogram, Distribution("How long an attempt took, name look-up included", ATTEMPT_SECONDS)
    ]
    redials: Annotated[
        int, Counter("Requests sent a second time, their pooled connection being closed (D15)")
    ] = 0
    settles_stale: Annotated[int, Counter("Settles that came after the claim was lost")] = 0
    claims_released: Annotated[
        int, Counter("Claims given back undelivered, at shutdown or for the lease was over")
    ] = 0
    store_batch_calls: Annotated[
        Histogram, Distribution("Calls that shared one transaction", BATCH_CALLS)
    ]
    store_sync_seconds: Annotated[
        Histogram, Distribution("How long a commit took, its sync to disk included", SYNC_SECONDS)
    ]
    firings: Annotated[
        dict[str, int],
        Counter("Firings of schedules, by what became of them", {"result": FIRINGS}),
    ]
    messages_scheduled: Annotated[
        int, Counter("Messages made by schedules: on disk, with the firing")
    ] = 0
    rows_pruned: Annotated[int, Counter("Rows removed by retention")] = 0
    loop_faults: Annotated[int, Counter("Steps of a loop that failed and were tried again")] = 0
    answers: Annotated[
        dict[tuple[str, int], int],
        Counter(
            "Answers given to callers",
            {"route": "a pattern of the route table", "status": "the status of the answer"},
        ),
    ]

    def __init__(self) -> None:
        self.messages_settled = dict.fromkeys(Logged, 0)
        self.attempts = dict.fromkeys(RESULTS, 0)
        self.firings = dict.fromkeys(FIRINGS, 0)
        self.attempt_seconds = Histogram(ATTEMPT_SECONDS)
        self.store_batch_calls = Histogram(BATCH_CALLS)
        self.store_sync_seconds = Histogram(SYNC_SECONDS)
        self.answers = {}
        self._readings: Readings | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Scrape(self))
        ProcessCollector(registry=self._registry)

    def attempted(self, outcome: Outcome, *, took_ms: int) -> None:
        """Count one attempt that ended."""
        self.attempts[result_of(outcome)] += 1
        self.attempt_seconds.observe(took_ms / 1000)
        if outcome.redialled:
            self.redials += 1

    def answered(self, route: str, status: int) -> None:
        """Count an answer.  `route` is a pattern of the route table, never a path."""
        key = (route, status)
        self.answers[key] = self.answers.get(key, 0) + 1

    def render(self, readings: Readings | None) -> bytes:
        """Everything in Prometheus' text format.

        `readings` is None while the store is away: its gauges are then missing,
        and `waypost_store_up` is 0.
        """
        self._readings = readings
        return generate_latest(self._registry)

    def families(self) -> Iterator[Family]:
        for name, mark in _marks(Telemetry):
            value = getattr(self, name)
            if isinstance(mark, Distribution):
                yield value.family(PREFIX + name, mark.help)
            elif isinstance(value, dict):
                family = CounterMetricFamily(PREFIX + name, mark.help, labels=list(mark.labels))
                for key, count in value.items():
                    labels = key if isinstance(key, tuple) else (key,)
                    family.add_metric([str(label).lower() for label in labels], count)
                yield family
            else:
                yield CounterMetricFamily(PREFIX + name, mark.help, value=value)
        yield GaugeMetricFamily(
            PREFIX + "store_up", STORE_UP, value=0 if self._readings is None else 1
        )
        if self._readings is not None:
            for name, mark in _marks(Readings):
                yield GaugeMetricFamily(
                    PREFIX + name, mark.help, value=getattr(self._readings, name)
                )


STORE_UP = "1 while the store answers"

METRIC_KINDS: dict[type, Literal["counter", "gauge", "histogram"]] = {
    Counter: "counter",
    Distribution: "histogram",
    Gauge: "gauge",
}


class _Scrape(Collector):
    """The registry's view of a `Telemetry`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Family]:
        return self._telemetry.families()


def _marks(declared: type) -> list[tuple[str, Any]]:
    """The metrics that a class declares, in the order in which it does."""
    hints = get_type_hints(declared, include_extras=True)
    return [
        (name, hint.__metadata__[0])
        for name, hint in hints.items()
        if hasattr(hint, "__metadata__")
    ]


def metrics() -> list[Metric]:
    """Every metric there is, for docs/metrics.md."""
    found = [
        Metric(
            name=PREFIX + name + ("_total" if isinstance(mark, Counter) else ""),
            kind=METRIC_KINDS[type(mark)],
            help=mark.help,
            labels=getattr(mark, "labels", {}),
        )
        for declared in (Telemetry, Readings)
        for name, mark in _marks(declared)
    ]
    return [*found, Metric(name=PREFIX + "store_up", kind="gauge", help=STORE_UP)]


def result_of(outcome: Outcome) -> str:
    """Which of `RESULTS` an attempt is counted under.

    | result    | what happened                                           |
    | --------- | ------------------------------------------------------- |
    | 2xx … 5xx | the answer's status, the answer read to its end or cap  |
    | broken    | an answer began and did not end as it had promised      |
    | no_answer | no status came: refused, reset, timed out, no such name |
    | forbidden | our own egress policy refused the address (D10)         |
    """
    if outcome.refused:
        return "forbidden"
    if not outcome.status:
        return "no_answer"
    if outcome.error is not None:
        return "broken"
    return f"{outcome.status // 100}xx" if 200 <= outcome.status < 600 else "broken"


EVENTS: dict[str, str] = {
    "server_started": "Requests are accepted; names the address and the database",
    "server_stopping": "A signal came: nothing new is accepted, attempts under way may end",
    "server_stopped": "Everything has stopped; says how many attempts were released",
    "people_changed": "Tenants or tokens were changed by another process, and read again",
    "publishes_refused": "Publishes are refused for want of space from now on; says why",
    "publishes_accepted": "There is space again, and publishes are no longer refused",
    "message_failed": "A message went to the dead letter queue; says why",
    "no_log_port": "The port of the log server is taken, and dev does without it; says why",
    "firing_failed": "A run of a schedule could not be made; says why",
    "firings_skipped": "Firings of a schedule were too late to run; says how many, and which",
    "schedule_unreadable": "A schedule that the store keeps cannot be read; it is passed over, "
    "and looked at again in an hour; it can be overwritten or deleted",
    "settle_stale": "An attempt ended after its claim was lost; nothing was changed",
    "store_away": "The store could not take back what was in flight at the end; says why",
    "database_away": "The lease could not be renewed; it is tried again; says why, once",
    "database_back": "The lease is renewed again",
    "node_was_taken_over": "This node was away for so long that others have all of its work; it "
    "begins anew",
    "node_taken_over": "What a node that is dead or has left had under way waits again",
    "silent_sessions_ended": "Sessions of nodes that held locks and were silent for a lease were "
    "ended, so that others go on; says how many",
    "claims_found": "Claims of this node that it did not know of, for a commit's answer was lost, "
    "were given back; says how many",
    "loop_fault": "A step of a loop failed; it rests and is tried again; says why, once",
    "loop_goes_on": "A loop that had failed goes on",
    "loop_waits": "A loop waits for free space, and tries again each second; said once",
    "request_fault": "A request failed for a fault of ours; its answer names the same fault",
}
"""Every log event of ours, and what it says.  What a library logs has its text as event."""


_USERINFO_OR_QUERY = re.compile(
    r"""(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#"'<>]*@)?(?P<path>[^\s?#"'<>]*)(?P<query>\?[^\s"'<>]*)?""",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:eyJ[\w-]{5,}[\w.+/=-]*|sig_\w+)|(?<=Bearer )\S+|(?<=qstash_token=)[^\s&]+"
)
HIDDEN = "…"


def scrub(text: str) -> str:
    """`text` without tokens, signing keys, URL userinfo and URL queries."""
    text = _USERINFO_OR_QUERY.sub(
        lambda found: found["scheme"] + found["path"] + ("?" + HIDDEN if found["query"] else ""),
        text,
    )
    return _TOKEN.sub(HIDDEN, text)


def _scrub_entry(
    _logger: object, _method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = scrub(value)
        elif not isinstance(value, int | float | None):
            entry[key] = scrub(str(value))
    return entry


def configure_logging(*, level: str, format: Literal["json", "text"]) -> None:  # noqa: A002
    """Send structlog and the standard library's logging to stderr, one line an entry.

    There is no access log: it would show queries (D33).
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _scrub_entry,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
