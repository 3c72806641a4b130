"""Requests that nobody thought of, made up from the OpenAPI document by schemathesis.

The same ones every time, against a server of its own that delivers nothing to
anybody: its way out is a proxy that is not there.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from tests.support.program import DEV_TOKEN, Server, running
from waypost.api.app import ROUTES, Needs, described

EXAMPLES = 20
TOKEN = {"Authorization": f"Bearer {DEV_TOKEN}"}
NAMES = ("destination", "destinationOrId", "id", "key", "name", "queue")
KNOWN = dict.fromkeys(NAMES, "known")
"""What is there to be found; the rest of what is asked for is made up."""

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
    checks.unsupported_method,
]

SCHEMA = schemathesis.openapi.from_dict(described())
OPERATIONS = {
    operation.ok().label: operation.ok()
    for operation in SCHEMA.get_all_operations()
    if operation.ok().path != "/metrics"
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    cwd = tmp_path_factory.mktemp("fuzz")
    words = ["--memory", "--port", "0", "--egress-proxy", "http://127.0.0.1:9"]
    with running("dev", *words, cwd=cwd) as server:
        server.until("running at .*\n")
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def furnish(server: Server) -> str:
    """Let there be one of everything that a path can name; the id of a message."""
    url = "http://127.0.0.1:9/"
    cron = {"Upstash_Cron": "0 0 1 1 *", "Upstash_Schedule_Id": "known"}
    flow = {"Upstash_Flow_Control_Key": "known", "Upstash_Flow_Control_Value": "rate=1"}
    for path, body, header in (
        ("/v2/queues", b'{"queueName": "known"}', {}),
        ("/v2/topics/known/endpoints", b'{"endpoints": [{"url": "%b"}]}' % url.encode(), {}),
        (f"/v2/schedules/{url}", b"", cron),
        (f"/v2/publish/{url}", b"", flow),
    ):
        status, said = server.call("POST", path, body=body, **header)
        assert status == 200, said
    message_id: str = json.loads(said)["messageId"]
    return message_id


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_what_the_document_says(
    label: str, server: Server, session: requests.Session
) -> None:
    """W4, T16: nothing is a 500, and no method that a path does not take is taken."""
    operation = OPERATIONS[label]
    there = {**KNOWN, "id": furnish(server)} if "/messages/" in label else KNOWN
    known = {each.name: there[each.name] for each in operation.path_parameters}
    ways: list[dict[str, Any]] = [{}, {"headers": {}}]
    ways += [{**way, "path_parameters": known} for way in ways] if known else []
    cases = st.one_of(
        *(
            operation.as_strategy(generation_mode=mode, **way)
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
            for way in ways
        )
    )

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: Any) -> None:
        case.call_and_validate(
            base_url=server.url, session=session, headers=TOKEN, checks=CHECKS, timeout=10
        )

    furnish(server)
    ask()


def test_everything_that_wants_a_token_says_so(server: Server, session: requests.Session) -> None:
    """W3: as the document does."""
    for route in ROUTES:
        path = route.pattern.replace("...", "").replace("{", "").replace("}", "")
        answer = session.request(route.method, server.url + path, timeout=10)
        assert (answer.status_code == 401) == (route.needs is not Needs.NOTHING), route
