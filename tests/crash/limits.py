"""The home of limits in a fault run: messages with keys and in a wide queue, and who saw too much.

| limit  | what                                             | is held against                   |
| ------ | ------------------------------------------------ | --------------------------------- |
| narrow | a key with a parallelism of 2                    | attempts at once, at the receiver |
| wide   | a queue with a parallelism of 3                  | attempts at once, at the receiver |
| slow   | a key with a rate of 10 a second                 | ACTIVE times in the log (D26)     |
| both   | a queue of parallelism 2, and a key with both    | all of these                      |
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator

from msgspec import Struct

from tests.crash.load import HOSTS, REST_S, Caller, Door, Receiver, Unknown, now_s, publish
from tests.support.history import Attempt, History

OUTSTANDING_MAX = 8
RETRIES = 3
PERIOD_MS = 1_000


class Limit(Struct, frozen=True):
    """What a publisher asks for under a name, which its messages' keys begin with."""

    name: str
    parallelism: int | None = None
    rate: int | None = None
    queue: bool = False
    key: bool = False

    @property
    def header(self) -> dict[str, str]:
        if not self.key:
            return {}
        parts = [
            f"{what}={n}"
            for what, n in (("parallelism", self.parallelism), ("rate", self.rate))
            if n
        ]
        return {
            "Upstash_Flow_Control_Key": self.name,
            "Upstash_Flow_Control_Value": ", ".join(parts),
        }


LIMITS = (
    Limit("narrow", parallelism=2, key=True),
    Limit("wide", parallelism=3, queue=True),
    Limit("slow", rate=10, key=True),
    Limit("both", parallelism=2, rate=12, queue=True, key=True),
)


class LimitedLoad:
    """A publisher for each limit, which keeps a few messages waiting all the time."""

    def __init__(self, door: Door, receiver: Receiver, history: History) -> None:
        self.refused: list[tuple[int, object]] = []
        self.active_ms: list[tuple[str, int]] = []
        """When attempts began, by the log: message ids and times, in order."""
        self._door = door
        self._receiver = receiver
        self._history = history
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._publisher(limit)) for limit in LIMITS]

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _publisher(self, limit: Limit) -> None:
        caller = Caller(self._door)
        queue = limit.name if limit.queue else None
        if queue is not None:
            await self._put(caller, queue, limit.parallelism)
        mine: list[str] = []
        serial = 0
        while not self._stopping:
            ended = {each.message_id for each in self._history.attempts[-2_000:] if each.end_s}
            mine = [each for each in mine if each not in ended]
            if len(mine) >= OUTSTANDING_MAX:
                await asyncio.sleep(0.05)
                continue
            serial += 1
            key = f"{limit.name}-{serial}"
            self._history.submitted(key, key.encode(), at_s=now_s(), retries=RETRIES)
            url = self._receiver.url(HOSTS[serial % len(HOSTS)], key)
            header = {
                **limit.header,
                "Upstash_Retries": str(RETRIES),
                "Upstash_Retry_Delay": "20",
                "Upstash_Timeout": "1s",
            }
            try:
                status, answer = await publish(caller, url, key.encode(), queue=queue, **header)
            except Unknown:
                await asyncio.sleep(REST_S)
                continue
            if status in (200, 202):
                self._history.acked(key, answer["messageId"], at_s=now_s())
                mine.append(answer["messageId"])
            else:
                self.refused.append((status, answer))
                await asyncio.sleep(REST_S)
        caller.close()

    async def _put(self, caller: Caller, queue: str, parallelism: int | None) -> None:
        body = json.dumps({"queueName": queue, "parallelism": parallelism}).encode()
        header = {"Content-Type": "application/json"}
        status, answer = await caller.call("POST", "/v2/queues", header, body)
        assert status == 200, answer

    def excesses(self) -> list[str]:
        """Where more was under way at once than a limit allows, or more began in a window."""
        of: dict[str, Limit] = {limit.name: limit for limit in LIMITS}
        seen: dict[str, list[Attempt]] = defaultdict(list)
        names: dict[str, str] = {}
        for submit in self._history.submits.values():
            name = submit.key.partition("-")[0]
            names.update((each, name) for each in submit.ids if name in of)
        for attempt in self._history.attempts:
            name = attempt.key.partition("-")[0]
            if name in of and not attempt.late:
                seen[name].append(attempt)
                names[attempt.message_id] = name
        found = [each for name, line in seen.items() for each in _at_once(of[name], line)]
        times: dict[str, list[int]] = defaultdict(list)
        for message_id, time_ms in self.active_ms:
            times[names.get(message_id, "")].append(time_ms)
        return found + [each for name in of for each in _too_often(of[name], times[name])]


def _at_once(limit: Limit, line: list[Attempt]) -> Iterator[str]:
    if limit.parallelism is None:
        return
    for attempt in line:
        others = sum(
            each.begin_s <= attempt.begin_s and (each.end_s is None or each.end_s > attempt.begin_s)
            for each in line
            if each is not attempt
        )
        if others >= limit.parallelism:
            yield f"{attempt.key} began while {others} others of {limit.name} were under way"


def _too_often(limit: Limit, times: list[int]) -> Iterator[str]:
    """Windows begin with the first attempt that is in no other."""
    if limit.rate is None:
        return
    until_ms, count = 0, 0
    for time_ms in times:
        if time_ms >= until_ms:
            until_ms, count = time_ms + PERIOD_MS, 0
        count += 1
        if count > limit.rate:
            yield f"{limit.name}: {count} began in the second before {until_ms}"
