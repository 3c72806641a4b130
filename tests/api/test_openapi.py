"""The OpenAPI document says what there is, and a server answers as it says."""

import json
import re

from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.application import Application
from waypost.api import openapi
from waypost.api.app import ROUTES, described
from waypost.api.problems import STATUS
from waypost.domain import options
from waypost.domain.dev_users import DEV_USERS


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(described()).validate()


def test_each_route_is_described_and_nothing_else_is() -> None:
    assert {(route.method, route.pattern) for route in ROUTES} == set(openapi.OPERATIONS)
    found = {
        (method, re.sub(r"\{[^}]*\}", "{}", path))
        for path, operations in described()["paths"].items()
        for method in operations
    }
    asked = {(route.method.lower(), re.sub(r"\{[^}]*\}", "{}", route.pattern)) for route in ROUTES}
    assert found == asked


def test_every_operation_has_a_name_of_its_own() -> None:
    ids = [each["operationId"] for path in described()["paths"].values() for each in path.values()]

    assert len(ids) == len(set(ids))


def test_each_header_field_that_is_read_is_described() -> None:
    ours = {name.lower().encode() for name in openapi.HEADERS} - {b"content-type", b"accept"}

    assert ours == options._KNOWN | options._OF_SCHEDULES


def test_each_parameter_of_the_query_is_asked_for_somewhere() -> None:
    assert set().union(*(each.query for each in openapi.OPERATIONS.values())) == set(openapi.QUERY)


def test_each_status_of_a_problem_is_described() -> None:
    assert set(openapi.ERRORS) == {500, *STATUS.values()}


async def test_a_server_shows_it_to_everybody(server: Application) -> None:
    reply = await server.ask("GET", "/openapi.json", token=None)

    assert reply.status == 200
    assert reply.header["Content-Type"] == "application/json"
    assert reply.json == json.loads(json.dumps(described()))
    assert DEV_USERS[0].token not in json.dumps(reply.json)
