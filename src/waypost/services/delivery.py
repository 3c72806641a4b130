"""The home of one attempt: a claim is signed, sent, judged and settled."""

import asyncio
from collections.abc import Callable

import structlog

from waypost.clock import Clock
from waypost.domain.attempt import GiveUp, Outcome, Verdict
from waypost.domain.errors import StaleClaim, StoreBroken, StoreFull, StoreUnavailable
from waypost.domain.hops import FIELD, HOPS_MAX, field
from waypost.domain.message import Logged
from waypost.domain.retry import Backoff, judge
from waypost.domain.signing import SigningKeys, sign
from waypost.store.protocol import Claim, Deliveries
from waypost.telemetry import Telemetry
from waypost.wire.protocol import Request, Sender

log = structlog.stdlib.get_logger()

SETTLE_AGAIN_MS = 1_000
"""How long to wait before a settle that the store could not take is tried again."""

OWN_FIELDS = frozenset({"Upstash-Message-Id", "Upstash-Retried", "Upstash-Signature", FIELD})
"""Fields of ours that a publisher cannot override."""


class Delivery:
    """Attempts deliveries.  `keys` gives a tenant's signing keys."""

    def __init__(
        self,
        deliveries: Deliveries,
        sender: Sender,
        clock: Clock,
        telemetry: Telemetry,
        *,
        keys: Callable[[str], SigningKeys | None],
        backoff: Backoff,
        region: str,
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._clock = clock
        self._telemetry = telemetry
        self._keys = keys
        self._backoff = backoff
        self._region = region

    async def attempt(self, claim: Claim) -> Outcome:
        """Send a claimed message once; what the destination did."""
        message = claim.message
        if message.hops >= HOPS_MAX:
            return Outcome(
                refused=True, error=f"a loop: the message has passed here {message.hops} times"
            )
        started_ms = self._clock.now_ms()
        outcome = await self._sender.send(
            Request(
                method=message.method,
                url=message.url,
                header=self._header(claim, started_ms),
                body=claim.body,
                timeout_ms=message.timeout_ms,
            )
        )
        self._telemetry.attempted(outcome, took_ms=self._clock.now_ms() - started_ms)
        return outcome

    async def settle(self, claim: Claim, outcome: Outcome) -> Logged | None:
        """Record what became of an attempt; None when the claim had been lost.

        While the store is away or full this waits for it: what was delivered
        must not be sent again for want of a line in the log.
        """
        message = claim.message
        while True:
            now_ms = self._clock.now_ms()
            verdict = judge(
                outcome,
                retried=claim.retried,
                retries_max=message.retries_max,
                retry_delay=message.retry_delay,
                backoff=self._backoff,
                now_ms=now_ms,
            )
            try:
                logged = await self._deliveries.settle(claim, verdict, outcome, now_ms=now_ms)
            except StaleClaim:
                self._telemetry.settles_stale += 1
                log.warning("settle_stale", message_id=message.id)
                return None
            except StoreBroken:
                raise
            except (StoreFull, StoreUnavailable):
                await asyncio.sleep(SETTLE_AGAIN_MS / 1000)
            else:
                self._settled(claim, verdict, logged)
                return logged

    def _settled(self, claim: Claim, verdict: Verdict, logged: Logged) -> None:
        self._telemetry.messages_settled[logged] += 1
        if isinstance(verdict, GiveUp):
            log.info("message_failed", message_id=claim.message.id, why=verdict.why)

    def _header(self, claim: Claim, now_ms: int) -> list[tuple[str, str]]:
        """The fields that go out: ours, and those that the publisher forwards (section 4.1)."""
        message = claim.message
        forwarded = message.header
        header = [
            ("User-Agent", "Upstash-QStash"),
            ("Accept-Encoding", "identity"),
            ("Upstash-Region", self._region),
        ]
        if message.caller_ip is not None:
            header.append(("Upstash-Caller-Ip", message.caller_ip))
        if forwarded:
            header = [own for own in header if own[0] not in forwarded]
            header += [
                (name, value)
                for name, values in forwarded.items()
                if name not in OWN_FIELDS
                for value in values
            ]
        header += (
            ("Upstash-Message-Id", message.id),
            ("Upstash-Retried", str(claim.retried)),
            (FIELD, field(message.hops)),
        )
        keys = self._keys(message.tenant)
        # A claim's token is used once, so that with the message's id it names the attempt.
        if keys is not None:
            token = sign(
                key=keys.current,
                url=message.url,
                body=claim.body,
                now_ms=now_ms,
                jti=f"jwt_{message.id.removeprefix('msg_')}{claim.token:x}",
            )
            header.append(("Upstash-Signature", token))
        return header
