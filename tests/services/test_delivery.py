"""One attempt: what goes out, and what is made of the answer."""

import json
import random
from typing import Any

import jwt
import pytest
from msgspec.structs import replace

from tests.store.bench import Bench, id_of
from tests.support.clock import SetClock
from tests.support.factory import DOWN, ERROR, OK, SECOND, T0, a_draft, some_places
from tests.support.sender import RememberingSender
from waypost.domain.apis import Api
from waypost.domain.attempt import Outcome
from waypost.domain.errors import StoreFull
from waypost.domain.hops import HOPS_MAX
from waypost.domain.message import Callback, Message
from waypost.domain.places import INTERRUPTED_MAX
from waypost.domain.retry import Backoff
from waypost.domain.signing import SigningKeys
from waypost.services import delivery as home
from waypost.services.delivery import Delivery
from waypost.store.protocol import Births, Claim, Draft
from waypost.store.sqlite.store import SqliteStore
from waypost.telemetry import Telemetry

BIRTHS = Births(some_places(), lambda _claim: None)
KEYS = SigningKeys("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs")


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def llm() -> Api | None:
    return Api("https://llm.example/v1/chat/completions", "sk-operator")


@pytest.fixture
def delivery(
    store: SqliteStore,
    sender: RememberingSender,
    clock: SetClock,
    telemetry: Telemetry,
    llm: Api | None,
) -> Delivery:
    return Delivery(
        store,
        sender,
        clock,
        telemetry,
        keys=lambda tenant: KEYS if tenant == "acme" else None,
        backoff=Backoff(),
        region="EU-CENTRAL-1",
        entropy=random.Random(0).getrandbits,
        llm=llm,
    )


async def _claim(store: SqliteStore, draft: Draft) -> Claim:
    bench = Bench(store)
    await bench.add(draft)
    [claim] = bench.born
    return claim


async def test_the_request_carries_our_fields_and_those_that_are_forwarded(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    """W177, W178, W185, D20."""
    draft = a_draft(
        body=b"\x00\xff",
        method="PUT",
        caller_ip="192.0.2.7",
        header={"Content-Type": ["a/b"], "X-Two": ["1", "2"]},
    )

    await delivery.attempt(await _claim(store, draft))

    [request] = sender.sent
    assert (request.method, request.url, request.body) == ("PUT", draft.message.url, b"\x00\xff")
    assert request.timeout_ms == draft.message.timeout_ms
    fields = [field for field in request.header if field[0] != "Upstash-Signature"]
    assert sorted(fields) == [
        ("Accept-Encoding", "identity"),
        ("CDN-Loop", "waypost; hops=1"),
        ("Content-Type", "a/b"),
        ("Upstash-Caller-Ip", "192.0.2.7"),
        ("Upstash-Message-Id", id_of(draft)),
        ("Upstash-Region", "EU-CENTRAL-1"),
        ("Upstash-Retried", "0"),
        ("User-Agent", "Upstash-QStash"),
        ("X-Two", "1"),
        ("X-Two", "2"),
    ]


async def test_a_forwarded_user_agent_wins_over_ours(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    draft = a_draft(header={"User-Agent": ["Stripe/1.0"]})

    await delivery.attempt(await _claim(store, draft))

    agents = [value for name, value in sender.sent[0].header if name == "User-Agent"]
    assert agents == ["Stripe/1.0"]


async def test_each_attempt_is_signed_anew_for_its_url_and_body(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender, clock: SetClock
) -> None:
    """W179 to W183."""
    claim = await _claim(store, a_draft(url="https://example.com/a?b=c"))
    await delivery.attempt(claim)
    clock.go_on(100 * SECOND)
    await store.release([claim], now_ms=clock.now_ms())
    [again] = await Bench(store).claim(now_ms=clock.now_ms())
    await delivery.attempt(again)

    claims = [
        jwt.decode(
            dict(request.header)["Upstash-Signature"],
            KEYS.current,
            algorithms=["HS256"],
            options={"verify_exp": False, "verify_iat": False, "verify_aud": False},
        )
        for request in sender.sent
    ]
    assert [c["sub"] for c in claims] == ["https://example.com/a?b=c"] * 2
    assert [c["iat"] for c in claims] == [T0 // 1000, T0 // 1000 + 100]
    assert [c["exp"] - c["iat"] for c in claims] == [300, 300]
    assert claims[0]["jti"] != claims[1]["jti"]


async def test_a_success_is_settled_as_delivered(
    delivery: Delivery, store: SqliteStore, telemetry: Telemetry
) -> None:
    draft = a_draft()
    claim = await _claim(store, draft)

    assert await delivery.settle(claim, OK, births=BIRTHS) == "DELIVERED"

    assert await Bench(store).states(id_of(draft)) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert telemetry.messages_settled["DELIVERED"] == 1


async def test_the_first_retry_comes_after_e_squared_seconds(
    delivery: Delivery, store: SqliteStore
) -> None:
    """W187, D13."""
    claim = await _claim(store, a_draft())

    assert await delivery.settle(claim, DOWN, births=BIRTHS) == "RETRY"

    assert await Bench(store).next_due_ms() == T0 + 7_389


async def test_a_message_without_retries_left_is_a_dead_letter(
    delivery: Delivery, store: SqliteStore
) -> None:
    """W38."""
    claim = await _claim(store, a_draft(retries_max=0))

    assert await delivery.settle(claim, ERROR, births=BIRTHS) == "FAILED"

    page = await store.dead_letters("acme", cursor=None, count_max=1)
    assert page.dead_letters[0].response_body == ERROR.body


async def test_an_address_that_policy_forbids_ends_the_message_at_once(
    delivery: Delivery, store: SqliteStore
) -> None:
    """D10."""
    claim = await _claim(store, a_draft())

    assert (
        await delivery.settle(claim, Outcome(refused=True, error="egress: private"), births=BIRTHS)
        == "FAILED"
    )

    page = await store.dead_letters("acme", cursor=None, count_max=1)
    assert "egress" in page.dead_letters[0].why


async def test_a_message_that_has_gone_round_too_often_is_not_sent(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    """D22."""
    claim = await _claim(store, a_draft(hops=HOPS_MAX))

    outcome = await delivery.attempt(claim)

    assert sender.sent == []
    assert await delivery.settle(claim, outcome, births=BIRTHS) == "FAILED"


async def test_a_settle_that_comes_too_late_is_counted_and_changes_nothing(
    delivery: Delivery, store: SqliteStore, telemetry: Telemetry
) -> None:
    claim = await _claim(store, a_draft())
    await store.release([claim], now_ms=T0)

    assert await delivery.settle(claim, OK, births=BIRTHS) is None

    assert telemetry.settles_stale == 1


async def test_a_settle_waits_for_a_store_that_is_full(
    delivery: Delivery, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await _claim(store, a_draft())
    settle = store.settle
    faults = [StoreFull("full"), StoreFull("full")]

    async def settle_in_the_end(*args: object, **kwargs: object) -> object:
        if faults:
            raise faults.pop()
        return await settle(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "settle", settle_in_the_end)
    monkeypatch.setattr(home, "SETTLE_AGAIN_MS", 1)

    assert await delivery.settle(claim, OK, births=BIRTHS) == "DELIVERED"
    assert faults == []


# Callbacks.

HOOK = Callback(url="https://told.example/hook", retries_max=2, timeout_ms=9_000)
FAILURE_HOOK = replace(HOOK, url="https://told.example/failed")


async def _told(store: SqliteStore, source: Claim) -> list[tuple[Message, dict[str, Any]]]:
    """The callbacks that were made about a message, in their order, and what they say."""
    told = []
    for entry in await Bench(store).log():
        if entry.state == "CREATED" and entry.message.callback_of == source.message.id:
            found = await store.message("acme", entry.message.id)
            assert found is not None
            told.append((found[0], json.loads(found[1])))
    return told


async def test_each_attempt_is_told_of(
    delivery: Delivery, store: SqliteStore, clock: SetClock
) -> None:
    """W195, W196."""
    claim = await _claim(store, a_draft(callback=HOOK, failure_callback=FAILURE_HOOK))
    await delivery.settle(claim, ERROR, births=BIRTHS)
    clock.go_on(7_389)
    claims = await Bench(store).claim(now_ms=clock.now_ms())
    [again] = [one for one in claims if one.message.id == claim.message.id]
    await delivery.settle(again, OK, births=BIRTHS)

    told = await _told(store, claim)

    assert [(made.url, said["status"], said["retried"]) for made, said in told] == [
        ("https://told.example/hook", 500, 0),
        ("https://told.example/hook", 200, 1),
    ]
    assert [said["body"] for _, said in told] == ["bm8=", "b2s="]
    assert told[0][1]["header"] == {"Content-Type": ["text/plain"]}
    assert [made.created_ms for made, _ in told] == [T0, T0 + 7_389]
    assert told[0][0].id != told[1][0].id


async def test_a_failure_is_told_once_and_names_the_dead_letter(
    delivery: Delivery, store: SqliteStore
) -> None:
    """W197."""
    draft = a_draft(retries_max=0, callback=HOOK, failure_callback=FAILURE_HOOK)
    claim = await _claim(store, draft)

    await delivery.settle(claim, DOWN, births=BIRTHS)

    [dead] = (await store.dead_letters("acme", cursor=None, count_max=2)).dead_letters
    told = {made.url: said for made, said in await _told(store, claim)}
    assert set(told) == {HOOK.url, FAILURE_HOOK.url}
    assert told[FAILURE_HOOK.url]["dlqId"] == dead.id
    assert "dlqId" not in told[HOOK.url]
    assert [said["status"] for said in told.values()] == [0, 0]
    assert told[HOOK.url]["body"] == "cmVmdXNlZA=="


async def test_a_fault_of_our_own_proxy_is_not_told_of(
    delivery: Delivery, store: SqliteStore
) -> None:
    """D10: the destination was not asked."""
    claim = await _claim(store, a_draft(callback=HOOK, failure_callback=FAILURE_HOOK))

    await delivery.settle(
        claim, Outcome(error="the proxy is away", proxy_fault=True), births=BIRTHS
    )

    assert await _told(store, claim) == []


async def test_a_callback_has_none_of_its_own(delivery: Delivery, store: SqliteStore) -> None:
    """D25."""
    claim = await _claim(store, a_draft(callback=HOOK, failure_callback=FAILURE_HOOK))
    await delivery.settle(claim, OK, births=BIRTHS)

    [(made, _)] = await _told(store, claim)

    assert (made.callback, made.failure_callback) == (None, None)
    assert (made.callback_of, made.retries_max) == (claim.message.id, 2)


async def test_a_message_that_was_cut_short_too_often_is_given_up_and_told_of(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    """D18."""
    claim = await _claim(store, a_draft(failure_callback=FAILURE_HOOK))
    claim = replace(claim, interrupted=INTERRUPTED_MAX)

    outcome = await delivery.attempt(claim)
    assert await delivery.settle(claim, outcome, births=BIRTHS) == "FAILED"

    assert sender.sent == []
    page = await store.dead_letters("acme", cursor=None, count_max=1)
    assert "interrupted: 20 attempts were cut short by a crash" in page.dead_letters[0].why
    [(made, _)] = await _told(store, claim)
    assert made.url == FAILURE_HOOK.url


# URL groups and built-in APIs.


async def test_a_message_of_a_group_names_it_and_nobody_else_can(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    """W184."""
    forged = {"Upstash-Topic-Name": ["forged"]}
    await delivery.attempt(await _claim(store, a_draft(group="my-group", header=forged)))
    await delivery.attempt(await _claim(store, a_draft(header=forged)))

    names = [
        [value for name, value in request.header if name == "Upstash-Topic-Name"]
        for request in sender.sent
    ]
    assert names == [["my-group"], []]


def _to_llm(**facts: Any) -> Draft:
    draft = a_draft(callback=HOOK, **facts)
    return replace(draft, message=replace(draft.message, url="api/llm", api="llm"), host="api/llm")


async def test_a_message_to_the_llm_goes_out_with_the_operators_key(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    """D9: and without a signature."""
    header = {"Authorization": ["Bearer theirs"], "X-Own": ["1"]}

    await delivery.attempt(await _claim(store, _to_llm(header=header)))
    await delivery.attempt(await _claim(store, a_draft(header=header)))

    [request, other] = sender.sent
    fields = dict(request.header)
    assert request.url == "https://llm.example/v1/chat/completions"
    assert (request.trusted, request.tenant) == (True, "acme")
    assert [value for name, value in request.header if name == "Authorization"] == [
        "Bearer sk-operator"
    ]
    assert fields["X-Own"] == "1"
    assert "Upstash-Signature" not in fields
    assert not other.trusted
    assert dict(other.header)["Authorization"] == "Bearer theirs"


@pytest.mark.parametrize("llm", [Api("http://127.0.0.1:11434/v1/chat/completions")])
async def test_without_a_key_of_the_operators_the_publishers_goes_out(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    header = {"Authorization": ["Bearer theirs"]}

    await delivery.attempt(await _claim(store, _to_llm(header=header)))

    assert dict(sender.sent[0].header)["Authorization"] == "Bearer theirs"


@pytest.mark.parametrize("llm", [None])
async def test_a_message_to_an_llm_that_is_gone_is_given_up(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    claim = await _claim(store, _to_llm())

    outcome = await delivery.attempt(claim)

    assert await delivery.settle(claim, outcome, births=BIRTHS) == "FAILED"
    assert sender.sent == []
    page = await store.dead_letters("acme", cursor=None, count_max=1)
    assert "llm_base_url" in page.dead_letters[0].why
