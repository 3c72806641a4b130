"""The home of the history of a fault run, and of the oracle that judges it.

The history is kept outside of the server, by those who publish and receive.
Only a 2xx counts as acknowledged; whatever else came of a publish is unknown,
and may go either way.  A message counts as delivered only once its receiver has
answered 2xx completely: one that was merely seen may have been settled before
it was sent, and lost.

| law | what must hold                                                                       |
| --- | ------------------------------------------------------------------------------------ |
| I1  | acknowledged: answered 2xx, or a dead letter, or cancelled                            |
| I2  | what is delivered was submitted, byte for byte                                        |
| I3  | per queue: in order of acknowledgement, repeats adjacent, one attempt at a time        |
| I4  | one message id a dedup id; one message a message id                                   |
| I5  | attempts <= retries + 1 + interruptions + redials; a repeat after a 2xx has a kill at  |
|     | which the message was claimed; a dead letter had all its retries                      |
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from msgspec import Struct, field


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


class Submit(Struct):
    """What a publisher asked for under one key: a dedup id is one key, however often sent."""

    key: str
    queue: str | None
    dedup: str | None
    body: str
    retries: int
    first_s: float
    acked_s: float | None = None
    ids: set[str] = field(default_factory=set)
    cancelled: bool = False


class Attempt(Struct):
    """One request as the receiver saw it.  `status` is None where no answer was completed;
    `lost`, where the receiver hung up with no byte of an answer (the sender may redial)."""

    key: str
    message_id: str
    retried: int
    body: str
    begin_s: float
    end_s: float | None = None
    status: int | None = None
    lost: bool = False

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Kill(Struct):
    """A SIGKILL, and the messages that were claimed and unsettled in the file it left.

    What the dead process had sent may still be read until `over_s`.
    """

    at_s: float
    over_s: float
    claimed: frozenset[str]


class Verdict(Struct):
    """What the oracle found; `findings` is empty when every law holds."""

    submitted: int
    acked: int
    delivered: int
    dead: int
    cancelled: int
    attempts: int
    kills: int
    claimed_at_kills: int
    duplicates: int
    findings: dict[str, list[str]]

    @property
    def lost(self) -> int:
        return len(self.findings.get("I1", ()))

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acked} of {self.submitted} acknowledged, "
            f"{self.delivered} delivered, {self.dead} dead, {self.cancelled} cancelled, "
            f"{self.lost} lost; {self.attempts} attempts, {self.duplicates} duplicates "
            f"<= {self.claimed_at_kills} claimed and unsettled at the kills; findings: "
            + (", ".join(f"{law} {len(found)}" for law, found in self.findings.items()) or "none")
        )


class History:
    """Everything that publishers and receivers saw.  Times are of one monotonic clock."""

    def __init__(self) -> None:
        self.submits: dict[str, Submit] = {}
        self.attempts: list[Attempt] = []
        self.kills: list[Kill] = []
        self.dead: set[str] = set()

    def submitted(
        self,
        key: str,
        body: bytes,
        *,
        at_s: float,
        queue: str | None = None,
        dedup: str | None = None,
        retries: int = 0,
    ) -> None:
        if key not in self.submits:
            self.submits[key] = Submit(key, queue, dedup, digest(body), retries, at_s)

    def acked(self, key: str, message_id: str, *, at_s: float) -> None:
        submit = self.submits[key]
        submit.ids.add(message_id)
        if submit.acked_s is None:
            submit.acked_s = at_s

    def began(
        self, key: str, message_id: str, body: bytes, *, at_s: float, retried: int = 0
    ) -> Attempt:
        attempt = Attempt(key, message_id, retried, digest(body), at_s)
        self.attempts.append(attempt)
        return attempt

    def judge(self) -> Verdict:
        """Hold the history against the laws."""
        laws = {
            "I1": self._lost(),
            "I2": self._altered(),
            "I3": self._disordered(),
            "I4": self._doubled(),
            "I5": self._unbounded(),
        }
        acked = [each for each in self.submits.values() if each.ids]
        delivered = {each.key for each in self.attempts if each.delivered}
        return Verdict(
            submitted=len(self.submits),
            acked=len(acked),
            delivered=len(delivered),
            dead=len(self.dead),
            cancelled=sum(each.cancelled for each in acked),
            attempts=len(self.attempts),
            kills=len(self.kills),
            claimed_at_kills=sum(len(kill.claimed) for kill in self.kills),
            duplicates=sum(1 for _ in self._repeats()),
            findings={law: found for law, judged in laws.items() if (found := list(judged))},
        )

    def _lost(self) -> Iterator[str]:
        delivered = {each.message_id for each in self.attempts if each.delivered}
        for submit in self.submits.values():
            for message_id in submit.ids - delivered - self.dead:
                if not submit.cancelled:
                    yield f"{submit.key} ({message_id}) was acknowledged and never delivered"

    def _altered(self) -> Iterator[str]:
        for attempt in self.attempts:
            submit = self.submits.get(attempt.key)
            if submit is None:
                yield f"{attempt.key} came and nobody had sent it"
            elif submit.body != attempt.body:
                yield f"{attempt.key} came with another body"

    def _disordered(self) -> Iterator[str]:
        queues: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            submit = self.submits.get(attempt.key)
            if submit is not None and submit.queue is not None:
                queues[submit.queue].append(attempt)
        for queue, attempts in queues.items():
            seen: set[str] = set()
            latest_submit_s = 0.0
            for before, after in pairwise([None, *attempts]):
                assert after is not None
                submit = self.submits[after.key]
                if before is not None and (before.end_s is None or before.end_s > after.begin_s):
                    yield f"{queue}: {after.key} began before {before.key} had ended"
                if before is not None and before.key == after.key:
                    continue
                if after.key in seen:
                    yield f"{queue}: {after.key} was repeated after others"
                    continue
                seen.add(after.key)
                if submit.acked_s is not None and submit.acked_s < latest_submit_s:
                    yield f"{queue}: {after.key} came after one submitted after its acknowledgement"
                latest_submit_s = max(latest_submit_s, submit.first_s)

    def _doubled(self) -> Iterator[str]:
        keys: dict[str, set[str]] = defaultdict(set)
        ids = {key: set(submit.ids) for key, submit in self.submits.items()}
        for attempt in self.attempts:
            ids.setdefault(attempt.key, set()).add(attempt.message_id)
        for key, mine in ids.items():
            if len(mine) > 1:
                yield f"{key} has {len(mine)} message ids"
            for message_id in mine:
                keys[message_id].add(key)
        for message_id, named in keys.items():
            if len(named) > 1:
                yield f"{message_id} was given to {len(named)} messages"

    def _unbounded(self) -> Iterator[str]:
        tries: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            tries[attempt.message_id].append(attempt)
        interrupted = Counter(each for kill in self.kills for each in kill.claimed)
        for message_id, mine in tries.items():
            submit = self.submits.get(mine[0].key)
            if submit is None:
                continue
            redials = sum(each.lost for each in mine)
            if len(mine) > submit.retries + 1 + interrupted[message_id] + redials:
                yield f"{submit.key} was sent {len(mine)} times"
            if max(each.retried for each in mine) > submit.retries:
                yield f"{submit.key} was retried more often than it may be"
            if message_id in self.dead and len(mine) < submit.retries + 1:
                yield f"{submit.key} is a dead letter after {len(mine)} attempts"
        for first, second in self._repeats():
            if not any(
                first.begin_s <= kill.over_s
                and kill.at_s <= second.begin_s
                and first.message_id in kill.claimed
                for kill in self.kills
            ):
                yield f"{first.key} was sent again after a 2xx, and no kill explains it"

    def _repeats(self) -> Iterator[tuple[Attempt, Attempt]]:
        """Each answered 2xx, with the attempt of the same message that followed it."""
        latest: dict[str, Attempt] = {}
        for attempt in self.attempts:
            before = latest.get(attempt.message_id)
            if before is not None and before.delivered:
                yield before, attempt
            latest[attempt.message_id] = attempt
