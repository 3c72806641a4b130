"""Delivering, seen by a real receiver and in the log (contract section 4)."""

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
import qstash
from msgspec import structs
from qstash.errors import SignatureError

from tests.support.application import (
    HOUR,
    MINUTE,
    SECOND,
    SETTINGS,
    T0,
    Application,
    Received,
    person,
    serving,
)
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.signing import SigningKeys

USER = DEV_USERS[0]
DAY = 24 * HOUR
FIRST_WAIT_MS = 7_389
"""e**2 s: how long the first retry waits where nobody asks for anything else."""

GOLDEN_KEY = "sig_561zQH6V9b96E63sS3b9wvGXosi7"
GOLDEN_BODY = b'{"message":"hello world"}'
GOLDEN_CLAIMS = {
    "aud": "",
    "body": "-W2NN1fvMhaq-XeOBIqq8IA8j7LJXqL8ZcSC1rhDMBU=",
    "exp": 1721069151,
    "iat": 1721068851,
    "iss": "Upstash",
    "jti": "jwt_6ckgA7RQnj6x3XMKSnfUb8atTsZP",
    "nbf": 1721068851,
    "sub": "https://webhook.site/77ae8988-eecf-4a01-9a76-2a37212c75a8",
}
GOLDEN_MARK = "ppulAF6fmnYfeVdR72HprfzLSIN_6KX65JOXwdxRMyk"


def claims_of(received: Received, *, key: str = USER.current) -> dict[str, Any]:
    """What a delivery is signed with, once the signature holds; time is the test's own."""
    found: dict[str, Any] = jwt.decode(
        received.header["Upstash-Signature"],
        key,
        algorithms=["HS256"],
        issuer="Upstash",
        options={
            "require": ["iss", "sub", "exp", "nbf", "iat", "jti"],
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        },
    )
    return found


async def retry_of(server: Application, message_id: str, *, number: int = 1) -> dict[str, Any]:
    """Wait until the log says RETRY for the `number`-th time; that entry."""
    await server.logged(message_id, "RETRY", times=number)
    log = await server.log(message_id)
    return [entry for entry in reversed(log) if entry["state"] == "RETRY"][number - 1]


async def delivered(server: Application) -> None:
    """Let the server look at what is due, by having it deliver something else."""
    await server.logged(await server.accepted(body=b"another"), "DELIVERED")


# What goes out.


async def test_a_delivery_says_whose_it_is(server: Application) -> None:
    """W177, W185: the user agent of the hosted service, the publisher's address, the region."""
    await server.accepted()

    header = (await server.receiver.only()).header
    assert header["User-Agent"] == "Upstash-QStash"
    assert header["Upstash-Caller-Ip"] == "127.0.0.1"
    assert header["Upstash-Region"] == SETTINGS.region
    assert header["Accept-Encoding"] == "identity"  # D20


async def test_the_region_is_the_operators() -> None:
    """W185."""
    async with serving(structs.replace(SETTINGS, region="US-EAST-1")) as server:
        await server.accepted()
        assert (await server.receiver.only()).header["Upstash-Region"] == "US-EAST-1"


async def test_nothing_else_of_ours_goes_out(server: Application) -> None:
    """W177, W178, W185, W19: these fields and no others."""
    await server.accepted(header={"Upstash-Label": "l", "Upstash-Queue-Name": "q", "X-Own": "1"})

    assert {name.title() for name in (await server.receiver.only()).header} == {
        "Host",
        "User-Agent",
        "Accept-Encoding",
        "Content-Length",
        "Upstash-Region",
        "Upstash-Caller-Ip",
        "Upstash-Message-Id",
        "Upstash-Retried",
        "Upstash-Signature",
        "Cdn-Loop",
    }


async def test_a_publisher_may_speak_for_itself_and_not_for_us(server: Application) -> None:
    """W20, W21, W177, W178: D6."""
    message_id = await server.accepted(
        header={
            "Content-Type": "text/plain",
            "Upstash-Forward-Content-Type": "text/x-forwarded",
            "Upstash-Forward-User-Agent": "mine/1.0",
            "Upstash-Forward-Authorization": "Bearer theirs",
            "Upstash-Forward-Host": "evil.example",
            "Upstash-Forward-Content-Length": "1",
            "Upstash-Forward-Upstash-Signature": "forged",
            "Upstash-Forward-Upstash-Message-Id": "forged",
            "Upstash-Forward-Upstash-Retried": "9",
        }
    )

    received = await server.receiver.only()
    header = received.header
    assert header.getall("Content-Type") == ["text/x-forwarded"]
    assert header.getall("User-Agent") == ["mine/1.0"]
    assert header.getall("Authorization") == ["Bearer theirs"]
    assert header.getall("Upstash-Message-Id") == [message_id]
    assert header.getall("Upstash-Retried") == ["0"]
    assert f"http://{header['Host']}/hook" == server.receiver.url
    assert len(header.getall("Upstash-Signature")) == 1
    assert claims_of(received)["sub"] == server.receiver.url
    assert received.body == b"hello"
    assert (await server.message(message_id))["header"] == {
        "Content-Type": ["text/x-forwarded"],
        "User-Agent": ["mine/1.0"],
        "Authorization": ["Bearer theirs"],
    }


async def test_every_attempt_has_the_id_and_says_how_many_were_made_before_it(
    server: Application,
) -> None:
    """W178: from 0."""
    server.receiver.answers(500)
    message_id = await server.accepted(
        header={"Upstash-Retries": "3", "Upstash-Retry-Delay": "1000"}
    )
    for number in (1, 2, 3):
        await retry_of(server, message_id, number=number)
        server.clock.advance(SECOND)
    await server.logged(message_id, "FAILED")

    received = await server.receiver.first(4)
    assert [one.header["Upstash-Retried"] for one in received] == ["0", "1", "2", "3"]
    assert {one.header["Upstash-Message-Id"] for one in received} == {message_id}


# The signature.


async def test_the_sdks_receiver_accepts_a_delivery_and_nothing_that_differs_from_it() -> None:
    """W179, W180, W182: by the current key or the next, at the time of day it is."""
    body = "snow ☃"
    async with serving(now_ms=time.time_ns() // 1_000_000) as server:
        await server.accepted(body=body.encode())
        signature = (await server.receiver.only()).header["Upstash-Signature"]
        url = server.receiver.url

    for keys in ((USER.current, USER.next), ("sig_rotated_away", USER.current)):
        qstash.Receiver(*keys).verify(signature=signature, body=body, url=url)
    for keys, said, to in (
        (("sig_other", USER.next), body, url),
        ((USER.current, USER.next), body + " ", url),
        ((USER.current, USER.next), body, url + "/"),
    ):
        with pytest.raises(SignatureError):
            qstash.Receiver(*keys).verify(signature=signature, body=said, url=to)


async def test_a_delivery_is_signed_as_the_hosted_services_golden_one_is(tmp_path: Path) -> None:
    """W179: the same key, moment and body give the same claims in the same order, and the mark
    is PyJWT's.  `nbf` is 0 and not `iat` (A20)."""
    golden = jwt.encode(GOLDEN_CLAIMS, GOLDEN_KEY, "HS256")
    assert golden.rpartition(".")[2] == GOLDEN_MARK
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    token = await person(settings, "golden", keys=SigningKeys(GOLDEN_KEY, "sig_next"))

    async with serving(settings, dev=False, token=token, now_ms=1_721_068_851_999) as server:
        await server.accepted(body=GOLDEN_BODY)
        received = await server.receiver.only()

    claims = claims_of(received, key=GOLDEN_KEY)
    changed = {"jti": claims["jti"], "nbf": 0, "sub": server.receiver.url}
    assert list(claims.items()) == list((GOLDEN_CLAIMS | changed).items())
    assert received.header["Upstash-Signature"] == jwt.encode(claims, GOLDEN_KEY, "HS256")
    assert golden.partition(".")[0] == received.header["Upstash-Signature"].partition(".")[0]


@pytest.mark.parametrize("rest", ["", "/", "?a=%20&b=%2F&&c=\"'", "//a/../b?u=http://x?y"])
async def test_the_subject_of_a_signature_is_the_exact_url(server: Application, rest: str) -> None:
    """W180."""
    url = server.receiver.url + rest
    await server.accepted(url)

    assert claims_of(await server.receiver.only())["sub"] == url


@pytest.mark.parametrize("body", [None, b"", b"{}", bytes(range(256)), b">>>???" * 99])
async def test_the_body_of_a_signature_is_a_padded_hash(
    server: Application, body: bytes | None
) -> None:
    """W181: of an empty body too; base64url, with its padding."""
    await server.accepted(body=body)

    digest = hashlib.sha256(body or b"").digest()
    claimed = claims_of(await server.receiver.only())["body"]
    assert claimed == base64.urlsafe_b64encode(digest).decode()
    if not body:
        assert claimed == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="


async def test_every_attempt_is_signed_anew(server: Application) -> None:
    """W182, W183: at its own moment, for five minutes, under an id of its own."""
    server.receiver.answers(500)
    message_id = await server.accepted(header={"Upstash-Retry-Delay": str(HOUR)})
    await retry_of(server, message_id)
    server.clock.advance(HOUR)
    await retry_of(server, message_id, number=2)
    other_id = await server.accepted()
    await retry_of(server, other_id)

    claims = [claims_of(received) for received in await server.receiver.first(3)]
    assert [one["iat"] - T0 // 1000 for one in claims] == [0, 3_600, 3_600]
    for one in claims:
        assert one["exp"] == one["iat"] + 300
        assert one["nbf"] <= one["iat"]
        assert one["jti"].startswith("jwt_")
    assert len({one["jti"] for one in claims}) == 3


# What an answer means.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 226, 299])
async def test_every_2xx_is_a_success(server: Application, status: int) -> None:
    """W186."""
    server.receiver.answers(status)
    message_id = await server.accepted()

    assert await server.logged(message_id, "DELIVERED") == ["CREATED", "ACTIVE", "DELIVERED"]


@pytest.mark.parametrize(
    "status", [300, 301, 304, 308, 400, 401, 404, 408, 410, 429, 489, 500, 503, 599]
)
async def test_every_other_status_is_tried_again(server: Application, status: int) -> None:
    """W186."""
    server.receiver.answers(status)
    message_id = await server.accepted()

    assert (await retry_of(server, message_id))["nextDeliveryTime"] == T0 + FIRST_WAIT_MS
    errors = [entry for entry in await server.log(message_id) if entry["state"] == "ERROR"]
    assert [entry["responseStatus"] for entry in errors] == [status]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(
    server: Application, status: int
) -> None:
    """W186: A35."""
    server.receiver.answers(status, header={"Location": server.receiver.url + "/elsewhere"})
    message_id = await server.accepted(header={"Upstash-Retries": "0"})

    await server.logged(message_id, "FAILED")

    assert [received.target for received in server.receiver.received] == ["/hook"]


async def test_a_destination_that_cannot_be_reached_is_tried_again(server: Application) -> None:
    """W186."""
    message_id = await server.accepted("http://127.0.0.1:1/closed")

    assert (await retry_of(server, message_id))["nextDeliveryTime"] == T0 + FIRST_WAIT_MS


async def test_a_timeout_is_tried_again(server: Application) -> None:
    """W49, W186: the attempt ends, and is a failure like any other."""
    server.receiver.hold()
    message_id = await server.accepted(header={"Upstash-Timeout": "1s"})

    assert (await retry_of(server, message_id))["nextDeliveryTime"] == T0 + FIRST_WAIT_MS
    [error] = [entry for entry in await server.log(message_id) if entry["state"] == "ERROR"]
    assert error["responseStatus"] == 0
    assert "timed out" in error["error"] or "timeout" in error["error"]
    server.receiver.let_go()
    server.clock.advance(FIRST_WAIT_MS)
    await server.logged(message_id, "DELIVERED")


# When it is tried again.


async def test_a_retry_comes_when_its_time_has_come_and_not_before(server: Application) -> None:
    """W187: 7.389 s later, to the millisecond."""
    server.receiver.answers_once(500)
    message_id = await server.accepted()
    retry = await retry_of(server, message_id)

    server.clock.advance(retry["nextDeliveryTime"] - T0 - 1)
    await delivered(server)
    assert (await server.states(message_id))[-1] == "RETRY"
    server.clock.advance(1)

    states = await server.logged(message_id, "DELIVERED")
    assert states == ["CREATED", "ACTIVE", "ERROR", "RETRY", "ACTIVE", "DELIVERED"]


async def waits(server: Application, *, retries: int) -> list[int]:
    """How long each retry of a message that always fails waits."""
    server.receiver.answers(500)
    message_id = await server.accepted(header={"Upstash-Retries": str(retries)})
    found = []
    for number in range(1, retries + 1):
        retry = await retry_of(server, message_id, number=number)
        found.append(retry["nextDeliveryTime"] - server.clock.now_ms())
        server.clock.advance(found[-1])
    await server.logged(message_id, "FAILED")
    return found


async def test_the_waits_are_those_that_are_promised(server: Application) -> None:
    """W187: 7.4 s, 54.6 s, 6 m 43 s, 49 m 41 s, 6 h 7 m, and a day from then on."""
    assert await waits(server, retries=7) == [
        7_389,
        54_598,
        403_429,
        2_980_958,
        22_026_466,
        DAY,
        DAY,
    ]


async def test_the_waits_of_the_hosted_service_are_one_setting_away() -> None:
    """W187, A1: e ** (2.5 * n)."""
    async with serving(structs.replace(SETTINGS, backoff_exponent=2.5)) as server:
        assert await waits(server, retries=3) == [12_182, 148_413, 1_808_042]


async def test_a_retry_delay_is_heeded_and_no_longer_than_a_day(server: Application) -> None:
    """W61, W187: instead of the default."""
    server.receiver.answers(500)
    for expression, wait_ms in (
        ("1500", 1_500),
        ("pow(2, retried) * 1000", 1_000),
        ("retried * 1000", 0),
        ("0 - 5", 0),
        ("1e300", DAY),
    ):
        message_id = await server.accepted(
            header={"Upstash-Retry-Delay": expression, "Upstash-Retries": "1"}
        )
        assert (await retry_of(server, message_id))["nextDeliveryTime"] == T0 + wait_ms, expression


def date(wait_ms: int) -> str:
    return format_datetime(datetime.fromtimestamp(T0 / 1000, UTC) + timedelta(milliseconds=wait_ms),
                           usegmt=True)  # fmt: skip


ASKED: dict[str, tuple[Mapping[str, str], int]] = {
    # W188
    "seconds": ({"Retry-After": "120"}, 120 * SECOND),
    "a fraction of seconds": ({"Retry-After": "1.5"}, 1_500),
    "a name in lower case": ({"retry-after": "2"}, 2 * SECOND),
    # W189
    "a date": ({"Retry-After": date(90 * SECOND)}, 90 * SECOND),
    "a date in UTC": ({"Retry-After": date(90 * SECOND).replace("GMT", "UTC")}, 90 * SECOND),
    "a date in the past": ({"Retry-After": date(-HOUR)}, 0),
    # W190
    "minutes and seconds": ({"Retry-After": "6m5s"}, 365 * SECOND),
    "hours and a fraction": ({"Retry-After": "1.5h"}, 90 * MINUTE),
    "milliseconds": ({"Retry-After": "250ms"}, 250),
    "microseconds, rounded up": ({"Retry-After": "1001us"}, 2),
    "a duration with its sign": ({"Retry-After": "+6m5s"}, 365 * SECOND),
    # W191
    "nothing": ({"Retry-After": "0"}, 0),
    "nothing, as a duration": ({"Retry-After": "0s"}, 0),
    # W192
    "exactly a day": ({"Retry-After": "86400"}, DAY),
    "more than a day": ({"Retry-After": "86401"}, FIRST_WAIT_MS),
    "hardly more than a day": ({"Retry-After": "86400.001"}, FIRST_WAIT_MS),
    "more than a day, as a duration": ({"Retry-After": "25h"}, FIRST_WAIT_MS),
    "a date after more than a day": ({"Retry-After": date(DAY + SECOND)}, FIRST_WAIT_MS),
    "what nobody can read": ({"Retry-After": "soon"}, FIRST_WAIT_MS),
    "less than nothing": ({"Retry-After": "-5"}, FIRST_WAIT_MS),
    # W193
    "a reset": ({"X-RateLimit-Reset": "30"}, 30 * SECOND),
    "a reset of requests": ({"X-RateLimit-Reset-Requests": "1m"}, MINUTE),
    "a reset of tokens": ({"X-RateLimit-Reset-Tokens": date(45 * SECOND)}, 45 * SECOND),
    "a reset after more than a day": ({"X-RateLimit-Reset-Tokens": "48h"}, FIRST_WAIT_MS),
    "several": (
        {
            "X-RateLimit-Reset-Tokens": "4",
            "X-RateLimit-Reset-Requests": "3",
            "X-RateLimit-Reset": "2",
            "Retry-After": "1",
        },
        SECOND,
    ),
    "several resets": (
        {
            "X-RateLimit-Reset-Tokens": "4",
            "X-RateLimit-Reset-Requests": "3",
            "X-RateLimit-Reset": "2",
        },
        2 * SECOND,
    ),
    "the last two": (
        {"X-RateLimit-Reset-Tokens": "4", "X-RateLimit-Reset-Requests": "3"},
        3 * SECOND,
    ),
    "one of two that can be used": (
        {"Retry-After": "2000000", "X-RateLimit-Reset": "2"},
        2 * SECOND,
    ),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_a_destination_says_when_to_come_again(server: Application, asked: str) -> None:
    """W188, W189, W190, W191, W192, W193: in the order in which the contract lists the fields."""
    header, wait_ms = ASKED[asked]
    server.receiver.answers_once(429, header=header)
    message_id = await server.accepted()
    retry = await retry_of(server, message_id)

    assert retry["nextDeliveryTime"] == T0 + wait_ms
    if wait_ms:
        server.clock.advance(wait_ms - 1)
        await delivered(server)
        assert (await server.states(message_id))[-1] == "RETRY"
        server.clock.advance(1)
    await server.logged(message_id, "DELIVERED")


async def test_what_the_destination_asks_for_comes_before_what_the_publisher_does(
    server: Application,
) -> None:
    """W188: and that is heeded for an answer that asks for too long (W192)."""
    for header, wait_ms in (({"Retry-After": "5"}, 5 * SECOND), ({"Retry-After": "30h"}, 700)):
        server.receiver.answers(503, header=header)
        message_id = await server.accepted(header={"Upstash-Retry-Delay": "700"})
        assert (await retry_of(server, message_id))["nextDeliveryTime"] == T0 + wait_ms


async def test_asking_for_a_retry_gives_no_more_retries(server: Application) -> None:
    """W188, W191, W38."""
    server.receiver.answers(503, header={"Retry-After": "0"})
    message_id = await server.accepted(header={"Upstash-Retries": "2"})

    states = await server.logged(message_id, "FAILED")

    assert states == ["CREATED", *["ACTIVE", "ERROR", "RETRY"] * 2, "ACTIVE", "ERROR", "FAILED"]


# When it is not.


@pytest.mark.parametrize("value", ["true", "True"])
async def test_a_destination_says_that_no_retry_can_help(server: Application, value: str) -> None:
    """W194: 489 and its header; the dead letter shows the answer."""
    server.receiver.answers_once(489, b"never", header={"Upstash-NonRetryable-Error": value})
    message_id = await server.accepted(header={"Upstash-Retries": "5"})

    assert await server.logged(message_id, "FAILED") == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    dead = await server.dead_letter(message_id)
    assert (dead["responseStatus"], dead["responseBody"]) == (489, "never")
    server.clock.advance(2 * DAY)
    await delivered(server)
    assert [one.body for one in server.receiver.received] == [b"hello", b"another"]


@pytest.mark.parametrize(
    ("status", "header"),
    [
        (489, {}),
        (489, {"Upstash-NonRetryable-Error": "false"}),
        (488, {"Upstash-NonRetryable-Error": "true"}),
        (500, {"Upstash-NonRetryable-Error": "true"}),
    ],
)
async def test_489_and_its_header_are_both_needed(
    server: Application, status: int, header: dict[str, str]
) -> None:
    """W194, A36: either alone is a failure like any other."""
    server.receiver.answers(status, header=header)
    message_id = await server.accepted()

    assert (await retry_of(server, message_id))["nextDeliveryTime"] == T0 + FIRST_WAIT_MS


# In order.


async def enqueue(server: Application, queue: str, body: bytes, **fields: str) -> str:
    reply = await server.ask(
        "POST",
        f"/v2/enqueue/{queue}/{server.receiver.url}",
        header={f"Upstash-{name.replace('_', '-')}": value for name, value in fields.items()},
        body=body,
    )
    assert reply.status == 200, reply
    return str(reply.json["messageId"])


async def test_a_queue_waits_for_its_first_as_long_as_that_may_still_succeed(
    server: Application,
) -> None:
    """W78: by the default waits too; and nobody else waits for it."""
    server.receiver.answers_once(500)
    first = await enqueue(server, "q", b"first", Retries="2")
    second = await enqueue(server, "q", b"second")
    for number, wait_ms in ((1, FIRST_WAIT_MS), (2, 54_598)):
        await retry_of(server, first, number=number)
        server.clock.advance(wait_ms - 1)
        await delivered(server)
        assert await server.states(second) == ["CREATED"]
        server.receiver.answers_once(500 if number == 1 else 200)
        server.clock.advance(1)
    await server.logged(second, "DELIVERED")
    await server.logged(first, "DELIVERED")

    received = [one.body for one in server.receiver.received]
    assert [body for body in received if body != b"another"] == [b"first"] * 3 + [b"second"]


async def test_a_delayed_message_joins_its_queue_when_its_delay_ends(server: Application) -> None:
    """W78, D23: it blocks nobody before, and nobody overtakes it after."""
    await enqueue(server, "q", b"delayed", Delay="1m")
    early = await enqueue(server, "q", b"early")
    await server.logged(early, "DELIVERED")
    server.receiver.hold()
    await enqueue(server, "q", b"blocker")
    await server.receiver.first(2)
    server.clock.advance(2 * MINUTE)
    last = await enqueue(server, "q", b"last")
    server.receiver.let_go()
    await server.logged(last, "DELIVERED")

    assert [one.body for one in await server.receiver.first(4)] == [
        b"early",
        b"blocker",
        b"delayed",
        b"last",
    ]


async def test_queues_do_not_wait_for_each_other(server: Application) -> None:
    """W80: one at a time in each, all of them at once."""
    server.receiver.hold()
    for number in range(3):
        for queue in ("a", "b", "c"):
            await enqueue(server, queue, f"{queue}{number}".encode())

    heads = await server.receiver.first(3)
    assert {one.body for one in heads} == {b"a0", b"b0", b"c0"}
    server.receiver.let_go()
    received = [one.body.decode() for one in await server.receiver.first(9)]
    for queue in ("a", "b", "c"):
        assert [body for body in received if body.startswith(queue)] == [
            f"{queue}{number}" for number in range(3)
        ]
