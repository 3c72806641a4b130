"""Publishing: from raw bytes to a message on disk, or to a refusal that names the fault."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from tests.store.bench import Bench
from tests.support.clock import SetClock
from tests.support.factory import MINUTE, T0, some_places
from waypost.domain.errors import (
    Invalid,
    LimitReached,
    NotFound,
    Problem,
    QuotaExceeded,
    StoreFull,
    StoreUnavailable,
)
from waypost.domain.message import Message
from waypost.domain.options import Limits
from waypost.domain.url_groups import Endpoint, UrlGroup
from waypost.services.publishing import Incoming, Publishing, Receipt
from waypost.services.rates import Rates
from waypost.store.protocol import Births, Claim
from waypost.store.sqlite.store import SqliteStore
from waypost.telemetry import Telemetry
from waypost.wire.egress import Egress


@pytest.fixture
def born() -> list[Claim]:
    return []


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def rates(clock: SetClock) -> Rates:
    return Rates(clock, messages_per_day_max=1_000)


@pytest.fixture
def publishing(
    store: SqliteStore, clock: SetClock, telemetry: Telemetry, born: list[Claim], rates: Rates
) -> Publishing:
    return Publishing(
        store,
        store,
        clock,
        telemetry,
        limits=Limits(),
        births=Births(some_places(), born.append),
        refusal_of_host=Egress().refusal_of_host,
        entropy=_Counting().bits,
        rates=rates,
    )


class _Counting:
    def __init__(self) -> None:
        self._count = 0

    def bits(self, _count: int) -> int:
        self._count += 1
        return self._count


async def _ask(publishing: Publishing, url: bytes, **more: Any) -> Receipt | list[Receipt]:
    destination, _, query = url.partition(b"?")
    header = more.pop("header", [])
    return await publishing.publish(
        "acme",
        Incoming(
            destination=destination,
            query=query,
            header=header,
            body=more.pop("body", b"hello"),
            caller_ip="192.0.2.7",
            **more,
        ),
    )


async def _publish(
    publishing: Publishing, url: bytes = b"https://example.com/a?b=c", **more: Any
) -> Receipt:
    receipt = await _ask(publishing, url, **more)
    assert isinstance(receipt, Receipt)
    return receipt


async def _fan_out(publishing: Publishing, url: bytes = b"g", **more: Any) -> list[Receipt]:
    receipts = await _ask(publishing, url, **more)
    assert isinstance(receipts, list)
    return receipts


A, B = "https://a.example/a", "https://b.example/b"


async def _group(
    store: SqliteStore,
    *endpoints: Endpoint,
    name: str = "g",
    header: dict[str, list[str]] | None = None,
) -> None:
    group = UrlGroup(
        id=f"tpc_of_{name}",
        name=name,
        created_ms=T0,
        updated_ms=T0,
        endpoints=list(endpoints) or [Endpoint(A, "First endpoint"), Endpoint(B)],
        header=header or {},
    )
    await store.change_url_group("acme", name, lambda _: group)


async def _messages(store: SqliteStore, receipts: list[Receipt]) -> list[Message]:
    found = [await store.message("acme", receipt.message_id) for receipt in receipts]
    return [one[0] for one in found if one is not None]


async def test_a_publish_keeps_every_fact(
    publishing: Publishing, store: SqliteStore, born: list[Claim]
) -> None:
    header = [
        (b"content-type", b"application/json"),
        (b"upstash-method", b"PATCH"),
        (b"upstash-retries", b"7"),
        (b"upstash-retry-delay", b"1000 * (1 + retried)"),
        (b"upstash-timeout", b"90s"),
        (b"upstash-label", b"a, b"),
        (b"upstash-forward-x-y", b"z"),
    ]

    receipt = await _publish(publishing, header=header)

    found = await store.message("acme", receipt.message_id)
    assert found is not None
    message, body = found
    assert body == b"hello"
    assert message.url == "https://example.com/a?b=c"
    assert (message.method, message.retries_max, message.timeout_ms) == ("PATCH", 7, 90_000)
    assert message.retry_delay == "1000 * (1 + retried)"
    assert message.labels == ["a", "b"]
    assert message.header == {"Content-Type": ["application/json"], "X-Y": ["z"]}
    assert (message.caller_ip, message.created_ms, message.not_before_ms) == ("192.0.2.7", T0, T0)
    assert [claim.message.id for claim in born] == [receipt.message_id]


async def test_a_duplicate_is_answered_with_the_first(
    publishing: Publishing, clock: SetClock
) -> None:
    """W51, W52."""
    header = [(b"upstash-deduplication-id", b"once")]
    first = await _publish(publishing, header=header)
    clock.go_on(10 * MINUTE - 1)
    second = await _publish(publishing, b"https://other.example/", header=header)
    clock.go_on(1)
    third = await _publish(publishing, header=header)

    assert (second.message_id, second.deduplicated) == (first.message_id, True)
    assert not third.deduplicated


async def test_equal_content_is_a_duplicate_and_other_content_is_not(
    publishing: Publishing,
) -> None:
    """W54, W56."""
    content = (b"upstash-content-based-deduplication", b"true")
    first = await _publish(publishing, header=[content])
    others = [
        await _publish(publishing, header=[content], body=b"other"),
        await _publish(publishing, b"https://example.com/other", header=[content]),
        await _publish(publishing, header=[content, (b"upstash-forward-x", b"y")]),
        await _publish(publishing, header=[content, (b"content-type", b"text/plain")]),
    ]
    again = await _publish(publishing, header=[content])

    assert not any(receipt.deduplicated for receipt in others)
    assert again == structs.replace(first, deduplicated=True)


async def test_the_queue_of_the_path_wins_over_the_header(
    publishing: Publishing, store: SqliteStore
) -> None:
    """W75, W236."""
    await _publish(publishing, header=[(b"upstash-queue-name", b"of-the-header")])
    await _publish(
        publishing, queue="of-the-path", header=[(b"upstash-queue-name", b"of-the-header")]
    )

    for name in ("of-the-header", "of-the-path"):
        queue = await store.queue("acme", name)
        assert queue is not None
        assert queue.lag == 1


async def test_the_hops_of_a_message_are_read_from_cdn_loop(
    born: list[Claim], publishing: Publishing
) -> None:
    """D22."""
    await _publish(publishing, header=[(b"cdn-loop", b"other; x=1, waypost; hops=4")])

    assert born[0].message.hops == 4


@pytest.mark.parametrize("destination", [b"g", b"tpc_of_g", b"g?left=over"])
async def test_a_group_gets_a_message_for_each_endpoint_in_their_order(
    publishing: Publishing,
    store: SqliteStore,
    telemetry: Telemetry,
    born: list[Claim],
    destination: bytes,
) -> None:
    """W90; what is left of the query is ignored (D3)."""
    await _group(store)

    receipts = await _fan_out(publishing, destination, header=[(b"upstash-retries", b"7")])

    assert [(receipt.url, receipt.deduplicated) for receipt in receipts] == [(A, False), (B, False)]
    one, other = await _messages(store, receipts)
    assert one.id != other.id
    assert [(m.url, m.group, m.endpoint, m.retries_max) for m in (one, other)] == [
        (A, "g", "First endpoint", 7),
        (B, "g", None, 7),
    ]
    assert [claim.message.id for claim in born] == [one.id, other.id]
    assert {claim.body for claim in born} == {b"hello"}
    assert telemetry.messages_accepted == 2


async def test_a_group_of_one_is_answered_as_a_group(
    publishing: Publishing, store: SqliteStore
) -> None:
    await _group(store, Endpoint(A))

    assert [receipt.url for receipt in await _fan_out(publishing)] == [A]


async def test_a_group_in_a_queue_keeps_the_order_of_its_endpoints(
    publishing: Publishing, store: SqliteStore, born: list[Claim]
) -> None:
    """W77: the first one goes, and the others wait for it."""
    await _group(store, *(Endpoint(f"https://a.example/{number}") for number in range(5)))

    receipts = await _fan_out(publishing, queue="q")

    ids = [receipt.message_id for receipt in receipts]
    queue = await store.queue("acme", "q")
    assert queue is not None
    assert queue.lag == 5
    assert [claim.message.id for claim in born] == ids[:1]
    log = await Bench(store).log()
    assert [one.message.id for one in log if one.state == "CREATED"] == ids


async def test_the_endpoints_of_a_group_are_deduplicated_one_by_one(
    publishing: Publishing, store: SqliteStore, telemetry: Telemetry
) -> None:
    """D2: also by content; and an id that was used for a URL or another group is another one."""
    await _group(store)
    await _group(store, name="h")
    for field in (
        (b"upstash-deduplication-id", b"once"),
        (b"upstash-content-based-deduplication", b"True"),
    ):
        await _publish(publishing, A.encode(), header=[field])
        first = await _fan_out(publishing, header=[field])
        again = await _fan_out(publishing, b"tpc_of_g", header=[field])
        other = await _fan_out(publishing, b"h", header=[field])
        await _group(store, Endpoint(B), Endpoint("https://c.example/"))
        grown = await _fan_out(publishing, header=[field])
        await _group(store)

        assert again == [structs.replace(receipt, deduplicated=True) for receipt in first]
        assert not any(receipt.deduplicated for receipt in [*first, *other])
        assert [receipt.deduplicated for receipt in grown] == [True, False]
        assert grown[0].message_id == first[1].message_id
    assert (telemetry.messages_accepted, telemetry.messages_deduplicated) == (12, 6)


async def test_the_defaults_of_a_group_hold_where_a_publish_says_nothing(
    publishing: Publishing, store: SqliteStore
) -> None:
    """W143: by a header or by a parameter."""
    header = {
        "Upstash-Retries": ["5"],
        "Upstash-Label": ["of the group"],
        "Upstash-Method": ["PUT"],
        "Upstash-Timeout": ["9s"],
        "Upstash-Forward-X": ["a", "b"],
        "Upstash-Header-Forward": ["true"],
    }
    await _group(store, Endpoint(A), header=header)
    own = [
        (b"upstash-retries", b"1"),
        (b"upstash-timeout", b""),
        (b"x-signature", b"abc"),
        (b"authorization", b"Bearer token"),
    ]

    [message] = await _messages(
        store, await _fan_out(publishing, b"g?upstash-method=PATCH", header=own)
    )

    assert (message.retries_max, message.method) == (1, "PATCH")
    assert (message.timeout_ms, message.labels) == (9_000, ["of the group"])
    assert message.header == {"X-Signature": ["abc"], "X": ["a", "b"]}


async def test_the_groups_of_others_are_unknown(publishing: Publishing, store: SqliteStore) -> None:
    await _group(store)

    with pytest.raises(NotFound, match="topic g not found"):
        await publishing.publish(
            "other",
            Incoming(destination=b"g", query=b"", header=[], body=b"", caller_ip=None),
        )


async def test_what_is_wrong_with_one_message_of_a_group_keeps_all_from_being_accepted(
    publishing: Publishing, store: SqliteStore
) -> None:
    """An endpoint may have been added before the policy of egress was made stricter."""
    await _group(store, Endpoint(A), Endpoint("http://127.0.0.1/"))

    with pytest.raises(Invalid, match="loopback"):
        await _fan_out(publishing)

    assert await Bench(store).log() == []


@pytest.mark.parametrize(
    ("url", "more", "kind", "text"),
    [
        (b"", {}, Invalid, "a non-empty destination must be provided"),
        (b"ftp://example.com", {}, Invalid, "add http:// or https://"),
        (b"https://127.0.0.1/", {}, Invalid, "loopback"),
        (b"http://localhost:99/", {}, Invalid, "loopback"),
        (b"http://0x7f.1/", {}, Invalid, "loopback"),
        (b"https://169.254.169.254/latest", {}, Invalid, "link-local"),
        (b"api/llm", {}, Invalid, "llm"),
        (b"nobody", {}, NotFound, "topic nobody not found"),
        (b"https://a.example/", {"queue": "a b"}, Invalid, "queue"),
        (b"https://a.example/", {"header": [(b"upstash-retries", b"101")]}, QuotaExceeded, "max"),
        (b"https://a.example/", {"header": [(b"upstash-cron", b"* * * * *")]}, Invalid, "Cron"),
    ],
)
async def test_what_is_wrong_is_refused_by_name_and_nothing_is_kept(
    publishing: Publishing,
    store: SqliteStore,
    url: bytes,
    more: dict[str, Any],
    kind: type[Problem],
    text: str,
) -> None:
    with pytest.raises(kind, match=text):
        await _ask(publishing, url, **more)

    assert await Bench(store).log() == []


async def _in_a_batch(publishing: Publishing) -> None:
    one = Incoming(
        destination=A.encode(), query=b"", header=[], body=b"hello", caller_ip="192.0.2.7"
    )
    await publishing.publish_all("acme", [one] * 3)


WAYS = {"one": _publish, "group": _fan_out, "batch": _in_a_batch}


@pytest.mark.parametrize("fault", [StoreUnavailable, StoreFull, LimitReached])
@pytest.mark.parametrize("way", WAYS)
async def test_what_the_store_does_not_accept_uses_up_no_quota(
    publishing: Publishing,
    store: SqliteStore,
    rates: Rates,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    fault: type[Problem],
) -> None:
    await _group(store)
    await _publish(publishing)

    async def refuse(*_args: Any, **_more: Any) -> None:
        raise fault("not now")

    monkeypatch.setattr(store, "add", refuse)
    for _ in range(3):
        with pytest.raises(fault):
            await WAYS[way](publishing)

    assert rates.messages_room("acme", 5_000) == 999


async def test_a_publish_that_is_cancelled_counts_for_the_store_may_accept_it(
    publishing: Publishing, store: SqliteStore, rates: Rates
) -> None:
    publish = asyncio.create_task(_publish(publishing))
    await asyncio.sleep(0)
    publish.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publish
    await _publish(publishing)

    created = [one for one in await Bench(store).log() if one.state == "CREATED"]
    assert (len(created), rates.messages_room("acme", 5_000)) == (2, 998)
