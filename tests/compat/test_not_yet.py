"""What has not landed is refused, in words that name it, and nothing of it is accepted (D5).

Whoever lands one of these takes its line out, and shows in the tests of its
own that the SDKs can do it.
"""

import json
import re

import pytest
from qstash.errors import QStashError

from waypost.domain.dev_users import DEV_USERS

USER = DEV_USERS[3]
URL = "http://127.0.0.1:9/"

NO_ROUTE = ("404", r"[A-Z]+ /v2/\S+ is not supported yet")

PYTHON = {}

JAVASCRIPT = {}


def nothing_was_accepted(server):
    return server.call("GET", "/v2/events", token=USER.token) == (200, b'{"events":[]}')


@pytest.mark.parametrize("name", PYTHON)
def test_the_python_sdk_hears_that_it_is_not_there_yet(clients, server, name):
    """D5, W4, W32."""
    call, (status, text) = PYTHON[name]

    with pytest.raises(QStashError) as refused:
        call(clients(USER.token))

    found = re.fullmatch(r"Request failed with status: (\d+), body: (.*)", str(refused.value))
    assert found is not None, refused.value
    assert re.fullmatch(status, found[1]), refused.value
    error = json.loads(found[2])["error"]
    assert error
    assert re.search(text, error)
    assert nothing_was_accepted(server)


def test_the_javascript_sdk_hears_that_it_is_not_there_yet(javascript, server):
    """D5, W4, W32."""
    given = {"receiver": "http://127.0.0.1:9", "names": list(JAVASCRIPT)}

    said = javascript("attempt.mjs", given, token=USER.token)

    for name, refused in said.items():
        status, text = JAVASCRIPT[name]
        assert refused.get("name") == "QstashError", (name, refused)
        assert re.fullmatch(status, str(refused["status"])), (name, refused)
        error = json.loads(refused["message"])["error"]
        assert error, name
        assert re.search(text, error), (name, error)
    assert nothing_was_accepted(server)
