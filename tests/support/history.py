"""The home of the history of a fault run, and of the oracle that judges it.

The history is kept outside of the server, by those who publish and receive.
Only a 2xx counts as acknowledged; whatever else came of a publish is unknown,
and may go either way.  A message counts as delivered only once its receiver has
answered 2xx completely: one that was merely seen may have been settled before
it was sent, and lost.

| law | what must hold                                                                       |
| --- | ------------------------------------------------------------------------------------ |
| I1  | acknowledged: answered 2xx, or a dead letter, or cancelled; each of a group's; and the  |
|     | log knows of it, for else it was sent from memory and was never on disk               |
| I2  | what is delivered was submitted, byte for byte                                        |
| I3  | per queue: in order of acknowledgement, repeats adjacent, one attempt at a time; the   |
|     | next message once the callbacks of the one before have ended (D24)                    |
| I4  | one message id a dedup id and endpoint; one message a message id; a publish to a group |
|     | is accepted for all of its endpoints or for none                                      |
| I5  | attempts <= retries + 1 + interruptions + redials; a repeat after a 2xx has a kill at  |
|     | which the message was claimed; a dead letter had all its retries                      |
| I7  | of each attempt that has ended one callback, answered 2xx or a dead letter; of each    |
|     | dead letter one failure callback that names it; no other callback; each tells what was |

What was made and what has ended the server's own log says (`Ledger`); all else is seen from
outside.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from msgspec import Struct, field

from tests.support.ledger import Ledger, Told, Wish, Wishes


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


class Submit(Struct):
    """What a publisher asked for under one key: a dedup id is one key, however often sent.

    Of a publish to a group, each endpoint has a key, and `group` is what they share.
    """

    key: str
    queue: str | None
    dedup: str | None
    body: str
    retries: int
    first_s: float
    group: str | None = None
    wishes: Wishes = Wishes()
    acked_s: float | None = None
    ids: set[str] = field(default_factory=set)
    cancelled: bool = False


class Attempt(Struct):
    """One request as the receiver saw it.  `status` is None where no answer was completed;
    `lost`, where the receiver hung up with no byte of an answer (the sender may redial);
    `late`, where the sender had hung up before it was read, and nobody knows when it began:
    no law of order holds it; `node` is who sent it."""

    key: str
    message_id: str
    retried: int
    body: str
    begin_s: float
    end_s: float | None = None
    status: int | None = None
    lost: bool = False
    late: bool = False
    node: str = ""

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Callback(Struct):
    """A callback as it came: `key` is that of its URL, `status` and `body` are of the attempt
    that it tells of; the body is a digest of what that had sent."""

    attempt: Attempt
    key: str
    told: Told
    status: int
    body: str


class Kill(Struct):
    """A SIGKILL, and the messages that were claimed and unsettled in what it left.

    What the dead process had sent may still be read until `over_s`.  To the others a process
    that was frozen was dead until then.
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
    fan_outs: int
    callbacks: int
    callbacks_missing: int
    findings: dict[str, list[str]]

    @property
    def lost(self) -> int:
        return len(self.findings.get("I1", ()))

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acked} of {self.submitted} acknowledged, "
            f"{self.delivered} delivered, {self.dead} dead, {self.cancelled} cancelled, "
            f"{self.lost} lost; {self.fan_outs} fan-outs; {self.callbacks} callbacks due, "
            f"{self.callbacks_missing} missing; {self.attempts} attempts, "
            f"{self.duplicates} duplicates <= {self.claimed_at_kills} claimed and unsettled "
            "at the kills; findings: "
            + (", ".join(f"{law} {len(found)}" for law, found in self.findings.items()) or "none")
        )


class History:
    """Everything that publishers and receivers saw.  Times are of one monotonic clock."""

    def __init__(self) -> None:
        self.submits: dict[str, Submit] = {}
        self.attempts: list[Attempt] = []
        self.callbacks: list[Callback] = []
        self.kills: list[Kill] = []
        self.dead: dict[str, str] = {}
        """The id of the dead letter of a message."""
        self.ledger = Ledger()
        self._sources: dict[str, Submit] = {}

    def submitted(
        self,
        key: str,
        body: bytes,
        *,
        at_s: float,
        queue: str | None = None,
        dedup: str | None = None,
        retries: int = 0,
        group: str | None = None,
        wishes: Wishes | None = None,
    ) -> None:
        if key not in self.submits:
            self.submits[key] = Submit(
                key, queue, dedup, digest(body), retries, at_s, group, wishes or Wishes()
            )

    def acked(self, key: str, message_id: str, *, at_s: float) -> None:
        submit = self.submits[key]
        submit.ids.add(message_id)
        if submit.acked_s is None:
            submit.acked_s = at_s

    def began(
        self,
        key: str,
        message_id: str,
        body: bytes,
        *,
        at_s: float,
        retried: int = 0,
        node: str = "",
    ) -> Attempt:
        attempt = Attempt(key, message_id, retried, digest(body), at_s, node=node)
        self.attempts.append(attempt)
        return attempt

    def called_back(
        self,
        key: str,
        message_id: str,
        told: Told,
        *,
        status: int,
        body: bytes,
        at_s: float,
        retried: int = 0,
        node: str = "",
    ) -> Attempt:
        attempt = Attempt(f"a callback of {key}", message_id, retried, "", at_s, node=node)
        self.callbacks.append(Callback(attempt, key, told, status, digest(body)))
        return attempt

    def judge(self) -> Verdict:
        """Hold the history against the laws."""
        self._sources = {each: s for s in self.submits.values() for each in s.ids}
        for attempt in self.attempts:
            if attempt.key in self.submits:
                self._sources[attempt.message_id] = self.submits[attempt.key]
        missing = self._missing()
        laws = {
            "I1": self._lost(),
            "I2": self._altered(),
            "I3": self._disordered(),
            "I4": self._doubled(),
            "I5": self._unbounded(),
            "I7": [*missing, *self._mistold()],
        }
        acked = [each for each in self.submits.values() if each.ids]
        delivered = {each.key for each in self.attempts if each.delivered}
        return Verdict(
            submitted=len(self.submits),
            acked=len(acked),
            delivered=len(delivered),
            dead=len(self.dead),
            cancelled=sum(each.cancelled for each in acked),
            attempts=len(self.attempts) + len(self.callbacks),
            kills=len(self.kills),
            claimed_at_kills=sum(len(kill.claimed) for kill in self.kills),
            duplicates=sum(1 for _ in self._repeats()),
            fan_outs=len({each.group for each in acked} - {None}),
            callbacks=self.ledger.owed(self._wished()).total(),
            callbacks_missing=len(missing),
            findings={law: found for law, judged in laws.items() if (found := list(judged))},
        )

    def _lost(self) -> Iterator[str]:
        ended = {each.message_id for each in self.attempts if each.delivered} | self.dead.keys()
        for submit in self.submits.values():
            for message_id in submit.ids:
                if message_id not in self.ledger.logged:
                    yield f"{submit.key} ({message_id}) was acknowledged and never on disk"
                elif not (submit.cancelled or message_id in ended):
                    yield f"{submit.key} ({message_id}) was acknowledged and never delivered"

    def _altered(self) -> Iterator[str]:
        for attempt in self.attempts:
            submit = self.submits.get(attempt.key)
            if submit is None:
                yield f"{attempt.key} came and nobody had sent it"
            elif submit.body != attempt.body:
                yield f"{attempt.key} came with another body"

    def _disordered(self) -> Iterator[str]:
        lines: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            submit = self.submits.get(attempt.key)
            if submit is not None and submit.queue is not None and not attempt.late:
                lines[submit.queue].append(attempt)
        for callback in self.callbacks:
            wish = self._wish(callback)
            if wish is not None and wish.queue is not None and not callback.attempt.late:
                lines[wish.queue].append(callback.attempt)
        over_s: dict[str, float] = {}
        for queue, line in lines.items():
            line.sort(key=lambda attempt: attempt.begin_s)
            yield from self._out_of_line(queue, line)
            # A message has its place until the next begins that is not a callback itself.
            own = [attempt for attempt in line if attempt.key in self.submits]
            for before, after in pairwise(own):
                if before.message_id != after.message_id:
                    over_s[before.message_id] = after.begin_s
        for callback in self.callbacks:
            wish, end_s = self._wish(callback), callback.attempt.end_s
            until_s = over_s.get(callback.told.source_id)
            if wish is None or wish.queue is not None or until_s is None or callback.attempt.late:
                continue
            if end_s is None or end_s > until_s:
                yield f"{callback.key}: the next one began before {callback.told} was told"

    def _out_of_line(self, queue: str, line: list[Attempt]) -> Iterator[str]:
        seen: set[str] = set()
        latest_submit_s = 0.0
        for before, after in pairwise([None, *line]):
            assert after is not None
            if before is not None and (before.end_s is None or before.end_s > after.begin_s):
                yield f"{queue}: {after.key} began before {before.key} had ended"
            if before is not None and before.message_id == after.message_id:
                continue
            if after.message_id in seen:
                yield f"{queue}: {after.key} was repeated after others"
                continue
            seen.add(after.message_id)
            submit = self.submits.get(after.key)
            if submit is None:
                continue
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
        groups: dict[str, set[bool]] = defaultdict(set)
        for key, submit in self.submits.items():
            if submit.group is not None:
                groups[submit.group].add(bool(ids[key]))
        for group, there in groups.items():
            if len(there) > 1:
                yield f"{group} was accepted for some endpoints and not for others"

    def _unbounded(self) -> Iterator[str]:
        tries: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            tries[attempt.message_id].append(attempt)
        wishes: dict[str, Wish] = {}
        for callback in self.callbacks:
            wish = self._wish(callback)
            if wish is not None:
                wishes[callback.attempt.message_id] = wish
                tries[callback.attempt.message_id].append(callback.attempt)
        interrupted = Counter(each for kill in self.kills for each in kill.claimed)
        for message_id, mine in tries.items():
            asked = wishes.get(message_id) or self.submits.get(mine[0].key)
            if asked is None:
                continue
            key, retries = mine[0].key, asked.retries
            redials = sum(each.lost for each in mine)
            if len(mine) > retries + 1 + interrupted[message_id] + redials:
                yield f"{key} was sent {len(mine)} times"
            if max(each.retried for each in mine) > retries:
                yield f"{key} was retried more often than it may be"
            if message_id in self.dead and len(mine) < retries + 1:
                yield f"{key} is a dead letter after {len(mine)} attempts"
        for first, second in self._repeats():
            if not any(
                first.begin_s <= kill.over_s
                and kill.at_s <= second.begin_s
                and first.message_id in kill.claimed
                for kill in self.kills
            ):
                yield f"{first} was followed by {second}, and no kill explains it"

    def _repeats(self) -> Iterator[tuple[Attempt, Attempt]]:
        """Each answered 2xx, with the attempt of the same message that followed it."""
        latest: dict[str, Attempt] = {}
        for attempt in (*self.attempts, *(callback.attempt for callback in self.callbacks)):
            before = latest.get(attempt.message_id)
            if attempt.late:
                continue
            if before is not None and before.delivered:
                yield before, attempt
            latest[attempt.message_id] = attempt

    def _wished(self) -> dict[str, Wishes]:
        """What the publisher wished for each message whose id somebody has seen."""
        wished = {message_id: submit.wishes for message_id, submit in self._sources.items()}
        return {message_id: wishes for message_id, wishes in wished.items() if wishes != Wishes()}

    def _wish(self, callback: Callback) -> Wish | None:
        """What the publisher of its source wished of a callback."""
        submit = self._sources.get(callback.told.source_id)
        if submit is None:
            return None
        return submit.wishes.failure if callback.told.failure else submit.wishes.callback

    def _missing(self) -> list[str]:
        """Attempts that have ended, and nobody was told: there is no callback, or it was
        never answered and is no dead letter."""
        answered = {each.attempt.message_id for each in self.callbacks if each.attempt.delivered}
        return self.ledger.missing(self._wished()) + [
            f"{callback_id} was never answered: {told}"
            for callback_id, told in self.ledger.told.items()
            if callback_id not in answered | self.dead.keys()
        ]

    def _mistold(self) -> Iterator[str]:
        yield from self.ledger.surplus(self._wished())
        sources: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
        for attempt in self.attempts:
            sources[attempt.message_id, attempt.retried].append(attempt)
        for callback in self.callbacks:
            told, begin_s = callback.told, callback.attempt.begin_s
            if self.ledger.told.get(callback.attempt.message_id) != told:
                yield f"{callback.attempt.message_id} told {told}, and is not known to"
            if told.failure and told.dlq_id != self.dead.get(told.source_id):
                yield f"{told}: there is no dead letter {told.dlq_id}"
            ended = [
                each
                for each in sources[told.source_id, told.retried]
                if each.late or (each.end_s is not None and each.end_s <= begin_s)
            ]
            if not ended:
                yield f"{told} was told before it came"
            elif callback.key != self._told_as(ended[0].key):
                yield f"{told} was told to {callback.key}"
            elif callback.body != ended[0].body:
                yield f"{told} was told with another body"
            elif 200 <= callback.status < 300 and not any(each.delivered for each in ended):
                yield f"{told}: it was told of a success that nobody had answered"

    def _told_as(self, key: str) -> str:
        """The key that the URL of a message's callbacks has: that of the whole publish."""
        submit = self.submits.get(key)
        return key if submit is None else submit.group or key
