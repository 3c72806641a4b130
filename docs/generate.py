"""The home of the pages that are printed from code, so that they cannot be wrong.

    python -m docs.generate            writes them
    python -m docs.generate --check    fails, with a diff, where one is stale

| page             | printed from                       |
| ---------------- | ---------------------------------- |
| settings.md      | `waypost.settings.SETTINGS`        |
| metrics.md       | `waypost.telemetry`                |
| routes.md        | `waypost.api.app.ROUTES`           |
| openapi.json     | the same, and what is read         |
| lifecycle.md     | `waypost.domain.message.NEXT`      |
| schema.sql       | the sum of the SQLite migrations   |
| decisions/       | the titles of its pages            |
| compatibility.md | what is promised, and the tests    |

How tests went is not in the code: compatibility.md keeps it, until `docs.compatibility` is told of
a run.
"""

import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import apsw

from docs.compatibility import compatibility_page
from docs.markdown import code, page, table
from waypost import settings, telemetry
from waypost.api.app import ROUTES, Needs, described
from waypost.api.openapi import OPERATIONS
from waypost.domain.message import NEXT, Event, State
from waypost.store.sqlite.database import migrate, schema

HERE = Path(__file__).parent

STATE_MEANS = {
    State.WAITING: "for its time, for its turn, or for its next retry",
    State.CLAIMED: "an attempt is under way",
    State.CANCELING: "an attempt is under way, and there will be no other",
    State.DELIVERED: "the destination answered 2xx",
    State.FAILED: "no retry is left, or none can help; it is in the dead letter queue",
    State.CANCELED: "somebody cancelled it",
}

EVENT_MEANS = {
    Event.CLAIM: "a place is free and it is the next one due",
    Event.DELIVER: "the attempt ended with a 2xx",
    Event.RETRY: "the attempt failed and another one may help",
    Event.GIVE_UP: "the attempt failed and no other will be made",
    Event.CANCEL: "`DELETE /v2/messages/{id}`",
    Event.RELEASE: "the server stops and gives back what it has not finished",
    Event.LOSE_LEASE: "the server died in the middle of the attempt",
}


NEEDS_MEANS = {
    Needs.NOTHING: "no token",
    Needs.READ: "any token",
    Needs.WRITE: "a token that may write",
    Needs.SECRET: "a token that may write",
}


def settings_page() -> str:
    def bounds(setting: settings.Setting) -> str:
        low, high = (
            "" if bound is None else setting.kind.show(type(setting.default)(bound))
            for bound in (setting.minimum, setting.maximum)
        )
        return f"{low} … {high}".strip() if low or high else ""

    def default(setting: settings.Setting) -> str:
        text = code(setting.kind.show(setting.default))
        if setting.name in settings.DEV_DEFAULTS:
            text += f"; `dev`: {code(setting.kind.show(settings.DEV_DEFAULTS[setting.name]))}"
        return text

    caps = [
        (code(quota), code(name), code(settings.BY_NAME[name].kind.show(cap)))
        for quota, caps in settings.QUOTA_CAPS.items()
        for name, cap in caps.items()
    ]
    return page(
        "Settings",
        """Every setting has one name. `timeout_ms_max` is `--timeout-ms-max` as a flag,
`WAYPOST_TIMEOUT_MS_MAX` as a variable, and `timeout_ms_max` in the TOML file that `--config` or
`WAYPOST_CONFIG` names. A flag wins over a variable, a variable over the file, the file over the
default. An empty variable counts as absent.

A number without a unit is in the unit of the name: `timeout_ms_max = 5000`. Durations may say
`s`, `m`, `h`, `d` and sums of them (`1h30m`); sizes `KB`, `MB`, `GB` (powers of 1,000) and `KiB`,
`MiB`, `GiB` (powers of 1,024). A list is written with commas, or as a list in the file.

A setting that does not exist, cannot be read, is out of bounds or contradicts another stops the
start with exit status 2 and a line that says which and why.""",
        table(
            ("setting", "kind", "default", "bounds", "what it is for"),
            (
                (code(each.name), each.kind.name, default(each), bounds(each), each.help)
                for each in settings.SETTINGS
            ),
        ),
        "## What `quota` sets\n\nA cap may be set lower, not higher, while a quota is in force.",
        table(("quota", "setting", "value"), caps),
    )


def metrics_page() -> str:
    def labels(metric: telemetry.Metric) -> str:
        return "; ".join(
            f"`{label}`: "
            + (values if isinstance(values, str) else ", ".join(str(v).lower() for v in values))
            for label, values in metric.labels.items()
        )

    return page(
        "Metrics and log events",
        """`GET /metrics` answers in Prometheus' text format. No label has a value that a caller can
choose: no tenant, host, queue or URL. The process's own `process_*` metrics (CPU, memory, open
files) are there too. Counters begin at 0 with the process.""",
        table(
            ("metric", "kind", "labels", "what it counts"),
            ((code(m.name), m.kind, labels(m), m.help) for m in telemetry.metrics()),
        ),
        """## Log events

The log is on stderr, one entry a line, as JSON or as text (`log_format`). Entries have `event`,
`level` and `timestamp`; none holds a token, a body, a key, or the userinfo or query of a URL.""",
        table(
            ("event", "what it says"),
            ((code(name), text) for name, text in telemetry.EVENTS.items()),
        ),
    )


def routes_page() -> str:
    return page(
        "Routes",
        """Every route there is. A path is matched as it came, undecoded; `{name...}` is all that is
left of it. Answers and headers are those of the QStash v2 API; [openapi.json](openapi.json), which
a server answers at `/openapi.json`, has all of them.""",
        table(
            ("method", "path", "needs", "what it does"),
            (
                (
                    route.method,
                    code(route.pattern),
                    NEEDS_MEANS[route.needs],
                    OPERATIONS[route.method, route.pattern].summary,
                )
                for route in ROUTES
            ),
        ),
    )


def openapi_document() -> str:
    return json.dumps(described(), indent=1) + "\n"


def lifecycle_page() -> str:
    name = {state: state.value for state in State}
    arrows = [
        f"    {name[before]} --> {name[after]}: {event.value}"
        for before, by_event in NEXT.items()
        for event, after in by_event.items()
    ]
    ends = [f"    {name[state]} --> [*]" for state, by_event in NEXT.items() if not by_event]
    diagram = "\n".join(
        [
            "```mermaid",
            "stateDiagram-v2",
            f"    [*] --> {name[State.WAITING]}: accept",
            *arrows,
            *ends,
            "```",
        ]
    )
    return page(
        "The life of a message",
        """A message is accepted once and never changes. What moves is its delivery: through the
states below, and along no other arrow.""",
        diagram,
        table(("state", "means"), ((state.value, STATE_MEANS[state]) for state in State)),
        table(
            ("from", "event", "to"),
            (
                (before.value, event.value, after.value)
                for before, by_event in NEXT.items()
                for event, after in by_event.items()
            ),
        ),
        table(("event", "happens when"), ((e.value, EVENT_MEANS[e]) for e in Event)),
    )


def decisions_page() -> str:
    titles = {
        path.name: path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for path in sorted((HERE / "decisions").glob("[0-9]*.md"))
    }
    return page(
        "Decisions",
        """Why things are as they are: what was weighed, what was measured, what was left. A page is
not changed when its decision is; a new one says which it replaces.""",
        "\n".join(f"- [{title}]({name})" for name, title in titles.items()),
    )


def sqlite_schema() -> str:
    """What the migrations add up to, kept beside them to be read."""
    db = apsw.Connection(":memory:")
    migrate(db)
    return schema(db)


PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "routes.md": routes_page,
    "openapi.json": openapi_document,
    "lifecycle.md": lifecycle_page,
    "../src/waypost/store/sqlite/schema.sql": sqlite_schema,
    "decisions/README.md": decisions_page,
    "compatibility.md": compatibility_page,
}


def stale() -> list[str]:
    """The diffs between the pages as they are and as they should be."""
    diffs = []
    for name, printed in PAGES.items():
        path = HERE / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        diff = difflib.unified_diff(
            there.splitlines(keepends=True),
            printed().splitlines(keepends=True),
            f"docs/{name} as it is",
            f"docs/{name} as the code says",
        )
        diffs += ["".join(diff)] if there != printed() else []
    return diffs


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        diffs = stale()
        sys.stderr.writelines(diffs)
        return 1 if diffs else 0
    for name, printed in PAGES.items():
        (HERE / name).write_text(printed(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
