"""Publishing: from raw bytes to a message on disk, or to a refusal that names the fault."""

from typing import Any

import pytest

from tests.store.bench import Bench
from tests.support.clock import SetClock
from tests.support.factory import MINUTE, T0, some_places
from waypost.domain.errors import Invalid, NotFound, Problem, QuotaExceeded
from waypost.domain.options import Limits
from waypost.services.publishing import Incoming, Publishing, Receipt
from waypost.store.protocol import Claim
from waypost.store.sqlite.store import SqliteStore
from waypost.telemetry import Telemetry
from waypost.wire.egress import Egress


@pytest.fixture
def born() -> list[Claim]:
    return []


@pytest.fixture
def publishing(store: SqliteStore, clock: SetClock, born: list[Claim]) -> Publishing:
    return Publishing(
        store,
        clock,
        Telemetry(),
        limits=Limits(),
        places=some_places(),
        hand_over=born.append,
        refusal_of_host=Egress().refusal_of_host,
        entropy=_Counting().bits,
    )


class _Counting:
    def __init__(self) -> None:
        self._count = 0

    def bits(self, _count: int) -> int:
        self._count += 1
        return self._count


async def _publish(
    publishing: Publishing, url: bytes = b"https://example.com/a?b=c", **more: Any
) -> Receipt:
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
    assert again == Receipt(message_id=first.message_id, deduplicated=True)


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
        await _publish(publishing, url, **more)

    assert await Bench(store).log() == []
