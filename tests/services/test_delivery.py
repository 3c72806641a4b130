"""One attempt: what goes out, and what is made of the answer."""

import jwt
import pytest

from tests.store.bench import Bench, id_of
from tests.support.clock import SetClock
from tests.support.factory import DOWN, ERROR, OK, SECOND, T0, a_draft
from tests.support.sender import RememberingSender
from waypost.domain.attempt import Outcome
from waypost.domain.errors import StoreFull
from waypost.domain.hops import HOPS_MAX
from waypost.domain.retry import Backoff
from waypost.domain.signing import SigningKeys
from waypost.services import delivery as home
from waypost.services.delivery import Delivery
from waypost.store.protocol import Claim, Draft
from waypost.store.sqlite.store import SqliteStore
from waypost.telemetry import Telemetry

KEYS = SigningKeys("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs")


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def delivery(
    store: SqliteStore, sender: RememberingSender, clock: SetClock, telemetry: Telemetry
) -> Delivery:
    return Delivery(
        store,
        sender,
        clock,
        telemetry,
        keys=lambda tenant: KEYS if tenant == "acme" else None,
        backoff=Backoff(),
        region="EU-CENTRAL-1",
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

    assert await delivery.settle(claim, OK) == "DELIVERED"

    assert await Bench(store).states(id_of(draft)) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert telemetry.messages_settled["DELIVERED"] == 1


async def test_the_first_retry_comes_after_e_squared_seconds(
    delivery: Delivery, store: SqliteStore
) -> None:
    """W187, D13."""
    claim = await _claim(store, a_draft())

    assert await delivery.settle(claim, DOWN) == "RETRY"

    assert await Bench(store).next_due_ms() == T0 + 7_389


async def test_a_message_without_retries_left_is_a_dead_letter(
    delivery: Delivery, store: SqliteStore
) -> None:
    """W38."""
    claim = await _claim(store, a_draft(retries_max=0))

    assert await delivery.settle(claim, ERROR) == "FAILED"

    page = await store.dead_letters("acme", cursor=None, count_max=1)
    assert page.dead_letters[0].response_body == ERROR.body


async def test_an_address_that_policy_forbids_ends_the_message_at_once(
    delivery: Delivery, store: SqliteStore
) -> None:
    """D10."""
    claim = await _claim(store, a_draft())

    assert await delivery.settle(claim, Outcome(refused=True, error="egress: private")) == "FAILED"

    page = await store.dead_letters("acme", cursor=None, count_max=1)
    assert "egress" in page.dead_letters[0].why


async def test_a_message_that_has_gone_round_too_often_is_not_sent(
    delivery: Delivery, store: SqliteStore, sender: RememberingSender
) -> None:
    """D22."""
    claim = await _claim(store, a_draft(hops=HOPS_MAX))

    outcome = await delivery.attempt(claim)

    assert sender.sent == []
    assert await delivery.settle(claim, outcome) == "FAILED"


async def test_a_settle_that_comes_too_late_is_counted_and_changes_nothing(
    delivery: Delivery, store: SqliteStore, telemetry: Telemetry
) -> None:
    claim = await _claim(store, a_draft())
    await store.release([claim], now_ms=T0)

    assert await delivery.settle(claim, OK) is None

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

    assert await delivery.settle(claim, OK) == "DELIVERED"
    assert faults == []
