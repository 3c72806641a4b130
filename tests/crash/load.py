"""The home of the load of a fault run: who publishes, who receives and is faulty, who kills.

    publishers ──▶ waypost ──▶ receiver        each writes what it sees into the History
                      ▲
                    killer, told of every request written, acknowledged, received and answered

| path       | answers                                                                  |
| ---------- | ------------------------------------------------------------------------ |
| /k/KEY     | 200, or what a fault makes of it                                          |
| /flaky/KEY | 500 until it was retried twice                                            |
| /bad/KEY   | 500: such messages end as dead letters                                    |
| /g/N       | endpoint N of the group, as /k/; the key of the publish is in a header    |
| /c/KEY     | takes callbacks of that publish, of attempts and of failures, as /k/      |

Everything runs in the test's event loop.  What is random comes from one seed,
which is printed; the interleaving is the machine's.
"""

import asyncio
import base64
import contextlib
import json
import random
import re
import select
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from tests.support.history import Attempt, History
from tests.support.ledger import Told, Wish, Wishes

now_s = time.monotonic

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
GROUP = "everybody"
ENDPOINTS = 3
FLAKY_RETRIES = 2
CALLBACK_RETRIES = 4
ANSWER_S_MAX = 15
OUTSTANDING_MAX = 100
OUTSTANDING_QUEUE_MAX = 12
"""Publishers pause while so many acknowledged messages (of a queue) are undelivered: what
is left after the last kill must drain in seconds."""


class Unknown(Exception):
    """A request whose result nobody knows."""


REST_S = 0.1
"""How long a publisher rests that was refused."""


class Door(Protocol):
    """Where callers come in: a port, or 0 while there is none, and a token."""

    @property
    def port(self) -> int: ...

    @property
    def token(self) -> str: ...


class Caller:
    """One keep-alive connection to whatever port the process has now."""

    def __init__(self, process: Door) -> None:
        self._process = process
        self._port = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(
        self,
        method: str,
        path: str,
        header: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        written: Callable[[], None] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON.  Raises Unknown when the connection broke or nothing came."""
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
        lines.append(f"Authorization: Bearer {self._process.token}")
        lines += [f"{name}: {value}" for name, value in (header or {}).items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                reader, writer = await self._connected()
                writer.write("\r\n".join(lines).encode() + body)
                if written is not None:
                    written()
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length is not None, head
                text = await reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as fault:
            self.close()
            raise Unknown(f"{type(fault).__name__}: {fault}") from None
        if b"connection: close" in head.lower():
            self.close()
        is_json = b"application/json" in head.lower()
        return int(head.split()[1]), json.loads(text) if is_json and text else text

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._port != self._process.port:
            self.close()
        if self._streams is None:
            self._port = self._process.port
            if not self._port:
                raise ConnectionRefusedError("it does not run")
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams


class Receiver:
    """Destinations on several loopback addresses; about 15 % faulty while `faulty`."""

    def __init__(self, history: History, rng: random.Random) -> None:
        self.faulty = True
        self.on_begin: Callable[[], None] = _nothing
        self.on_answered: Callable[[], None] = _nothing
        self.ports: dict[str, int] = {}
        self.ended = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.unanswered: set[str] = set()
        """Nodes that get no answer until they are taken out of here."""
        self._history = history
        self._rng = rng
        self._open: dict[str, tuple[Attempt, asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, host: str, key: str, *, path: str = "k") -> str:
        return f"http://{host}:{self.ports[host]}/{path}/{key}"

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Receiver"]:
        servers = [await asyncio.start_server(self._serve, host, 0) for host in HOSTS]
        for host, server in zip(HOSTS, servers, strict=True):
            self.ports[host] = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            for server in servers:
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:  # at the end of the test
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        header = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])
        }
        body = await reader.readexactly(int(header.get("content-length", "0")))
        _, path, key = head.split()[1].split("/", 2)
        self._hang_ups()
        attempt = self._begun(path, key, header, body)
        attempt.late = _is_shut(writer.get_extra_info("socket"))
        mark = f"{key}/{id(attempt)}"
        self._open[mark] = (attempt, writer)
        self.on_begin()
        try:
            if attempt.late:
                return False
            fails = path == "bad" or (path == "flaky" and attempt.retried < FLAKY_RETRIES)
            return await self._answer(attempt, reader, writer, status=500 if fails else 200)
        finally:
            del self._open[mark]
            if attempt.end_s is None:
                attempt.end_s = now_s()
            self.ended.set()

    def _begun(self, path: str, key: str, header: dict[str, str], body: bytes) -> Attempt:
        message_id, retried = header["upstash-message-id"], int(header["upstash-retried"])
        if path != "c":
            if path == "g":
                key = f"{header['key']}@{key}"
            return self._history.began(
                key,
                message_id,
                body,
                at_s=now_s(),
                retried=retried,
                node=header["upstash-region"],
            )
        says = json.loads(body)
        dlq_id = says.get("dlqId")
        return self._history.called_back(
            key,
            message_id,
            Told(says["sourceMessageId"], says["retried"], dlq_id is not None, dlq_id),
            status=says["status"],
            body=base64.b64decode(says["sourceBody"]),
            at_s=now_s(),
            retried=retried,
            node=header["upstash-region"],
        )

    async def _answer(
        self,
        attempt: Attempt,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        status: int,
    ) -> bool:
        fault = self._rng.random() if self.faulty else 1.0
        if fault < 0.06:
            status = 500
        elif fault < 0.09:
            attempt.lost = True
            return False
        elif fault < 0.11:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
            return False
        elif fault < 0.12:
            await self._hung_up(reader, wait_s=1.4)  # slower than the limit of 1 s
        elif fault < 0.15:
            await self._hung_up(reader, wait_s=self._rng.uniform(0.1, 0.5))
        elif fault < 0.6 or not self.gate.is_set():
            if not self.gate.is_set():
                await self.gate.wait()
            await self._hung_up(reader, wait_s=self._rng.uniform(0, 0.02))
        while attempt.node in self.unanswered and not reader.at_eof():
            await self._hung_up(reader, wait_s=0.02)
        self._hang_ups()  # in a machine that stands still for long the sender may be gone
        if reader.at_eof() or attempt.end_s is not None:
            return False
        answer = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
        writer.write(answer)
        transport = writer.transport
        # Answered is what the kernel has taken whole; a broken pipe closes the transport.
        if transport.is_closing() or transport.get_write_buffer_size():
            return False
        attempt.status, attempt.end_s = status, now_s()
        self.on_answered()
        return True

    async def _hung_up(self, reader: asyncio.StreamReader, *, wait_s: float) -> None:
        """Take `wait_s` over an answer, unless the sender hangs up before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await reader.read(1)

    def _hang_ups(self) -> None:
        """End the attempts whose sender has gone, though our loop has not read that yet."""
        for attempt, writer in self._open.values():
            if attempt.end_s is None and _is_shut(writer.get_extra_info("socket")):
                attempt.end_s = now_s()


def _is_shut(sock: Any) -> bool:
    """Whether a socket is closed, here or by who is on the other side."""
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _nothing() -> None:
    """What nobody asked to be told."""


class Load:
    """The publishers.  `stop` lets each end the request it is in."""

    def __init__(
        self,
        process: Door,
        receiver: Receiver,
        history: History,
        rng: random.Random,
        *,
        name: str = "",
        pause_s: float = 0,
    ) -> None:
        self.on_written: Callable[[], None] = _nothing
        self.on_acked: Callable[[], None] = _nothing
        self.refused: list[tuple[int, Any]] = []
        self._name = name
        self._pause_s = pause_s
        self._process = process
        self._receiver = receiver
        self._history = history
        self._rng = rng
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._serving = asyncio.Event()
        self._serial = 0
        self._has_group = False

    def start(self) -> None:
        """4 FIFO queues with two publishers each, of which the first has retries; 3 plain; one
        to a group, and one to the group in a queue."""
        self._tasks = [
            asyncio.create_task(self._publisher(name, queue, to_group=name[0] == "g"))
            for name, queue in (
                *((f"{side}{nth}", f"q{nth}") for nth in range(4) for side in "ab"),
                *((f"p{nth}", None) for nth in range(3)),
                ("g0", None),
                ("g1", "q-group"),
            )
        ]

    def serving(self, serving: bool) -> None:
        """Say whether the process runs: publishers wait while it does not."""
        if serving:
            self._serving.set()
        else:
            self._serving.clear()

    async def stop(self) -> None:
        self._stopping = True
        self._serving.set()
        async with asyncio.timeout(2 * ANSWER_S_MAX):
            await asyncio.gather(*self._tasks)

    async def _publisher(self, name: str, queue: str | None, *, to_group: bool) -> None:
        rng = random.Random(self._rng.random())
        caller = Caller(self._process)
        twin = Caller(self._process)
        retries_max = 5 if queue in ("q0", None) else 0
        while not self._stopping:
            await self._room(queue)
            await self._serving.wait()
            if self._pause_s:
                await asyncio.sleep(rng.uniform(0, 2 * self._pause_s))
            if to_group and not await self._grouped(caller):
                continue
            self._serial += 1
            key = f"{self._name}{name}-{self._serial}"
            dedup = f"d-{key}" if rng.random() < 0.5 else None
            body = rng.randbytes(rng.choice((0, 10, 300, 3_000, 20_000)))
            path = rng.choices(("k", "flaky", "bad"), (12, 2, 1))[0] if not to_group else "g"
            retries = {"bad": rng.choice((0, 0, 1)), "flaky": 5}.get(path, retries_max)
            header = {
                "Upstash-Retries": str(retries),
                "Upstash-Retry-Delay": str(rng.randrange(10, 60)),
                "Upstash-Timeout": "1s",
            }
            if dedup is not None:
                header["Upstash-Deduplication-Id"] = dedup
            if queue is None and not to_group and rng.random() < 0.2:
                # The next full second: a delay of less than one.
                header["Upstash-Not-Before"] = str(int(time.time()) + 1)
            wishes = Wishes(
                callback=self._wish(rng, "Callback", header, key, queue, retries),
                failure=self._wish(rng, "Failure-Callback", header, key, queue, retries),
            )
            where = GROUP if to_group else self._receiver.url(rng.choice(HOSTS), key, path=path)
            if to_group:
                header["Upstash-Forward-Key"] = key
            keys = [f"{key}@{nth}" for nth in range(ENDPOINTS)] if to_group else [key]
            for each in keys:
                self._history.submitted(
                    each,
                    body,
                    at_s=now_s(),
                    queue=queue,
                    dedup=dedup,
                    retries=retries,
                    group=key if to_group else None,
                    wishes=wishes,
                )
            call = f"/v2/enqueue/{queue}/{where}" if queue else f"/v2/publish/{where}"
            callers = [caller, twin] if dedup is not None and rng.random() < 0.4 else [caller]
            await asyncio.gather(
                *(self._publish(each, keys, call, header, body, dedup) for each in callers)
            )
            # One that is delayed still waits; any other may be in flight (D16).
            if not to_group and rng.random() < (0.2 if "Upstash-Not-Before" in header else 0.04):
                await self._cancel(caller, key)
        caller.close()
        twin.close()

    async def _grouped(self, caller: Caller) -> bool:
        """Make the group, unless we have; whether it is there."""
        if self._has_group:
            return True
        endpoints = [
            {"url": self._receiver.url(HOSTS[nth % len(HOSTS)], str(nth), path="g")}
            for nth in range(ENDPOINTS)
        ]
        body = json.dumps({"endpoints": endpoints}).encode()
        header = {"Content-Type": "application/json"}
        try:
            status, answer = await caller.call(
                "POST", f"/v2/topics/{GROUP}/endpoints", header, body
            )
        except Unknown:
            await asyncio.sleep(0.01)  # it may be gone, and whoever says so needs a turn
            return False
        self._has_group = status == 200
        if not self._has_group:
            self.refused.append((status, answer))
            await asyncio.sleep(REST_S)
        return self._has_group

    def _wish(
        self,
        rng: random.Random,
        name: str,
        header: dict[str, str],
        key: str,
        queue: str | None,
        retries: int,
    ) -> Wish | None:
        """Ask for a callback, for every other message: with retries of its own or as many as
        the message has (D25), sometimes late, sometimes in a queue that it names (D24)."""
        if rng.random() < 0.5:
            return None
        name = f"Upstash-{name}"
        header[name] = self._receiver.url(rng.choice(HOSTS), key, path="c")
        header[f"{name}-Timeout"] = "1s"
        header[f"{name}-Retry-Delay"] = str(rng.randrange(10, 60))
        if rng.random() < 0.7:
            retries = CALLBACK_RETRIES
            header[f"{name}-Retries"] = str(retries)
        if rng.random() < 0.03:
            header[f"{name}-Delay"] = "1s"
        own = None
        if rng.random() < 0.1:
            own = header[f"{name}-Queue-Name"] = rng.choice(("later", queue or "later"))
        return Wish(retries, own)

    async def _publish(
        self,
        caller: Caller,
        keys: list[str],
        path: str,
        header: dict[str, str],
        body: bytes,
        dedup: str | None,
    ) -> None:
        """Publish; with a dedup id again and again until the result is known."""
        while True:
            try:
                status, answer = await caller.call(
                    "POST", path, header, body, written=self.on_written
                )
            except Unknown:
                if dedup is None or self._stopping:
                    return
                async with asyncio.timeout(ANSWER_S_MAX * 4):
                    await self._serving.wait()
                await asyncio.sleep(0)
                continue
            if status in (200, 202):
                answers = answer if isinstance(answer, list) else [answer]
                for key, each in zip(keys, answers, strict=True):
                    self._history.acked(key, each["messageId"], at_s=now_s())
                self.on_acked()
            else:
                self.refused.append((status, answer))
                await asyncio.sleep(REST_S)
            return

    async def _cancel(self, caller: Caller, key: str) -> None:
        for message_id in self._history.submits[key].ids:
            # Asked is enough: whether it was in time nobody knows without an answer.
            self._history.submits[key].cancelled = True
            with contextlib.suppress(Unknown):
                status, answer = await caller.call("DELETE", f"/v2/messages/{message_id}")
                if status == 200 and not answer["cancelled"]:
                    self._history.submits[key].cancelled = False

    async def _room(self, queue: str | None) -> None:
        """Wait while much is undelivered; not for ever, for some may be lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                most = OUTSTANDING_QUEUE_MAX if queue else OUTSTANDING_MAX
                while self._outstanding(queue) > most and not self._stopping:
                    self._receiver.ended.clear()
                    await self._receiver.ended.wait()

    def _outstanding(self, queue: str | None) -> int:
        begun = {each.message_id for each in self._history.attempts[-2_000:]}
        recent = list(self._history.submits.values())[-1_000:]
        return sum(
            1 for each in recent if each.queue == queue and each.ids and not each.ids & begun
        )


async def publish(
    caller: Caller, url: str, body: bytes, *, queue: str | None = None, **header: str
) -> tuple[int, Any]:
    """Publish, or enqueue; header names are written with `_` for `-`."""
    path = f"/v2/enqueue/{queue}/{url}" if queue else f"/v2/publish/{url}"
    fields = {name.replace("_", "-"): value for name, value in header.items()}
    return await caller.call("POST", path, fields, body)


async def dead_letters(caller: Caller) -> dict[str, str]:
    """The ids in the dead letter queue, by the ids of their messages."""
    found: dict[str, str] = {}
    cursor = ""
    while True:
        status, page = await caller.call("GET", f"/v2/dlq?count=100{cursor}")
        assert status == 200, page
        found |= {each["messageId"]: each["dlqId"] for each in page["messages"]}
        if "cursor" not in page:
            return found
        cursor = f"&cursor={urllib.parse.quote(page['cursor'])}"


async def gauges(caller: Caller) -> dict[str, float]:
    """The gauges of `/metrics`, by name."""
    status, text = await caller.call("GET", "/metrics")
    assert status == 200, text
    return {
        found[1].decode(): float(found[2])
        for found in re.finditer(rb"(?m)^(waypost_\w+) ([0-9.e+-]+)$", text)
    }
