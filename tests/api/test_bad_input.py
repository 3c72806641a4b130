"""What is wrong is refused in JSON, and changes nothing (reliability 3.F, D33, D34).

Each case is raw bytes to an assembled server.  Its answer is a 4xx whose body
is `{"error": …}` (W4); afterwards there is no message and no log, nothing was
delivered, and the next good request is answered, by the same server for all cases.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec import structs

from tests.support.application import SETTINGS, Application, serving, until
from tests.support.raw_http import exchange
from waypost.api import exchange as bodies
from waypost.domain.dev_users import DEV_USERS

TOKEN = b"Authorization: Bearer %b\r\n" % DEV_USERS[0].token.encode()
GOOD = b"http://127.0.0.1:9/hook"
LONG = b"a" * 300


def request(
    line: bytes, *fields: bytes, body: bytes = b"", token: bytes = TOKEN, length: bool = True
) -> bytes:
    lines = [line + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", token]
    lines += [field + b"\r\n" for field in fields]
    if length and body:
        lines.append(b"Content-Length: %d\r\n" % len(body))
    return b"".join([*lines, b"\r\n", body])


def publish(*fields: bytes, to: bytes = GOOD, body: bytes = b"hello") -> bytes:
    return request(b"POST /v2/publish/" + to, *fields, body=body)


HEADERS = {
    name: publish(field)
    for name, field in {
        "a method that is none": b"Upstash-Method: FROB",
        "a method that is two": b"Upstash-Method: GET POST",
        "a method we do not deliver": b"Upstash-Method: CONNECT",
        "retries that are no number": b"Upstash-Retries: many",
        "negative retries": b"Upstash-Retries: -1",
        "retries with a fraction": b"Upstash-Retries: 1.5",
        "too many retries": b"Upstash-Retries: 101",
        "retries beyond counting": b"Upstash-Retries: " + b"9" * 400,
        "retries in other digits": "Upstash-Retries: ٣".encode(),
        "retries in hexadecimal": b"Upstash-Retries: 0x3",
        "a delay without a unit": b"Upstash-Delay: 10",
        "a delay with an unknown unit": b"Upstash-Delay: 10w",
        "a negative delay": b"Upstash-Delay: -5s",
        "a delay that is a word": b"Upstash-Delay: tomorrow",
        "a delay over a year": b"Upstash-Delay: 366d",
        "a delay beyond counting": b"Upstash-Delay: " + b"9" * 400 + b"d",
        "not-before that is no number": b"Upstash-Not-Before: soon",
        "not-before that is negative": b"Upstash-Not-Before: -1",
        "not-before with a fraction": b"Upstash-Not-Before: 1700000000.5",
        "not-before in milliseconds": b"Upstash-Not-Before: 1700000000000",
        "not-before beyond counting": b"Upstash-Not-Before: " + b"9" * 400,
        "a timeout that is a word": b"Upstash-Timeout: long",
        "a negative timeout": b"Upstash-Timeout: -1s",
        "a timeout over two hours": b"Upstash-Timeout: 3h",
        "a timeout beyond counting": b"Upstash-Timeout: " + b"9" * 400,
        "a retry delay that is code": b"Upstash-Retry-Delay: __import__('os').system('x')",
        "a retry delay with an unknown name": b"Upstash-Retry-Delay: retires * 1000",
        "a retry delay with an unknown function": b"Upstash-Retry-Delay: sin(1)",
        "a retry delay cut short": b"Upstash-Retry-Delay: 1000 * (1 + retried",
        "a retry delay too deep": b"Upstash-Retry-Delay: " + b"(" * 3000 + b"1" + b")" * 3000,
        "a retry delay of an attribute": b"Upstash-Retry-Delay: retried.__class__",
        "a deduplication id with a colon": b"Upstash-Deduplication-Id: a:b",
        "a deduplication id too long": b"Upstash-Deduplication-Id: " + b"a" * 5_000,
        "a truth that is none": b"Upstash-Content-Based-Deduplication: perhaps",
        "a header forward that is none": b"Upstash-Header-Forward: yes please",
        "a queue name with a blank": b"Upstash-Queue-Name: a b",
        "a queue name with a slash": b"Upstash-Queue-Name: a/b",
        "a queue name too long": b"Upstash-Queue-Name: " + LONG,
        "a queue name of dots": b"Upstash-Queue-Name: ..",
        "a label too long": b"Upstash-Label: " + b"a" * 2_000,
        "labels too many": b"Upstash-Label: " + b",".join(b"l%d" % n for n in range(200)),
        "a forwarded field without a name": b"Upstash-Forward-: a",
        "a forwarded value too long": b"Upstash-Forward-A: " + b"a" * 10_000,
        "a forwarded name too long": b"Upstash-Forward-" + LONG + b": a",
        "a callback that is no URL": b"Upstash-Callback: example.com",
        "a failure callback in here": b"Upstash-Failure-Callback: http://169.254.169.254/",
        "a callback with a flow": b"Upstash-Callback: https://a.example/\r\n"
        b"Upstash-Callback-Flow-Control-Key: k",
        "a flow control key": b"Upstash-Flow-Control-Key: k",
        "a cron that is none": b"Upstash-Cron: * * * *",
        "a schedule's id without a cron": b"Upstash-Schedule-Id: a",
        "a schedule with a deduplication id": b"Upstash-Cron: @daily\r\n"
        b"Upstash-Deduplication-Id: a",
        "a zone that is none": b"Upstash-Cron: CRON_TZ=../../etc/passwd @daily",
        "redaction of nothing": b"Upstash-Redact-Fields: ,",
        "redaction of what is not there": b"Upstash-Redact-Fields: body, url",
        "redaction of a field without a name": b"Upstash-Redact-Fields: header[]",
        "redaction of a field that is none": b"Upstash-Redact-Fields: header[a b]",
        "NUL in a value": b"Upstash-Label: a\x00b",
        "a control character in a value": b"Upstash-Forward-A: a\x1bb",
        "a blank before the colon": b"Upstash-Label : a",
        "a folded value": b"Upstash-Label: a\r\n b",
        "a name with a blank": b"Upstash Label: a",
        "a name that is not ASCII": "Upstash-Forward-Ä: a".encode(),
    }.items()
} | {"forwarded fields too many": publish(*[b"Upstash-Forward-A%d: a" % n for n in range(150)])}

QUERIES = {
    name: publish(to=GOOD + b"?" + query)
    for name, query in {
        "NUL through the query": b"upstash-label=a%00b",
        "a line feed through the query": b"upstash-forward-a=a%0Ab",
        "a field injected through the query": b"upstash-forward-a=a%0D%0AX-Evil:%20b",
        "a name injected through the query": b"upstash-forward-a%0d%0ax-evil:=b",
        "a tabulator through a queue name": b"upstash-queue-name=a%09b",
        "DEL through a deduplication id": b"upstash-deduplication-id=a%7Fb",
        "a C1 control through a label": b"upstash-label=a%C2%85b",
        "a lone surrogate through a label": b"upstash-label=%ED%A0%80",
        "half a character through a label": b"upstash-label=%C3",
        "a delay that is none": b"upstash-delay=soon",
        "retries that are none": b"upstash-retries=x",
        "a method that is none": b"upstash-method=%00",
        "a cron that is none": b"upstash-cron=*+*+*+*+x",
    }.items()
}

DESTINATIONS = {
    name: publish(to=destination)
    for name, destination in {
        "none": b"",
        "another scheme": b"ftp://example.com",
        "javascript": b"javascript:alert(1)",
        "a file": b"file:///etc/passwd",
        "no scheme": b"example.com/hook",
        "no host": b"http://",
        "no host but a path": b"http:///path",
        "no host but a port": b"http://:80/",
        "one slash": b"https:/example.com",
        "an encoded URL": b"https%3A%2F%2Fexample.com",
        "a fragment": b"http://example.com/#a",
        "a port of 0": b"http://example.com:0/",
        "a port too high": b"http://example.com:99999/",
        "a port that is a word": b"http://example.com:http/",
        "an IPv6 address that is none": b"http://[::zz]/",
        "an IPv6 address with a zone": b"http://[fe80::1%25eth0]/",
        "an IPv6 address that does not end": b"http://[::1/",
        "a backslash for a slash": b"http:\\\\example.com",
        "a backslash in the host": b"http://example.com\\@evil.com/",
        "a host with a blank": b"http://exa%20mple.com/",
        "a host with an escape": b"http://%31%32%37.0.0.1/",
        "an empty label in the host": b"http://example..com/",
        "a URL too long": b"http://example.com/" + b"a" * 9_000,
        "a host too long": b"http://" + b"a." * 200 + b"com/",
        "an unknown group": b"some-group",
        "an unknown API": b"api/unknown",
        "an API that is not configured": b"api/llm",
        "quotes": b'http://example.com"/',
        "angle brackets": b"<http://example.com>",
        "the cloud's metadata": b"http://169.254.169.254/latest/meta-data/",
    }.items()
}

PATHS = {
    "nothing": request(b"GET /"),
    "an unknown path": request(b"GET /v2/unknown"),
    "another version": request(b"POST /v1/publish/" + GOOD, body=b"a"),
    "two slashes before": request(b"POST //v2/publish/" + GOOD, body=b"a"),
    "two slashes between": request(b"POST /v2//publish/" + GOOD, body=b"a"),
    "a dot segment": request(b"POST /v2/./publish/" + GOOD, body=b"a"),
    "an escaped segment": request(b"POST /v2/%70ublish/" + GOOD, body=b"a"),
    "an escaped slash": request(b"POST /v2%2Fpublish/" + GOOD, body=b"a"),
    "more than there is": request(b"GET /v2/keys/more"),
    "a slash after an id": request(b"GET /v2/messages/msg_x/"),
    "an id that is not UTF-8": request(b"GET /v2/messages/%FF"),
    "an id with a slash": request(b"GET /v2/messages/a%2F..%2Fb"),
    "an id of NUL": request(b"GET /v2/messages/%00"),
    "an id too long": request(b"GET /v2/messages/" + b"a" * 20_000),
    "an empty queue": request(b"POST /v2/enqueue//" + GOOD, body=b"a"),
    "a queue of NUL": request(b"POST /v2/enqueue/%00/" + GOOD, body=b"a"),
    "a queue of dots": request(b"POST /v2/enqueue/../" + GOOD, body=b"a"),
    "a queue that is not UTF-8": request(b"POST /v2/enqueue/%C3/" + GOOD, body=b"a"),
    "a queue that is a destination": request(b"POST /v2/enqueue/" + GOOD, body=b"a"),
    "the workflow protocol": request(b"POST /v2/trigger/" + GOOD, body=b"a"),
    "a batch that is no array": request(b"POST /v2/batch", body=b"{}"),
    "a batch of nothing": request(b"POST /v2/batch", body=b"[{}]"),
    "a queue without a name": request(b"POST /v2/queues", body=b"{}"),
    "a pause of no queue": request(b"POST /v2/queues/nothing/pause"),
}

METHODS = {
    f"{method.decode()} {path.decode()}": request(method + b" " + path)
    for method, path in [
        (b"GET", b"/v2/publish/" + GOOD),
        (b"PUT", b"/v2/publish/" + GOOD),
        (b"DELETE", b"/v2/publish/" + GOOD),
        (b"GET", b"/v2/enqueue/q/" + GOOD),
        (b"POST", b"/v2/messages/msg_x"),
        (b"PUT", b"/v2/messages/msg_x"),
        (b"POST", b"/v2/events"),
        (b"DELETE", b"/v2/logs"),
        (b"PATCH", b"/v2/keys"),
        (b"POST", b"/v2/dlq"),
        (b"TRACE", b"/v2/keys"),
        (b"PROPFIND", b"/v2/keys"),
        (b"POST", b"/healthz"),
        (b"DELETE", b"/metrics"),
    ]
}

TOKENS = {
    name: request(b"POST /v2/publish/" + GOOD, body=b"a", token=token)
    for name, token in {
        "no token": b"",
        "an empty token": b"Authorization: Bearer \r\n",
        "a wrong token": b"Authorization: Bearer wrong\r\n",
        "a token that is not ASCII": b"Authorization: Bearer \xff\xfe\r\n",
        "a long token": b"Authorization: Bearer " + b"a" * 20_000 + b"\r\n",
        "a token and more": TOKEN[:-2] + b", more\r\n",
        "another scheme": TOKEN.replace(b"Bearer", b"Token"),
        "no scheme": TOKEN.replace(b"Bearer ", b""),
    }.items()
} | {
    "a wrong token in the query": request(
        b"POST /v2/publish/" + GOOD + b"?qstash_token=wrong", body=b"a", token=b""
    ),
    "a token in the query by another name": request(
        b"POST /v2/publish/" + GOOD + b"?QSTASH_TOKEN=" + TOKEN[22:-2], body=b"a", token=b""
    ),
}

FRAMING = {
    "Content-Length and Transfer-Encoding": publish(b"Transfer-Encoding: chunked"),
    "two Content-Lengths": publish(b"Content-Length: 5"),
    "a Content-Length that is no number": request(
        b"POST /v2/publish/" + GOOD, b"Content-Length: five", body=b"hello", length=False
    ),
    "a Content-Length that is negative": request(
        b"POST /v2/publish/" + GOOD, b"Content-Length: -5", body=b"hello", length=False
    ),
    "a Content-Length over the limit": request(
        b"POST /v2/publish/" + GOOD, b"Content-Length: 20000", body=b"hello", length=False
    ),
    "a body over the limit": publish(body=b"a" * 20_000),
    "chunks over the limit": request(
        b"POST /v2/publish/" + GOOD,
        b"Transfer-Encoding: chunked",
        body=b"3E8\r\n" + b"a" * 1_000 + b"\r\n" + b"4E20\r\n" + b"a" * 20_000 + b"\r\n0\r\n\r\n",
        length=False,
    ),
    "a chunk of gigabytes": request(
        b"POST /v2/publish/" + GOOD,
        b"Transfer-Encoding: chunked",
        body=b"FFFFFFFF\r\n" + b"a" * 20_000,
        length=False,
    ),
    "a bad chunk": request(
        b"POST /v2/publish/" + GOOD,
        b"Transfer-Encoding: chunked",
        body=b"5\r\nhello\r\nnonsense\r\n",
        length=False,
    ),
    "a transfer encoding we do not decode": request(
        b"POST /v2/publish/" + GOOD,
        b"Transfer-Encoding: gzip, chunked",
        body=b"0\r\n\r\n",
        length=False,
    ),
    "bare line feeds": publish().replace(b"\r\n", b"\n"),
    "no Host": publish().replace(b"Host: localhost\r\n", b""),
    "two Hosts": publish(b"Host: localhost"),
    "HTTP/0.9": b"POST /v2/publish/" + GOOD + b"\r\n\r\n",
    "HTTP/2": publish().replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/1.2": publish().replace(b"HTTP/1.1", b"HTTP/1.2"),
    "a blank in the path": publish(to=GOOD + b"/a b"),
    "a tabulator in the host": publish(to=b"http://127.0.0.1\t.example.com/"),
    "a byte over ASCII in the path": publish(to=GOOD + b"/\xc3\xa4"),
    "a head over the limit": publish(b"X: " + b"a" * 70_000),
    "too many header fields": publish(*[b"X: a"] * 300),
    "a path over the limit": publish(to=GOOD + b"/" + b"a" * 70_000),
    "a TLS hello": bytes.fromhex("16030100a5010000a10303"),
    "a method that is none": publish().replace(b"POST", b"FROB", 1),
    "a tunnel": request(b"CONNECT 127.0.0.1:9"),
}

BAD = {
    f"{kind}: {name}": sent
    for kind, cases in {
        "header": HEADERS,
        "query": QUERIES,
        "destination": DESTINATIONS,
        "path": PATHS,
        "method": METHODS,
        "token": TOKENS,
        "framing": FRAMING,
    }.items()
    for name, sent in cases.items()
}

STATUSES = {"method": {405}, "token": {401}, "path": {400, 404}, "framing": {400, 413, 431}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Application]:
    """One server for all cases: each must leave it as it was."""
    async with serving(structs.replace(SETTINGS, body_bytes_max=10_000)) as application:
        yield application


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", BAD)
async def test_what_is_wrong_is_refused_in_json_and_changes_nothing(
    shared: Application, case: str
) -> None:
    """W4: every answer of 400 and above is JSON with a text."""
    [answer] = await exchange(shared.port, BAD[case])

    assert answer.status in STATUSES.get(case.partition(":")[0], {400, 404}), answer
    assert answer.header["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert isinstance(answer.json()["error"], str)
    if answer.status == 405:
        assert "OPTIONS" in answer.header["allow"]
    assert await shared.log() == []
    assert (await shared.ask("GET", "/v2/dlq")).json == {"messages": []}
    assert shared.receiver.received == []
    assert (await shared.ask("GET", "/v2/keys")).status == 200


async def test_a_body_of_exactly_the_limit_is_accepted() -> None:
    """W225: 413 begins one byte above."""
    async with serving(structs.replace(SETTINGS, body_bytes_max=10_000)) as server:
        assert (await server.publish(body=b"a" * 10_000)).status == 200
        assert (await server.publish(body=b"a" * 10_001)).status == 413


async def test_when_too_much_is_being_received_more_is_refused_for_a_while() -> None:
    """503 with Retry-After, for whoever comes on top; then all is well again."""
    settings = structs.replace(SETTINGS, body_bytes_max=100_000, receive_bytes_max=150_000)
    large = b"a" * 99_999
    begun = request(
        b"POST /v2/publish/" + GOOD, b"Content-Length: 100000", body=large, length=False
    )
    async with serving(settings) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begun)
        await writer.drain()

        async def refused() -> bool | None:
            reply = await server.publish(body=large)
            return True if reply.status == 503 and reply.header["Retry-After"] == "1" else None

        async def accepted() -> bool | None:
            return (await server.publish(body=large)).status == 200 or None

        await until(refused)
        assert (await server.publish(body=b"small")).status == 200
        writer.close()
        await until(accepted)


async def test_a_body_that_comes_too_slowly_is_given_up(
    server: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T23: 408, and no message."""
    monkeypatch.setattr(bodies, "BODY_GRACE_S", 0.05)

    [answer] = await exchange(
        server.port,
        request(b"POST /v2/publish/" + GOOD, b"Content-Length: 9", body=b"begun", length=False),
    )

    assert answer.status == 408
    assert answer.json() == {"error": "the body did not arrive in time"}
    assert await server.log() == []


async def test_who_hangs_up_before_the_end_of_the_body_publishes_nothing(
    server: Application,
) -> None:
    found = await exchange(
        server.port,
        request(b"POST /v2/publish/" + GOOD, b"Content-Length: 9", body=b"begun", length=False),
        shut=True,
    )

    assert found == []
    assert await server.log() == []


async def test_a_body_in_many_small_pieces_is_one_body(server: Application) -> None:
    """W16: chunked, a byte at a time."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello") + b"0\r\n\r\n"
    sent = request(
        b"POST /v2/publish/" + server.receiver.url.encode(), b"Transfer-Encoding: chunked"
    )
    [answer] = await exchange(server.port, sent, *(chunks[i : i + 1] for i in range(len(chunks))))

    assert answer.status == 200
    assert (await server.receiver.only()).body == b"hello"


@pytest.mark.parametrize(
    ("path", "status"), [("/v2/keys", 200), ("/v2/messages/x", 404), ("/v2/publish/x", 405)]
)
async def test_head_is_answered_as_get_is_but_without_a_body(
    server: Application, path: str, status: int
) -> None:
    reply = await server.ask("HEAD", path)

    assert (reply.status, reply.json) == (status, None)
    assert int(reply.header["Content-Length"]) > 0


async def test_options_says_what_there_is(server: Application) -> None:
    reply = await server.ask("OPTIONS", "/v2/messages/x", token=None)

    assert (reply.status, reply.header["Allow"]) == (200, "DELETE, GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    "path", ["/v2/events", "/V2/Events", "/v2/EVENTS/", "/v2/logs/", "/v2/dlq/", "/v2/Keys/"]
)
async def test_fixed_segments_match_in_any_case_and_may_end_in_a_slash(
    server: Application, path: str
) -> None:
    """W5, W6, W9: and the answer is 200, never a redirect."""
    assert (await server.ask("GET", path)).status == 200


@pytest.mark.parametrize("path", ["/V2/PUBLISH/", "/v2/Publish/"])
async def test_publish_matches_in_any_case(server: Application, path: str) -> None:
    """W6, W8."""
    reply = await server.ask("POST", path + server.receiver.url + "//a/../b")

    assert reply.status == 200
    assert (await server.receiver.only()).target == "/hook//a/../b"
