"""URL groups, over HTTP, to an assembled server (contract section 9)."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec import structs

from tests.support.application import MINUTE, SECOND, SETTINGS, T0, Application, Reply, serving
from waypost.domain.dev_users import DEV_USERS

A, B = "https://a.example/a", "https://b.example/b"


async def topic(
    server: Application, method: str, path: str = "", told: object = None, **more: Any
) -> Reply:
    body = None if told is None else json.dumps(told).encode()
    return await server.ask(method, f"/v2/topics{path}", body=body, **more)


async def add(
    server: Application, *endpoints: str | Mapping[str, str], name: str = "g", **more: Any
) -> Reply:
    told = [{"url": one} if isinstance(one, str) else one for one in endpoints]
    return await topic(server, "POST", f"/{name}/endpoints", {"endpoints": told}, **more)


async def made(server: Application, *endpoints: str | Mapping[str, str], name: str = "g") -> str:
    """Make a group; its id."""
    reply = await add(server, *endpoints, name=name)
    assert reply.status == 200, reply
    return str(reply.json["topicId"])


async def endpoints(server: Application, name: str = "g") -> list[dict[str, str]]:
    reply = await topic(server, "GET", f"/{name}")
    assert reply.status == 200, reply
    return list(reply.json["endpoints"])


def urls(server: Application, *paths: str) -> list[str]:
    return [server.receiver.url + path for path in paths]


async def test_endpoints_accumulate_in_order(server: Application) -> None:
    """W137, W138: exactly url and name, and a name may have blanks."""
    await made(server, {"url": A, "name": "First endpoint"})
    await made(server, B, {"url": "https://c.example", "name": ""})

    assert await endpoints(server) == [
        {"url": A, "name": "First endpoint"},
        {"url": B},
        {"url": "https://c.example"},
    ]


async def test_an_endpoint_is_known_by_its_name_and_by_its_url(server: Application) -> None:
    """W137: it is changed in its place."""
    await made(server, {"url": A, "name": "one"}, {"url": B, "name": "two"})
    await made(server, {"url": "https://c.example", "name": "one"}, {"url": B, "name": "second"})
    await made(server, B)

    assert await endpoints(server) == [
        {"url": "https://c.example", "name": "one"},
        {"url": B, "name": "second"},
    ]


async def test_a_group_is_shown_with_its_times_and_its_id(server: Application) -> None:
    """W142, W144: milliseconds; the id is for life (D8)."""
    topic_id = await made(server, A)
    server.clock.advance(SECOND)
    await made(server, B)

    reply = await topic(server, "GET", "/g")

    assert (reply.status, reply.json) == (
        200,
        {
            "name": "g",
            "topicId": topic_id,
            "createdAt": T0,
            "updatedAt": T0 + SECOND,
            "endpoints": [{"url": A}, {"url": B}],
        },
    )
    assert topic_id.startswith("tpc_")


async def test_groups_are_listed_as_a_bare_array(server: Application) -> None:
    """W142: also when there is none."""
    assert (await topic(server, "GET")).json == []

    await made(server, A, name="b")
    await made(server, A, name="c")
    await made(server, B, name="a")

    reply = await topic(server, "GET", "/")
    assert [(one["name"], one["endpoints"]) for one in reply.json] == [
        ("a", [{"url": B}]),
        ("b", [{"url": A}]),
        ("c", [{"url": A}]),
    ]


async def test_endpoints_are_removed_by_url_or_by_name(server: Application) -> None:
    """W139: and one that is not there is passed over."""
    await made(server, {"url": A, "name": "one"}, {"url": B, "name": "two"}, "https://c.example")

    for told in ({"url": A}, {"name": "two"}, {"url": "https://unknown.example"}):
        reply = await topic(server, "DELETE", "/g/endpoints", {"endpoints": [told]})
        assert reply.status == 200

    assert await endpoints(server) == [{"url": "https://c.example"}]


async def test_with_its_last_endpoint_a_group_goes(server: Application) -> None:
    """W140."""
    await made(server, A, {"url": B, "name": "b"})

    told = {"endpoints": [{"url": A}, {"name": "b"}]}
    reply = await topic(server, "DELETE", "/g/endpoints", told)

    assert reply.status == 200
    assert (await topic(server, "GET", "/g")).status == 404
    assert (await topic(server, "GET")).json == []


async def test_deleting_a_group_that_is_not_there_is_no_fault(server: Application) -> None:
    """W141: with a body that is the JSON null too, as some clients send."""
    await made(server, A)

    for _ in range(2):
        reply = await server.ask("DELETE", "/v2/topics/g", body=b"null")
        assert (reply.status, reply.json) == (200, {})

    assert (await topic(server, "GET", "/g")).status == 404


async def test_a_missing_group_is_named(server: Application) -> None:
    """W142, W32."""
    for method, path, told in (
        ("GET", "/nobody", None),
        ("DELETE", "/nobody/endpoints", {"endpoints": [{"url": A}]}),
        ("PATCH", "/nobody", {"headers": {}}),
    ):
        reply = await topic(server, method, path, told)
        assert (reply.status, reply.json) == (404, {"error": "topic nobody not found"})

    assert (await server.publish("nobody")).json == {"error": "topic nobody not found"}


async def test_an_id_works_wherever_a_name_does(server: Application) -> None:
    """D8."""
    [url] = urls(server, "/one")
    topic_id = await made(server, url)

    assert await made(server, B, name=topic_id) == topic_id
    assert await endpoints(server, topic_id) == [{"url": url}, {"url": B}]
    told = {"endpoints": [{"url": B}]}
    assert (await topic(server, "DELETE", f"/{topic_id}/endpoints", told)).status == 200
    assert (await topic(server, "PATCH", f"/{topic_id}", {"headers": {}})).status == 200
    [sent] = (await server.publish(topic_id)).json
    assert (await server.message(sent["messageId"]))["topicName"] == "g"
    assert (await topic(server, "DELETE", f"/{topic_id}")).status == 200
    assert (await topic(server, "GET", "/g")).status == 404


@pytest.mark.parametrize("name", ["tpc_mine", "a%20b", "a%2Fb", "%00", "%C3%A9", "x" * 256])
async def test_other_names_are_refused(server: Application, name: str) -> None:
    """D7, D8."""
    reply = await add(server, A, name=name)

    assert reply.status == 400
    assert reply.json["error"].startswith("topic: ")
    assert (await topic(server, "GET")).json == []


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({}, "`endpoints`"),
        ({"endpoints": {}}, "`$.endpoints`"),
        ({"endpoints": []}, "endpoints: there must be at least one"),
        ({"endpoints": [{}]}, "`url` - at `$.endpoints[0]`"),
        ({"endpoints": [{"url": A}, {"url": 1}]}, "`$.endpoints[1].url`"),
        ({"endpoints": [{"url": A}, {"url": "a.example"}]}, "endpoints[1]: invalid destination"),
        ({"endpoints": [{"url": ""}]}, "endpoints[0]: invalid destination url"),
        ({"endpoints": [{"url": A, "name": "a\nb"}]}, "endpoints[0]: the name"),
        ({"endpoints": [{"url": f"{A}/{at}"} for at in range(101)]}, "at most 100 endpoints"),
        (None, "the body"),
        ([], "the body"),
    ],
)
async def test_what_is_wrong_with_an_endpoint_is_named_and_nothing_is_kept(
    server: Application, told: object, text: str
) -> None:
    """W4."""
    reply = await topic(server, "POST", "/g/endpoints", told)

    assert reply.status == 400
    assert text in reply.json["error"]
    assert (await topic(server, "GET")).json == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"endpoints":"\xff"}', b"[" * 100_000])
async def test_a_body_that_is_no_json_is_refused(server: Application, body: bytes) -> None:
    """W4."""
    for method, path in (
        ("POST", "/v2/topics/g/endpoints"),
        ("DELETE", "/v2/topics/g/endpoints"),
        ("PATCH", "/v2/topics/g"),
    ):
        reply = await server.ask(method, path, body=body)
        assert reply.status == 400
        assert "the body" in reply.json["error"]


@pytest.mark.parametrize("told", [{}, {"url": "", "name": ""}, {"url": None}])
async def test_an_endpoint_to_remove_has_a_url_or_a_name(
    server: Application, told: dict[str, str]
) -> None:
    await made(server, A)

    told_endpoints = {"endpoints": [{"url": A}, told]}
    reply = await topic(server, "DELETE", "/g/endpoints", told_endpoints)

    assert reply.status == 400
    assert reply.json["error"] == "endpoints[1]: neither a url nor a name"
    assert await endpoints(server) == [{"url": A}]


async def test_keys_that_mean_nothing_are_ignored(server: Application) -> None:
    """Contract section 0.4; and so is the Content-Type."""
    reply = await server.ask(
        "POST",
        "/v2/topics/g/endpoints",
        header={"Content-Type": "application/x-www-form-urlencoded"},
        body=json.dumps({"endpoints": [{"url": A, "id": 1}], "more": [{}]}).encode(),
    )

    assert reply.status == 200
    assert await endpoints(server) == [{"url": A}]


async def test_a_message_goes_to_each_endpoint(server: Application) -> None:
    """W90-W92, W184: each with an id of its own, and told of the group."""
    one, other = urls(server, "/one", "/other?a=b")
    await made(server, {"url": one, "name": "First endpoint"}, other)

    reply = await server.publish("g", body=bytes(range(256)))

    assert reply.status == 200
    assert [set(sent) for sent in reply.json] == [{"messageId", "url"}] * 2
    assert [sent["url"] for sent in reply.json] == [one, other]
    received = {request.target: request for request in await server.receiver.first(2)}
    assert {
        (target, request.header["Upstash-Message-Id"], request.header["Upstash-Topic-Name"])
        for target, request in received.items()
    } == {
        ("/hook/one", reply.json[0]["messageId"], "g"),
        ("/hook/other?a=b", reply.json[1]["messageId"], "g"),
    }
    assert {request.body for request in received.values()} == {bytes(range(256))}
    for sent, name in zip(reply.json, ("First endpoint", None), strict=True):
        message = await server.message(sent["messageId"])
        assert (message["topicName"], message.get("endpointName")) == ("g", name)
        assert message["url"] == sent["url"]
        entries = await server.log(sent["messageId"])
        assert {entry["topicName"] for entry in entries} == {"g"}


async def test_a_message_to_a_url_is_told_of_no_group(server: Application) -> None:
    """W184."""
    message_id = await server.accepted()

    assert "Upstash-Topic-Name" not in (await server.receiver.only()).header
    assert "topicName" not in await server.message(message_id)


async def test_a_message_may_be_enqueued_to_a_group(server: Application) -> None:
    """W77, W76: one after the other, in the order of the endpoints."""
    paths = [f"/{number}" for number in range(4)]
    await made(server, *urls(server, *paths))

    reply = await server.ask("POST", "/v2/enqueue/q/g", body=b"hello")

    assert reply.status == 200
    assert [sent["url"] for sent in reply.json] == urls(server, *paths)
    received = await server.receiver.first(4)
    assert [request.target for request in received] == [f"/hook{path}" for path in paths]
    assert (await server.message(reply.json[3]["messageId"]))["queueName"] == "q"


async def test_duplicates_of_a_group_are_told_one_by_one(server: Application) -> None:
    """D1, D2: 202 only if all are."""
    await made(server, A, B)
    header = {"Upstash-Deduplication-Id": "once", "Upstash-Delay": "1h"}

    first = await server.publish("g", header=header)
    again = await server.publish("g", header=header)
    await made(server, "https://c.example")
    grown = await server.publish("g", header=header)

    assert (first.status, again.status, grown.status) == (200, 202, 200)
    assert again.json == [{**sent, "deduplicated": True} for sent in first.json]
    assert grown.json[:2] == again.json
    assert "deduplicated" not in grown.json[2]


async def test_the_endpoints_of_a_message_are_those_of_its_publish(server: Application) -> None:
    """D8: what was published to a group that has gone since is delivered."""
    await made(server, *urls(server, "/one"))
    [sent] = (await server.publish("g", header={"Upstash-Delay": "1m"})).json

    await topic(server, "DELETE", "/g")
    server.clock.advance(MINUTE)

    assert (await server.receiver.only()).header["Upstash-Topic-Name"] == "g"
    await server.logged(sent["messageId"], "DELIVERED")


async def test_a_group_has_default_header_fields(server: Application) -> None:
    """W143: a text or a list of texts; the publisher's own win."""
    await made(server, *urls(server, "/one"))
    headers = {
        "Upstash-Retries": "5",
        "upstash-delay": "1m",
        "Upstash-Forward-X": ["a", "b"],
        "Upstash-Method": ["PUT"],
    }
    told = {"headers": headers, "more": 1}
    patched = await topic(server, "PATCH", "/g", told)
    assert patched.status == 200, patched

    path = "g?upstash-method=PATCH"
    [sent] = (await server.publish(path, header={"Upstash-Retries": "1"})).json
    [other] = (await server.publish("g", header={"Upstash-Forward-X": "mine"})).json

    message = await server.message(sent["messageId"])
    assert (message["maxRetries"], message["method"]) == (1, "PATCH")
    assert message["header"] == {"X": ["a", "b"]}
    assert message["notBefore"] == T0 + MINUTE
    message = await server.message(other["messageId"])
    assert (message["maxRetries"], message["method"]) == (5, "PUT")
    assert message["header"] == {"X": ["mine"]}
    shown = (await topic(server, "GET", "/g")).json["headers"]
    assert shown == patched.json["headers"]
    assert shown == {
        "Upstash-Retries": ["5"],
        "Upstash-Delay": ["1m"],
        "Upstash-Forward-X": ["a", "b"],
        "Upstash-Method": ["PUT"],
    }


async def test_a_webhook_may_pass_through_a_group(server: Application) -> None:
    """W143, W24: all that comes is passed on where the group says so."""
    await made(server, *urls(server, "/one"))
    headers = {"Upstash-Header-Forward": ["true"], "Upstash-Retries": "3"}
    await topic(server, "PATCH", "/g", {"headers": headers})

    header = {"X-Signature": "abc", "Content-Type": "application/json", "User-Agent": "hook/1"}
    token = DEV_USERS[0].token
    path = f"/v2/publish/g?qstash_token={token}&left=over"
    await server.ask("POST", path, header=header, body=b"{}", token=None)

    received = await server.receiver.only()
    assert received.target == "/hook/one"
    for name, value in header.items():
        assert received.header[name] == value
    assert "Authorization" not in received.header


async def test_a_default_yields_to_a_field_that_it_would_beat(server: Application) -> None:
    """W143: where both were the publisher's own, the other way round (W46)."""
    await made(server, A)
    headers = {"Upstash-Not-Before": str((T0 + 2 * MINUTE) // 1_000)}
    await topic(server, "PATCH", "/g", {"headers": headers})

    [delayed] = (await server.publish("g", header={"Upstash-Delay": "1m"})).json
    [other] = (await server.publish("g")).json

    assert (await server.message(delayed["messageId"]))["notBefore"] == T0 + MINUTE
    assert (await server.message(other["messageId"]))["notBefore"] == T0 + 2 * MINUTE


async def test_other_defaults_take_the_place_of_those_before(server: Application) -> None:
    """W143."""
    await made(server, A)
    for headers in ({"Upstash-Retries": "5"}, {"Upstash-Delay": "1m"}, {}):
        await topic(server, "PATCH", "/g", {"headers": headers})

    assert "headers" not in (await topic(server, "GET", "/g")).json


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"Upstash-Retries": "many"}, "Upstash-Retries: not a whole number"),
        ({"Upstash-Retries": ["101"]}, "maxRetries"),
        ({"Upstash-Delay": "soon"}, "Upstash-Delay: "),
        ({"Upstash-Header-Forward": "yes"}, "Upstash-Header-Forward: neither true nor false"),
        ({"Upstash-Cron": "* * * * *"}, "Upstash-Cron"),
        ({"Upstash-Forward-A b": "x"}, "Upstash-Forward-A b: not a valid header name"),
        ({"Upstash-Forward-X": "a\nb"}, "Upstash-Forward-X: "),
        ({"X-Api-Key": "x"}, "X-Api-Key: "),
        ({"Upstash-Callback": "a.example"}, "Upstash-Callback: "),
        ({"Upstash-Retries": 3}, "'Upstash-Retries' is neither a text nor a list of texts"),
        ({"Upstash-Label": ["a", None]}, "'Upstash-Label' is neither"),
        ([], "`$.headers`"),
    ],
)
async def test_a_wrong_default_is_refused_by_name(
    server: Application, headers: object, text: str
) -> None:
    """W143: when it is set, and not only when something is published."""
    await made(server, A)

    reply = await topic(server, "PATCH", "/g", {"headers": headers})

    assert reply.status == 400
    assert text in reply.json["error"]
    assert "headers" not in (await topic(server, "GET", "/g")).json


async def test_groups_of_others_are_not_seen(server: Application) -> None:
    """T14."""
    topic_id = await made(server, A)
    other = DEV_USERS[1].token

    assert (await topic(server, "GET", token=other)).json == []
    for name in ("g", topic_id):
        assert (await topic(server, "GET", f"/{name}", token=other)).status == 404
        assert (await topic(server, "DELETE", f"/{name}", token=other)).status == 200
        assert (await server.publish(name, token=other)).status == 404
    assert await endpoints(server) == [{"url": A}]


async def test_one_call_tells_of_so_many_endpoints_and_no_more(server: Application) -> None:
    """However often the same ones are told: reading them takes time."""
    reply = await add(server, *[A] * 1_001)

    assert reply.status == 400
    assert reply.json == {"error": "endpoints: more than 1000 at once"}


async def test_a_group_too_many_is_refused_and_those_that_are_there_can_be_changed() -> None:
    async with serving(structs.replace(SETTINGS, url_group_count_max=1)) as server:

        async def add(name: str, path: str) -> Reply:
            body = json.dumps({"endpoints": [{"url": f"{server.receiver.url}/{path}"}]}).encode()
            return await server.ask("POST", f"/v2/topics/{name}/endpoints", body=body)

        assert (await add("g", "a")).status == 200
        refused = await add("h", "a")

        assert (refused.status, refused.json) == (
            412,
            {"error": "quota maxTopics exceeded, current limit: 1"},
        )
        assert (await server.ask("GET", "/v2/topics/h")).status == 404
        assert (await add("g", "b")).status == 200
        assert (await server.ask("DELETE", "/v2/topics/g")).status == 200
        assert (await add("h", "a")).status == 200
