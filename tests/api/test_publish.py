"""Publishing and enqueueing, over HTTP, to an assembled server (contract sections 1 and 2)."""

import asyncio

import pytest

from tests.support.application import HOUR, MINUTE, SECOND, T0, Application

DAY = 24 * HOUR


async def test_publishing_answers_with_the_id_of_the_message(server: Application) -> None:
    """W14, W15: JSON with a messageId that begins with msg_ and is safe in a path."""
    reply = await server.publish()

    assert reply.status == 200
    assert list(reply.json) == ["messageId"]
    message_id = reply.json["messageId"]
    assert message_id.startswith("msg_")
    assert message_id.removeprefix("msg_").isalnum()


async def test_a_body_is_delivered_byte_for_byte(server: Application) -> None:
    """W16: binary too."""
    body = bytes(range(256)) * 300
    await server.accepted(body=body)

    assert (await server.receiver.only()).body == body


@pytest.mark.parametrize("body", [None, b""])
async def test_an_empty_body_is_a_body(server: Application, body: bytes | None) -> None:
    """W17."""
    await server.accepted(body=body)

    assert (await server.receiver.only()).body == b""


async def test_the_content_type_is_passed_on(server: Application) -> None:
    """W18."""
    message_id = await server.accepted(header={"Content-Type": "application/json"}, body=b"{}")

    assert (await server.receiver.only()).header["Content-Type"] == "application/json"
    assert (await server.message(message_id))["header"] == {"Content-Type": ["application/json"]}


async def test_no_content_type_is_invented(server: Application) -> None:
    """W19."""
    message_id = await server.accepted()

    assert "Content-Type" not in (await server.receiver.only()).header
    assert (await server.message(message_id))["header"] == {}


async def test_forwarded_fields_lose_their_prefix(server: Application) -> None:
    """W20."""
    await server.accepted(header={"Upstash-Forward-My-Header": "my value"})

    received = await server.receiver.only()
    assert received.header["My-Header"] == "my value"
    assert not [name for name in received.header if name.lower().startswith("upstash-forward")]


async def test_the_header_of_a_message_is_what_is_forwarded_in_canonical_names(
    server: Application,
) -> None:
    """W21, W22: nothing of the request's own."""
    message_id = await server.accepted(
        header={
            "upstash-forward-test-header": "test-value",
            "content-type": "text/plain",
            "user-agent": "somebody/1.0",
            "accept": "*/*",
            "x-other": "stays here",
        }
    )

    assert (await server.message(message_id))["header"] == {
        "Test-Header": ["test-value"],
        "Content-Type": ["text/plain"],
    }


async def test_a_joined_value_stays_joined(server: Application) -> None:
    """W23."""
    message_id = await server.accepted(header={"Upstash-Forward-Test": "a, b"})

    assert (await server.receiver.only()).header.getall("Test") == ["a, b"]
    assert (await server.message(message_id))["header"]["Test"] == ["a, b"]


async def test_all_fields_are_passed_on_where_asked(server: Application) -> None:
    """W24: but for our token and our configuration."""
    await server.accepted(
        header={"Upstash-Header-Forward": "true", "X-Signature": "abc", "Upstash-Retries": "1"}
    )

    header = (await server.receiver.only()).header
    assert header["X-Signature"] == "abc"
    assert "Authorization" not in header
    assert "Upstash-Header-Forward" not in header


@pytest.mark.parametrize(
    "rest",
    ["?foo=bar", "/a//b/./../c?x=%2F&y=a+b&&z", "?a=1&b=2&a=3", "/%7Euser/?q", "/p?u=http://x?y"],
)
async def test_a_destination_is_echoed_and_called_byte_for_byte(
    server: Application, rest: str
) -> None:
    """W8, W25, W26: no redirect, no cleaning, the query kept."""
    url = server.receiver.url + rest
    message_id = await server.accepted(url)

    assert (await server.message(message_id))["url"] == url
    assert (await server.receiver.only()).target == "/hook" + rest


async def test_no_slash_is_added_to_a_destination(server: Application) -> None:
    """W26."""
    base = server.receiver.url.removesuffix("/hook")
    for url in (base, base + "/"):
        message_id = await server.accepted(url, header={"Upstash-Delay": "1h"})
        assert (await server.message(message_id))["url"] == url


async def test_configuration_is_taken_out_of_the_query(server: Application) -> None:
    """W27, W28, W29: and is heeded."""
    url = server.receiver.url
    message_id = await server.accepted(
        f"{url}?a=1&upstash-retries=7&qstash_token=xyz&b=%20&upstash-delay=100s&upstash-odd=1"
    )

    message = await server.message(message_id)
    assert message["url"] == f"{url}?a=1&b=%20"
    assert message["maxRetries"] == 7
    assert message["notBefore"] == T0 + 100 * SECOND


async def test_a_header_beats_a_query_parameter(server: Application) -> None:
    """D3; and an empty header is none (W13)."""
    message_id = await server.accepted(
        server.receiver.url + "?upstash-retries=7", header={"Upstash-Retries": "2"}
    )
    other_id = await server.accepted(
        server.receiver.url + "?upstash-retries=7", header={"Upstash-Retries": ""}
    )

    assert (await server.message(message_id))["maxRetries"] == 2
    assert (await server.message(other_id))["maxRetries"] == 7


@pytest.mark.parametrize(
    "destination",
    [
        "ftp://example.com",
        "example.com",
        "http%3A%2F%2Fexample.com",
        "https%3A%2F%2Fexample.com%2Fa",
    ],
)
async def test_a_destination_without_http_is_refused_in_the_words_of_the_hosted_service(
    server: Application, destination: str
) -> None:
    """W30, W33."""
    reply = await server.publish(destination)

    assert reply.status == 400
    assert reply.json == {
        "error": "invalid destination url: endpoint has invalid scheme, add http:// or https://"
    }


@pytest.mark.parametrize("path", ["/v2/publish/", "/v2/publish", "/v2/enqueue/q/", "/v2/enqueue/q"])
async def test_an_empty_destination_is_refused(server: Application, path: str) -> None:
    """W31."""
    reply = await server.ask("POST", path)

    assert reply.status == 400
    assert "a non-empty destination must be provided" in reply.json["error"]


async def test_an_unknown_group_is_refused(server: Application) -> None:
    """W32."""
    reply = await server.publish("non_existing_url_group")

    assert reply.status in (400, 404)
    assert "topic non_existing_url_group not found" in reply.json["error"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_the_method_is_the_one_asked_for_and_the_body_is_kept(
    server: Application, method: str
) -> None:
    """W34, W35: also for GET."""
    message_id = await server.accepted(header={"Upstash-Method": method}, body=b"kept")

    received = await server.receiver.only()
    assert (received.method, received.body) == (method, b"kept")
    assert (await server.message(message_id))["method"] == method


async def test_what_is_not_said_has_its_default(server: Application) -> None:
    """W36, W37: POST, and three retries."""
    message = await server.message(await server.accepted())

    assert message["method"] == "POST"
    assert message["maxRetries"] == 3


async def test_no_retries_means_one_attempt(server: Application) -> None:
    """W38."""
    server.receiver.answers(500)
    message_id = await server.accepted(header={"Upstash-Retries": "0"})

    assert await server.logged(message_id, "FAILED") == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    assert (await server.message(message_id))["maxRetries"] == 0
    assert len(server.receiver.received) == 1


async def test_more_retries_than_allowed_are_refused(server: Application) -> None:
    """W39, W40: in the words of the hosted service; 5 are always fine."""
    reply = await server.publish(header={"Upstash-Retries": "101"})

    assert (reply.status, reply.json) == (400, {"error": "quota maxRetries exceeded"})
    await server.accepted(header={"Upstash-Retries": "5"})


@pytest.mark.parametrize(
    ("delay", "wait_ms"),
    [
        ("5s", 5 * SECOND),
        ("60s", MINUTE),
        ("10d", 10 * DAY),
        ("1d10h30m", DAY + 10 * HOUR + 30 * MINUTE),
        ("0s", 0),
    ],
)
async def test_a_delay_is_added_to_now(server: Application, delay: str, wait_ms: int) -> None:
    """W41, W42, W43, W44."""
    message = await server.message(await server.accepted(header={"Upstash-Delay": delay}))

    assert message["createdAt"] == T0
    assert message["notBefore"] == T0 + wait_ms


async def test_a_delayed_message_goes_when_its_time_has_come(server: Application) -> None:
    """W44: and not before."""
    message_id = await server.accepted(header={"Upstash-Delay": "1m"})
    server.clock.advance(MINUTE - 1)
    await server.accepted(body=b"another")
    assert (await server.receiver.only()).body == b"another"
    assert await server.states(message_id) == ["CREATED"]

    server.clock.advance(1)

    assert [received.body for received in await server.receiver.first(2)] == [b"another", b"hello"]


async def test_not_before_is_in_seconds_and_beats_a_delay(server: Application) -> None:
    """W45, W46."""
    at_s = T0 // 1000 + 500
    for header in ({}, {"Upstash-Delay": "1h"}):
        message_id = await server.accepted(header={"Upstash-Not-Before": str(at_s), **header})
        assert (await server.message(message_id))["notBefore"] == at_s * 1000


async def test_not_before_in_the_past_means_now(server: Application) -> None:
    """W45."""
    message_id = await server.accepted(header={"Upstash-Not-Before": "1"})

    assert (await server.message(message_id))["notBefore"] == T0


@pytest.mark.parametrize("duration", ["5", "s", "5x", "-5s", "5 s", "1.5s", "1h 5m", "5S"])
async def test_what_is_no_duration_is_refused_by_name(server: Application, duration: str) -> None:
    """W47."""
    reply = await server.publish(header={"Upstash-Delay": duration})

    assert reply.status == 400
    assert reply.json["error"].startswith("Upstash-Delay: ")


@pytest.mark.parametrize(
    ("asked", "timeout_ms"),
    [("90s", 90 * SECOND), ("1s", SECOND), ("1h30m", 90 * MINUTE), ("30", 30 * SECOND)],
)
async def test_a_timeout_is_kept(server: Application, asked: str, timeout_ms: int) -> None:
    """W48, W50: shown by the log, in milliseconds."""
    message_id = await server.accepted(header={"Upstash-Timeout": asked})

    assert {entry["timeout"] for entry in await server.log(message_id)} == {timeout_ms}


async def test_an_attempt_that_takes_longer_than_its_timeout_has_failed(
    server: Application,
) -> None:
    """W49."""
    server.receiver.hold()
    message_id = await server.accepted(header={"Upstash-Timeout": "1s", "Upstash-Retries": "0"})

    assert await server.logged(message_id, "FAILED") == ["CREATED", "ACTIVE", "ERROR", "FAILED"]


async def test_a_timeout_over_the_limit_is_refused(server: Application) -> None:
    """W48, W50: 1d1h30m can be read, and is longer than two hours."""
    reply = await server.publish(header={"Upstash-Timeout": "1d1h30m"})

    assert reply.status == 400
    assert "maxTimeout" in reply.json["error"]


async def test_a_second_publish_of_an_id_is_answered_with_the_first(server: Application) -> None:
    """W51."""
    header = {"Upstash-Deduplication-Id": "order-1"}
    first = await server.publish(header=header)
    second = await server.publish(header=header, body=b"something else")

    assert first.status == 200
    assert second.status == 202
    assert second.json == {"messageId": first.json["messageId"], "deduplicated": True}
    await server.logged(first.json["messageId"], "DELIVERED")
    assert len(server.receiver.received) == 1


async def test_of_publishes_at_the_same_moment_one_is_accepted(server: Application) -> None:
    """W51."""
    header = {"Upstash-Deduplication-Id": "order-1"}
    replies = await asyncio.gather(*(server.publish(header=header) for _ in range(20)))

    assert len({reply.json["messageId"] for reply in replies}) == 1
    assert sorted(reply.status for reply in replies) == [200] + [202] * 19


async def test_after_ten_minutes_an_id_is_free_again(server: Application) -> None:
    """W52."""
    header = {"Upstash-Deduplication-Id": "order-1"}
    first_id = await server.accepted(header=header)
    server.clock.advance(10 * MINUTE - 1)
    assert (await server.publish(header=header)).status == 202
    server.clock.advance(1)

    assert await server.accepted(header=header) != first_id


async def test_cancelling_does_not_free_an_id(server: Application) -> None:
    """D2."""
    header = {"Upstash-Deduplication-Id": "order-1", "Upstash-Delay": "1h"}
    message_id = await server.accepted(header=header)
    await server.ask("DELETE", f"/v2/messages/{message_id}")

    assert (await server.publish(header=header)).status == 202


async def test_a_colon_in_a_deduplication_id_is_refused(server: Application) -> None:
    """W53."""
    reply = await server.publish(header={"Upstash-Deduplication-Id": "a:b"})

    assert (reply.status, reply.json) == (400, {"error": "DeduplicationId cannot contain ':'"})


@pytest.mark.parametrize("truth", ["true", "True", "TRUE"])
async def test_content_is_compared_where_asked(server: Application, truth: str) -> None:
    """W54, W55."""
    header = {"Upstash-Content-Based-Deduplication": truth}
    first_id = await server.accepted(header=header)
    second = await server.publish(header=header)

    assert (second.status, second.json["messageId"]) == (202, first_id)
    assert (await server.publish(header=header, body=b"other")).status == 200


async def test_false_is_false_in_any_case(server: Application) -> None:
    """W55."""
    for falsehood in ("false", "False"):
        header = {"Upstash-Content-Based-Deduplication": falsehood}
        assert await server.accepted(header=header) != await server.accepted(header=header)


async def test_content_includes_forwarded_fields_and_content_type(server: Application) -> None:
    """W56."""
    header = {"Upstash-Content-Based-Deduplication": "true"}
    variants = [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json"},
        {"Upstash-Forward-A": "1"},
        {"Upstash-Forward-A": "2"},
    ]
    found = {await server.accepted(header=header | variant) for variant in variants}

    assert len(found) == len(variants)


async def test_one_label_is_the_label(server: Application) -> None:
    """W57."""
    message = await server.message(await server.accepted(header={"Upstash-Label": "one"}))

    assert (message["label"], message["labels"]) == ("one", ["one"])


async def test_of_several_labels_the_first_is_the_label(server: Application) -> None:
    """W58."""
    message = await server.message(
        await server.accepted(header={"Upstash-Label": "one, two,three"})
    )

    assert (message["label"], message["labels"]) == ("one", ["one", "two", "three"])


@pytest.mark.parametrize(
    "expression",
    [
        "1000",
        "pow(2, retried) * 1000",
        "max(1000, min(sqrt(4), abs(-3)) + exp(1) - floor(1.5) / ceil(0.5) + round(2.4))",
    ],
)
async def test_a_retry_delay_is_kept_as_it_was_written(
    server: Application, expression: str
) -> None:
    """W59, W60."""
    message_id = await server.accepted(header={"Upstash-Retry-Delay": expression})

    assert (await server.message(message_id))["retryDelayExpression"] == expression


async def test_a_retry_delay_is_in_milliseconds_and_counts_from_zero(server: Application) -> None:
    """W61."""
    server.receiver.answers(500)
    message_id = await server.accepted(header={"Upstash-Retry-Delay": "1000 * (1 + retried)"})
    await server.logged(message_id, "RETRY")
    [retry] = [entry for entry in await server.log(message_id) if entry["state"] == "RETRY"]
    assert retry["nextDeliveryTime"] == T0 + 1000

    server.clock.advance(1000)
    await server.logged(message_id, "RETRY", times=2)

    assert (await server.log(message_id))[0]["nextDeliveryTime"] == T0 + 1000 + 2000


@pytest.mark.parametrize("expression", ["1 +", "retries", "__import__('os')", "pow(2)", "2 ** 3"])
async def test_what_is_no_expression_is_refused(server: Application, expression: str) -> None:
    """W62."""
    reply = await server.publish(header={"Upstash-Retry-Delay": expression})

    assert reply.status == 400
    assert reply.json["error"].startswith("Upstash-Retry-Delay: ")


async def test_empty_headers_count_as_absent(server: Application) -> None:
    """W13: Terraform's provider sends all of them."""
    names = ["Callback", "Failure-Callback", "Method", "Retries", "Timeout", "Label"]
    names += ["Deduplication-Id", "Queue-Name", "Not-Before", "Cron", "Flow-Control-Key"]
    header = {f"Upstash-{name}": "" for name in names}
    message_id = await server.accepted(header={**header, "Content-Type": "", "Upstash-Delay": "0s"})

    message = await server.message(message_id)
    assert message["header"] == {}
    assert message["method"] == "POST"
    assert "queueName" not in message


async def test_what_we_do_not_know_of_upstash_is_ignored_and_not_passed_on(
    server: Application,
) -> None:
    """W12."""
    message_id = await server.accepted(
        header={"Upstash-Telemetry-Sdk": "a, b", "Upstash-Workflow-Init": "true"}
    )

    header = (await server.receiver.only()).header
    assert "Upstash-Telemetry-Sdk" not in header
    assert "Upstash-Workflow-Init" not in header
    assert (await server.message(message_id))["header"] == {}


async def test_a_published_message_is_on_the_log_and_reaches_its_end(server: Application) -> None:
    """W14, W165: one DELIVERED."""
    message_id = await server.accepted()

    assert await server.logged(message_id, "DELIVERED") == ["CREATED", "ACTIVE", "DELIVERED"]


async def test_enqueueing_makes_the_queue(server: Application) -> None:
    """W75, W76: with parallelism 1, and the message names it."""
    reply = await server.ask("POST", f"/v2/enqueue/my-queue/{server.receiver.url}", body=b"hello")

    assert reply.status == 200
    message = await server.message(reply.json["messageId"])
    assert message["queueName"] == "my-queue"
    queue = (await server.ask("GET", "/v2/queues/my-queue")).json
    assert queue["parallelism"] == 1


async def test_a_publish_that_names_a_queue_is_an_enqueue(server: Application) -> None:
    """W75: W236 of the contract, which the MCP server relies on."""
    message_id = await server.accepted(header={"Upstash-Queue-Name": "q"})

    assert (await server.message(message_id))["queueName"] == "q"


@pytest.mark.parametrize("name", ["a b", "a%20b", "a,b", "ä", "%00", "a%2Fb", "x" * 300])
async def test_a_bad_queue_name_is_refused(server: Application, name: str) -> None:
    """W115 of the contract: letters, digits, - _ and . only."""
    path = f"/v2/enqueue/{name.replace(' ', '+').replace('ä', '%C3%A4')}/{server.receiver.url}"
    reply = await server.ask("POST", path)

    assert reply.status == 400
    assert await server.log() == []


async def test_queue_names_may_begin_with_a_dash(server: Application) -> None:
    """W76: nanoid makes such names."""
    for name in ("-q", "_q", "q.1", "Q-_."):
        reply = await server.ask("POST", f"/v2/enqueue/{name}/{server.receiver.url}")
        assert (await server.message(reply.json["messageId"]))["queueName"] == name


async def test_a_queue_delivers_in_order_and_waits_for_retries(server: Application) -> None:
    """W78: the second goes when the first has ended, not when it has failed once."""
    server.receiver.answers(500)
    header = {"Upstash-Retry-Delay": "1000", "Upstash-Retries": "1"}
    for body in (b"first", b"second"):
        await server.ask("POST", f"/v2/enqueue/q/{server.receiver.url}", body=body, header=header)
    await server.receiver.first(1)
    [first] = {entry["messageId"] for entry in await server.log() if entry["state"] == "ACTIVE"}
    await server.logged(first, "RETRY")
    assert len(server.receiver.received) == 1
    server.clock.advance(1000)
    await server.logged(first, "FAILED")

    assert [received.body for received in await server.receiver.first(3)] == [
        b"first",
        b"first",
        b"second",
    ]


async def test_a_queue_sends_one_at_a_time(server: Application) -> None:
    """W80: parallelism 1."""
    server.receiver.hold()
    for number in range(5):
        await server.ask("POST", f"/v2/enqueue/q/{server.receiver.url}", body=b"%d" % number)
    await server.receiver.first(1)
    other_id = await server.accepted(body=b"outside")
    await server.receiver.first(2)
    assert len(server.receiver.received) == 2
    server.receiver.let_go()

    received = await server.receiver.first(6)
    await server.logged(other_id, "DELIVERED")
    inside = [one.body for one in received if one.body != b"outside"]
    assert inside == [b"0", b"1", b"2", b"3", b"4"]
