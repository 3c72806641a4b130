"""The home of one attempt: a claim is signed, sent, judged and settled, and told of."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from waypost.clock import Clock
from waypost.domain import callbacks
from waypost.domain.apis import Api, authorized
from waypost.domain.attempt import GiveUp, Outcome, TryAgain, Verdict
from waypost.domain.destination import origin_of
from waypost.domain.errors import StaleClaim, StoreBroken, StoreFull, StoreUnavailable
from waypost.domain.hops import FIELD, HOPS_MAX, field
from waypost.domain.ids import MESSAGE_ENTROPY_BITS, message_id
from waypost.domain.message import Callback, Logged
from waypost.domain.places import INTERRUPTED_MAX
from waypost.domain.retry import Backoff, judge
from waypost.domain.signing import SigningKeys, sign
from waypost.store.protocol import Births, Claim, Deliveries, Draft
from waypost.telemetry import Telemetry
from waypost.wire.protocol import NotBegun, Request, Sender

log = structlog.stdlib.get_logger()

SETTLE_AGAIN_MS = 1_000
"""How long to wait before a settle that the store could not take is tried again."""

OWN_FIELDS = frozenset(
    {
        "Upstash-Message-Id",
        "Upstash-Retried",
        "Upstash-Schedule-Id",
        "Upstash-Signature",
        "Upstash-Topic-Name",
        "Cdn-Loop",
    }
)
"""Fields of ours that a publisher cannot override, by their canonical names."""


class Delivery:
    """Attempts deliveries.

    `keys` gives a tenant's signing keys, `entropy` so many random bits.  `llm` is where
    messages to `api/llm` go.
    """

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
        entropy: Callable[[int], int],
        llm: Api | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._sender = sender
        self._clock = clock
        self._telemetry = telemetry
        self._keys = keys
        self._backoff = backoff
        self._region = region
        self._entropy = entropy
        self._llm = llm

    async def attempt(self, claim: Claim) -> Outcome:
        """Send a claimed message once; what the destination did.

        Raises NotBegun where its lease is over: then nothing was sent.
        """
        message = claim.message
        why = self._why_not(claim)
        if why is not None:
            return Outcome(refused=True, error=why)
        may_begin = partial(self._deliveries.may_begin, claim)
        if not may_begin():
            raise NotBegun
        started_ms = self._clock.now_ms()
        url, header = message.url, self._header(claim, started_ms)
        if message.api is not None:
            assert self._llm is not None, message.id
            url, header = self._llm.url, authorized(header, self._llm.key)
        outcome = await self._sender.send(
            Request(
                method=message.method,
                url=url,
                header=header,
                body=claim.body,
                timeout_ms=message.timeout_ms,
                tenant=message.tenant,
                trusted=message.api is not None,
                may_begin=may_begin,
            )
        )
        self._telemetry.attempted(outcome, took_ms=self._clock.now_ms() - started_ms)
        return outcome

    def _why_not(self, claim: Claim) -> str | None:
        """Why a message is given up and not sent, or None."""
        message = claim.message
        if message.hops >= HOPS_MAX:
            return f"a loop: the message has passed here {message.hops} times"
        if claim.interrupted >= INTERRUPTED_MAX:
            return f"interrupted: {claim.interrupted} attempts were cut short by a crash"
        if message.api is not None and self._llm is None:
            return f"{message.url} is not configured any more: set llm_base_url"
        return None

    async def settle(self, claim: Claim, outcome: Outcome, *, births: Births) -> Logged | None:
        """Record what became of an attempt, and call back; None when the claim had been lost.

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
                not_before_ms=message.not_before_ms,
                now_ms=now_ms,
            )
            drafts = self._callbacks(claim, outcome, verdict, now_ms)
            try:
                logged = await self._deliveries.settle(
                    claim,
                    verdict,
                    outcome,
                    callbacks=drafts,
                    births=births,
                    now_ms=now_ms,
                )
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
                # The store makes no failure callback of a message that was to be cancelled.
                if logged is not Logged.CANCELED:
                    self._telemetry.callbacks_accepted += len(drafts)
                return logged

    async def give_back(self, claim: Claim) -> None:
        """Give a claim back whose attempt did not begin.

        While the store is away this waits for it: as long as this node lives, nobody else would
        take the claim over.
        """
        while True:
            try:
                await self._deliveries.release([claim], now_ms=self._clock.now_ms())
            except StoreBroken:
                raise
            except (StoreFull, StoreUnavailable):
                await asyncio.sleep(SETTLE_AGAIN_MS / 1000)
            else:
                self._telemetry.claims_released += 1
                return

    def _callbacks(
        self, claim: Claim, outcome: Outcome, verdict: Verdict, now_ms: int
    ) -> list[Draft]:
        """Who is told of an attempt: of each the one, of the last that failed the other too.

        A fault of our own proxy is none of the destination's, and there is nothing to tell.
        """
        source = claim.message
        drafts: list[Draft] = []
        if outcome.proxy_fault and isinstance(verdict, TryAgain) and not verdict.counts:
            return drafts
        if source.callback is not None:
            drafts.append(self._callback(source.callback, claim, outcome, now_ms, failure=False))
        if source.failure_callback is not None and isinstance(verdict, GiveUp):
            drafts.append(
                self._callback(source.failure_callback, claim, outcome, now_ms, failure=True)
            )
        return drafts

    def _callback(
        self, callback: Callback, claim: Claim, outcome: Outcome, now_ms: int, *, failure: bool
    ) -> Draft:
        return Draft(
            message=callbacks.message(
                callback,
                claim.message,
                message_id=message_id(now_ms, self._entropy(MESSAGE_ENTROPY_BITS)),
                now_ms=now_ms,
            ),
            report=callbacks.report(outcome, retried=claim.retried, failure=failure),
            host=origin_of(callback.url).key,
        )

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
        if message.group is not None:
            header.append(("Upstash-Topic-Name", message.group))
        if message.schedule is not None:
            header.append(("Upstash-Schedule-Id", message.schedule))
        keys = self._keys(message.tenant) if message.api is None else None
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
