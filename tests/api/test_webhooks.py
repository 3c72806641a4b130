"""Webhooks of GitHub, Stripe and Slack that pass through: what their receivers verify still holds.

A provider is pointed at us with everything in the URL, for it lets nobody set a
header.  Each is shown with the fields that it really sends, and its receiver
verifies as the provider's own pages say; the pages' worked examples come first.
"""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from msgspec import Struct, structs

from tests.support.application import (
    SECOND,
    SETTINGS,
    T0,
    Application,
    Received,
    person,
    receiving,
    serving,
)
from tests.support.program import Server, eventually, running, waypost
from tests.support.raw_http import exchange
from tests.support.receiver import Receiver, Reply
from waypost.domain.dev_users import DEV_USERS

SECRET = "it's a secret, of this provider"
SENT_S = T0 // 1_000
OURS = "upstash-header-forward=true&upstash-retries=3&upstash-retry-delay=1000"

Fields = Mapping[str, str]
Recipe = Callable[[Fields, bytes], bool]


def sha256_of(secret: str, text: bytes) -> str:
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def github_verifies(header: Fields, body: bytes, *, secret: str = SECRET) -> bool:
    """docs.github.com: X-Hub-Signature-256 is `sha256=` and the HMAC of the body."""
    marked = "sha256=" + sha256_of(secret, body)
    return hmac.compare_digest(marked, header["X-Hub-Signature-256"])


def stripe_verifies(header: Fields, body: bytes, *, secret: str = SECRET) -> bool:
    """docs.stripe.com: v1 is the HMAC of the timestamp, a dot and the body; others are ignored."""
    pairs = [pair.split("=", 1) for pair in header["Stripe-Signature"].split(",")]
    [sent_s] = [value for scheme, value in pairs if scheme == "t"]
    marked = sha256_of(secret, sent_s.encode() + b"." + body)
    return any(hmac.compare_digest(marked, value) for scheme, value in pairs if scheme == "v1")


def slack_verifies(header: Fields, body: bytes, *, secret: str = SECRET) -> bool:
    """api.slack.com: `v0=` and the HMAC of `v0:`, the timestamp, a colon and the raw body."""
    sent_s = header["X-Slack-Request-Timestamp"]
    marked = "v0=" + sha256_of(secret, f"v0:{sent_s}:".encode() + body)
    return hmac.compare_digest(marked, header["X-Slack-Signature"])


class Hook(Struct, frozen=True):
    """A request as a provider makes it, and how its receiver verifies it."""

    header: dict[str, str]
    body: bytes
    verifies: Recipe


def github(body: bytes, content_type: str, event: str) -> Hook:
    header = {
        "Accept": "*/*",
        "Content-Type": content_type,
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "X-GitHub-Event": event,
        "X-GitHub-Hook-ID": "292430182",
        "X-GitHub-Hook-Installation-Target-ID": "79929171",
        "X-GitHub-Hook-Installation-Target-Type": "repository",
        "X-Hub-Signature": "sha1=" + hmac.new(SECRET.encode(), body, hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": "sha256=" + sha256_of(SECRET, body),
    }
    return Hook(header, body, github_verifies)


def stripe(body: bytes) -> Hook:
    marked = sha256_of(SECRET, b"%d." % SENT_S + body)
    header = {
        "Accept": "*/*; q=0.5, application/xml",
        "Accept-Encoding": "gzip;q=1.0,deflate;q=0.6,identity;q=0.3",
        "Cache-Control": "no-cache",
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        "Stripe-Signature": f"t={SENT_S},v1={'0' * 64},v1={marked},v0={'6' * 64}",
    }
    return Hook(header, body, stripe_verifies)


def slack(body: bytes, content_type: str, **more: str) -> Hook:
    header = {
        "Accept": "*/*",
        "Accept-Encoding": "gzip,deflate",
        "Content-Type": content_type,
        "User-Agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
        "X-Slack-Request-Timestamp": str(SENT_S),
        "X-Slack-Signature": "v0=" + sha256_of(SECRET, b"v0:%d:" % SENT_S + body),
    }
    header |= {name.replace("_", "-"): value for name, value in more.items()}
    return Hook(header, body, slack_verifies)


ISSUE = json.dumps({"action": "opened", "issue": {"title": "naïve ☃ & 'quotes' \\ \"more\""}})
EVENT = '{\n  "id": "evt_1",\n  "object": "event",\n  "data": {"name": "Zoë ☃"},\n  "n": 1.0\n}\n'
COMMAND = (
    "token=gIkuvaNzQIHg97ATvDxqgjtO&team_domain=example&channel_name=test&command=%2Fweather"
    "&text=94070+%26+more%3D1&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2F1234%2F5678"
)

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

HOOKS = {
    "github json": github(ISSUE.encode(), JSON, "issues"),
    "github ping": github(b'{"zen":"Keep it logically awesome.","hook_id":1}', JSON, "ping"),
    "github form": github(b"payload=" + quote(ISSUE, safe="").encode(), FORM, "issues"),
    "github large": github(b'{"commits":"' + b"x\xc3\xa9" * 150_000 + b'"}', JSON, "push"),
    "stripe": stripe(EVENT.encode()),
    "slack command": slack(COMMAND.encode(), FORM),
    "slack event": slack(
        b'{"type":"event_callback","event":{"text":"caf\\u00e9 \\/ <@U1>"}}',
        JSON,
        X_Slack_Retry_Num="1",
        X_Slack_Retry_Reason="http_timeout",
    ),
}

STAYS_WITH_US = {"Accept-Encoding"}
"""The one field that a provider sends and that is not passed on: it spoke of our answer (D20)."""

ADDED = {
    "Host",
    "Content-Length",
    "Accept-Encoding",
    "Upstash-Region",
    "Upstash-Caller-Ip",
    "Upstash-Message-Id",
    "Upstash-Retried",
    "Upstash-Signature",
    "Cdn-Loop",
}

every_hook = pytest.mark.parametrize("hook", HOOKS.values(), ids=list(HOOKS))


async def sent(server: Application, hook: Hook, query: str, *, token: str = "") -> str:
    """Let a provider send its webhook, which has no header of ours; the message's id."""
    token = token or DEV_USERS[0].token
    path = f"/v2/publish/{server.receiver.url}?{query}&qstash_token={quote(token)}"
    reply = await server.ask("POST", path, header=hook.header, body=hook.body, token=None)
    assert reply.status == 200, reply
    return str(reply.json["messageId"])


def arrived_unchanged(hook: Hook, received: Received) -> None:
    """Every field, no other but ours, and the body; and the receiver's own recipe passes."""
    assert received.method == "POST"
    assert received.body == hook.body
    for name, value in hook.header.items():
        if name not in STAYS_WITH_US:
            assert received.header.getall(name) == [value]
    theirs = {name.title() for name in hook.header}
    assert {name.title() for name in received.header} == theirs | ADDED
    assert hook.verifies(received.header, received.body)


# The recipes themselves.


def test_the_recipes_pass_the_worked_examples_of_their_providers() -> None:
    greeting = b"Hello, World!"
    marked = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    secret = "It's a Secret to Everybody"
    assert github_verifies({"X-Hub-Signature-256": marked}, greeting, secret=secret)

    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
        b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
        b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
        b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    header = {
        "X-Slack-Request-Timestamp": "1531420618",
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    assert slack_verifies(header, body, secret="8f742231b10e8888abcd99yyyzzz85a5")


@every_hook
def test_a_recipe_refuses_what_differs_by_a_byte(hook: Hook) -> None:
    assert hook.verifies(hook.header, hook.body)
    assert not hook.verifies(hook.header, hook.body + b"\n")
    assert not hook.verifies(hook.header, hook.body[:-1] + bytes([hook.body[-1] ^ 1]))


# Through us.


@every_hook
async def test_a_webhook_arrives_unchanged_and_its_receiver_can_verify_it(
    server: Application, hook: Hook
) -> None:
    """W24, W27, W28: fields, body and signature; the User-Agent is the provider's."""
    message_id = await sent(server, hook, OURS)

    received = await server.receiver.only()
    arrived_unchanged(hook, received)
    assert received.target == "/hook"
    assert (await server.message(message_id))["maxRetries"] == 3


@every_hook
async def test_a_webhook_that_is_tried_again_is_the_same_one(
    server: Application, hook: Hook
) -> None:
    """W24, W28: the first attempt fails, and what comes a second later verifies as well."""
    server.receiver.answers_once(503)
    message_id = await sent(server, hook, OURS)
    await server.logged(message_id, "RETRY")

    server.clock.advance(SECOND)
    await server.logged(message_id, "DELIVERED")

    first, second = await server.receiver.first(2)
    arrived_unchanged(hook, first)
    arrived_unchanged(hook, second)
    assert [one.header["Upstash-Retried"] for one in (first, second)] == ["0", "1"]


async def test_a_webhook_can_be_delayed_by_its_url(server: Application) -> None:
    """W29: and not a moment less."""
    hook = HOOKS["github json"]
    message_id = await sent(server, hook, "upstash-header-forward=true&upstash-delay=1m30s")
    assert (await server.message(message_id))["notBefore"] == T0 + 90 * SECOND

    server.clock.advance(90 * SECOND - 1)
    await server.logged(await server.accepted(body=b"another"), "DELIVERED")
    assert await server.states(message_id) == ["CREATED"]
    server.clock.advance(1)
    await server.logged(message_id, "DELIVERED")

    arrived_unchanged(hook, (await server.receiver.first(2))[1])


@pytest.mark.parametrize(
    "own",
    [
        "keep=this",
        "a=%20&b=%2F&&c=1+2&a=3",
        "%75pstash-retries=9",  # not ours: ours are written plainly
        "Upstash-Retries=9&QSTASH_TOKEN=x",  # nor are these: ours are in lower case
        "next=https://app.example/?x=1&empty=&bare",
        "=&'\"()[]{}|\\^~`",
    ],
)
@pytest.mark.parametrize("place", ["before", "between", "after"])
async def test_the_destinations_own_query_is_kept_byte_for_byte(
    server: Application, own: str, place: str
) -> None:
    """W25, W27: wherever our configuration stands between it."""
    hook = HOOKS["stripe"]
    first, rest = OURS.split("&", 1)
    query = {
        "before": f"{own}&{OURS}",
        "between": f"{first}&{own}&{rest}",
        "after": f"{OURS}&{own}",
    }
    message_id = await sent(server, hook, query[place])

    received = await server.receiver.only()
    arrived_unchanged(hook, received)
    assert received.target == f"/hook?{own}"
    assert (await server.message(message_id))["url"] == f"{server.receiver.url}?{own}"


async def test_a_webhook_can_be_put_in_a_queue_and_labelled_by_its_url(server: Application) -> None:
    """W27, W28: publish and enqueue read the query alike."""
    hook = HOOKS["github json"]
    token = quote(DEV_USERS[0].token)
    more = f"{OURS}&upstash-label=github&qstash_token={token}&keep=this"
    reply = await server.ask(
        "POST",
        f"/v2/enqueue/hooks/{server.receiver.url}?{more}",
        header=hook.header,
        body=hook.body,
        token=None,
    )
    assert reply.status == 200, reply

    received = await server.receiver.only()
    arrived_unchanged(hook, received)
    assert received.target == "/hook?keep=this"
    message = await server.message(reply.json["messageId"])
    assert (message["queueName"], message["label"]) == ("hooks", "github")


async def test_a_redelivery_of_the_provider_can_be_recognised(server: Application) -> None:
    """W51: content-based deduplication takes in the forwarded fields, so the same delivery is
    one message, and another delivery of the same body is another."""
    hook = HOOKS["github json"]
    query = OURS + "&upstash-content-based-deduplication=true"
    other = structs.replace(hook, header=hook.header | {"X-GitHub-Delivery": "another"})
    first_id = await sent(server, hook, query)
    path = f"/v2/publish/{server.receiver.url}?{query}&qstash_token={DEV_USERS[0].token}"

    again = await server.ask("POST", path, header=hook.header, body=hook.body, token=None)

    assert (again.status, again.json["messageId"]) == (202, first_id)
    assert await sent(server, other, query) != first_id
    await server.receiver.first(2)


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 401), ("qstash_token=", 401), ("qstash_token=wrong", 401)],
    ids=["none", "empty", "wrong"],
)
async def test_a_webhook_without_the_right_token_is_refused(
    server: Application, query: str, status: int
) -> None:
    """W2, W3."""
    hook = HOOKS["slack command"]
    path = f"/v2/publish/{server.receiver.url}?{OURS}&{query}"
    reply = await server.ask("POST", path, header=hook.header, body=hook.body, token=None)

    assert reply.status == status
    assert set(reply.json) == {"error"}


async def test_an_authorization_of_the_providers_own_stays_here_and_another_can_be_given(
    server: Application,
) -> None:
    """W2, W24, W27: D6.  A provider may be told to send one; ours is the one in the query."""
    hook = HOOKS["github json"]
    theirs = structs.replace(hook, header=hook.header | {"Authorization": "Basic dTpw"})
    await sent(server, theirs, OURS)
    await sent(server, theirs, OURS + "&upstash-forward-authorization=Basic%20YTpi")

    first, second = await server.receiver.first(2)
    arrived_unchanged(hook, first)
    assert second.header.getall("Authorization") == ["Basic YTpi"]
    assert hook.verifies(second.header, second.body)


@every_hook
async def test_a_webhook_can_be_told_of_by_its_url(server: Application, hook: Hook) -> None:
    """W27, W28, W195: a callback comes from the query too, with a query of its own, and what it
    says of the webhook verifies as well."""
    async with receiving() as told:
        url = quote(f"{told.url}?a=1&b=%20&upstash-retries=9", safe="")
        configured = f"upstash-callback={url}&upstash-callback-forward-authorization=Basic%20YTpi"
        message_id = await sent(server, hook, f"keep=this&{configured}&{OURS}")
        received, callback = await server.receiver.only(), await told.only()

    arrived_unchanged(hook, received)
    assert received.target == "/hook?keep=this"
    assert callback.target == "/hook?a=1&b=%20&upstash-retries=9"
    assert callback.header.getall("Authorization") == ["Basic YTpi"]
    said = json.loads(callback.body)
    assert (said["status"], said["sourceMessageId"]) == (200, message_id)
    source = {name: values[0] for name, values in said["sourceHeader"].items()}
    assert hook.verifies(source, base64.b64decode(said["sourceBody"]))


# Whose token it is.


async def test_the_token_is_neither_passed_on_nor_kept(tmp_path: Path) -> None:
    """W24, W27: nothing that the receiver gets, or that the API shows, has it in it; a token
    that only webhooks have can be taken away from them alone."""
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    token = await person(settings, "acme")
    for_hooks = await person(settings, "acme", new=False)
    hook = HOOKS["github json"]

    async with serving(settings, dev=False, token=token) as server:
        message_id = await sent(server, hook, f"keep=this&{OURS}", token=for_hooks)
        received = await server.receiver.only()
        await server.logged(message_id, "DELIVERED")
        shown = [await server.message(message_id), await server.log(message_id)]

    arrived_unchanged(hook, received)
    seen = f"{received.target} {list(received.header.items())} {received.body!r} {shown}"
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (for_hooks, quote(for_hooks)):
        assert secret not in seen
        assert secret.encode() not in on_disk
    assert "qstash" not in received.target.lower()


def test_the_token_of_a_webhook_is_in_no_log(tmp_path: Path) -> None:
    """W2, W27: of a server that logs all it can, about a delivery, a failure and a refusal."""
    database = f"--database=sqlite:///{tmp_path}/waypost.db"
    assert waypost("tenant", "create", "acme", database, cwd=tmp_path).returncode == 0
    token = waypost("token", "create", "acme", database, cwd=tmp_path).stdout.strip()
    hook = HOOKS["slack command"]
    words = ("serve", database, "--port", "0", "--log-level", "debug")
    with (
        Receiver() as receiver,
        running(*words, "--egress-allow", "127.0.0.0/8", cwd=tmp_path) as server,
    ):

        def call(url: str, query: str) -> int:
            query = f"{query}&keep=this&qstash_token={quote(token)}"
            return _status(server, f"/v2/publish/{url}?{query}", hook)

        well = receiver.answers("/well", Reply(200))
        failing = receiver.answers("/failing", Reply(500))
        assert call(well, OURS) == 200
        assert call(failing, "upstash-header-forward=true&upstash-retries=0") == 200
        assert call(well, "upstash-retries=many") == 400
        [came] = receiver.wait("/well")
        receiver.wait("/failing")
        eventually(lambda: b"failing" in server.call("GET", "/v2/dlq", token=token)[1])

    assert came.target == "/well?keep=this"
    assert came.body == hook.body
    assert slack_verifies({name.title(): value for name, value in came.header.items()}, came.body)
    logged = (tmp_path / "stderr.log").read_text()
    assert "message_failed" in logged
    for secret in (token, quote(token), token.rstrip("=")):
        assert secret not in logged
    assert "qstash_token" not in logged
    assert "keep=this" not in logged


def _status(server: Server, path: str, hook: Hook) -> int:
    """Send a hook, in the very bytes of a provider; the status."""
    fields = {"Host": "queue.example", **hook.header, "Content-Length": str(len(hook.body))}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
    port = int(server.url.rpartition(":")[2])
    [answer] = asyncio.run(exchange(port, head + hook.body))
    return answer.status
