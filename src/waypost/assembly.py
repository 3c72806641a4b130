"""The home of the wiring: the only module that knows every concrete class.

Read it top to bottom.  Fakes come in by keyword, into the same assembly that
production uses.
"""

import asyncio
import gc
import math
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import structlog
from msgspec import Struct

from waypost.api.app import LOOKING, create_app
from waypost.api.exchange import Limits as ApiLimits
from waypost.api.server import HttpServer
from waypost.clock import Clock, SystemClock
from waypost.domain import apis
from waypost.domain.dev_users import DEV_USERS
from waypost.domain.errors import StoreUnavailable
from waypost.domain.options import Limits
from waypost.domain.places import Places
from waypost.domain.retry import Backoff
from waypost.domain.schedules import Rule
from waypost.engines import engine_of
from waypost.loops.dispatcher import Dispatcher
from waypost.loops.scheduler import Scheduler
from waypost.loops.supervisor import Supervisor
from waypost.loops.upkeep import UpkeepLoop
from waypost.services.access import Access
from waypost.services.chat import Chat
from waypost.services.dead_letters import DeadLetters
from waypost.services.delivery import Delivery
from waypost.services.flow_keys import FlowKeys
from waypost.services.health import Health
from waypost.services.messages import Messages
from waypost.services.publishing import Publishing
from waypost.services.queues import Queues
from waypost.services.rates import Rates
from waypost.services.schedules import Schedules
from waypost.services.url_groups import UrlGroups
from waypost.settings import Settings, SettingsError
from waypost.store import copying
from waypost.store.copying import Copied, Watch
from waypost.store.migrations import Lag
from waypost.store.postgres.copying import open_target
from waypost.store.protocol import BYTES_MAX, Node, People, Reader, Retention, Store
from waypost.store.sqlite.copying import open_source
from waypost.telemetry import Readings, Telemetry
from waypost.wire.egress import Egress
from waypost.wire.policy import PolicyFault, read_rules
from waypost.wire.protocol import Sender
from waypost.wire.proxy import Proxy
from waypost.wire.sender import HttpSender

log = structlog.stdlib.get_logger()

SWITCH_INTERVAL_S = 0.000_5
"""How long a thread that reads may keep the event loop from going on, each time that it wants to
(docs/decisions/0015-bulk-calls-go-in-small-steps.md)."""


class Announcement(Struct, frozen=True, kw_only=True):
    """What there is to say once requests are served.  `database` is without a password;
    `due_count` were kept from before."""

    address: str
    database: str
    due_count: int
    log_address: str | None = None


class Server(Struct, frozen=True, kw_only=True):
    """A running server.  Leaving `running` stops it."""

    port: int
    store: Store
    supervisor: Supervisor
    announcement: Announcement


def egress_of(settings: Settings, *, dev: bool, own: tuple[str, int]) -> Egress:
    """The egress policy; `own` is where the server listens.

    Raises SettingsError with every fault of the policy file.
    """
    allow = [ip_network(network) for network in settings.egress_allow]
    path = settings.egress_policy
    try:
        rules = read_rules(Path(path).read_text(encoding="utf-8")) if path else ()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"egress_policy {path} cannot be read: {error}") from None
    except PolicyFault as fault:
        raise SettingsError(*(f"egress_policy {path}: {each}" for each in fault.faults)) from None
    if dev:
        return Egress.for_development(rules=rules, allow=allow)
    return Egress(rules=rules, allow=allow, own=[own])


@asynccontextmanager
async def running(
    settings: Settings, *, dev: bool, clock: Clock | None = None, sender: Sender | None = None
) -> AsyncIterator[Server]:
    """Everything, wired; closed in the reverse order it was opened."""
    telemetry = Telemetry()
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listener(settings.listen_host, settings.listen_port))
        host, port = listener.getsockname()[:2]
        egress = egress_of(settings, dev=dev, own=(host, port))
        opened = await stack.enter_async_context(engine_of(settings).store(clock))
        store, clock = opened.store, opened.clock
        store.writer.on_batch = telemetry.store_batch_calls.observe
        store.writer.on_sync = telemetry.store_sync_seconds.observe

        if sender is None:
            sender = await stack.enter_async_context(
                HttpSender(
                    egress=egress,
                    body_bytes_max=settings.response_bytes_max,
                    ca_file=settings.ca_file or None,
                    nameservers=settings.nameservers,
                    proxy=Proxy(settings.egress_proxy) if settings.egress_proxy else None,
                )
            )
        access = Access(
            store,
            fixed=DEV_USERS if dev else (),
            refused_tokens=() if dev else [user.token for user in DEV_USERS],
        )
        await access.refresh()

        places = Places(
            count_max=settings.in_flight_max,
            host_count_max=settings.in_flight_host_max,
            bytes_max=settings.in_flight_bytes_max,
        )
        entropy = random.Random().getrandbits  # noqa: S311 -- ids are no secrets
        llm = apis.llm(settings.llm_base_url, settings.llm_api_key)
        delivery = Delivery(
            store,
            sender,
            clock,
            telemetry,
            keys=access.keys,
            backoff=Backoff(settings.backoff_exponent),
            region=settings.region,
            entropy=entropy,
            llm=llm,
        )
        dispatcher = Dispatcher(store, delivery, places, clock, telemetry)
        store.writer.on_waiting = dispatcher.hint
        limits = Limits(
            retries_default=settings.retries_default,
            retries_max=settings.retries_max,
            delay_ms_max=settings.delay_ms_max,
            timeout_ms_default=settings.timeout_ms_default,
            timeout_ms_max=settings.timeout_ms_max,
            label_count_max=settings.label_count_max,
            batch_count_max=settings.batch_count_max,
            queue_count_max=settings.queue_count_max,
            schedule_count_max=settings.schedule_count_max,
            url_group_count_max=settings.url_group_count_max,
            endpoint_count_max=settings.endpoint_count_max,
            flow_period_ms_max=settings.flow_period_ms_max,
        )
        rates = Rates(
            clock,
            requests_per_second_max=settings.requests_per_second_max,
            messages_per_day_max=settings.messages_per_day_max,
        )
        api_limits = ApiLimits(
            body_bytes_max=settings.body_bytes_max,
            head_bytes_max=settings.head_bytes_max,
            batch_bytes_max=settings.batch_bytes_max,
            batch_count_max=settings.batch_count_max,
            receive_bytes_max=settings.receive_bytes_max,
        )
        publishing = Publishing(
            store,
            store,
            clock,
            telemetry,
            limits=limits,
            births=dispatcher.births,
            refusal_of_host=egress.refusal_of_host,
            entropy=entropy,
            llm_known=llm is not None,
            rates=rates,
        )
        dead_letters = DeadLetters(
            store,
            store,
            clock,
            telemetry,
            limits=limits,
            rates=rates,
            refusal_of_host=egress.refusal_of_host,
            entropy=entropy,
        )
        groups = UrlGroups(
            store,
            store,
            clock,
            limits=limits,
            refusal_of_host=egress.refusal_of_host,
            entropy=entropy,
        )
        schedules = Schedules(
            store,
            store,
            publishing,
            clock,
            telemetry,
            limits=limits,
            rule=Rule(settings.misfire, settings.misfire_window_ms),
            births=dispatcher.births,
            shown_bytes_max=api_limits.page_bytes_max,
            entropy=entropy,
            rates=rates,
        )
        scheduler = Scheduler(schedules, clock, telemetry)
        keeping = UpkeepLoop(
            store,
            store,
            access.refresh,
            clock,
            telemetry,
            retention=Retention(
                log_ms=settings.log_retention_ms,
                dead_letter_ms=settings.dead_letter_retention_ms,
                store_bytes_max=settings.store_bytes_max,
            ),
        )
        loops = (dispatcher.loop, scheduler.loop, keeping.loop)
        app = partial(
            create_app,
            publishing=publishing,
            messages=Messages(store, store, clock),
            dead_letters=dead_letters,
            groups=groups,
            queues=Queues(store, store, clock, limits=limits),
            keys_of_flow=FlowKeys(
                store,
                store,
                clock,
                limits=limits,
                places=places,
                in_flight_max=settings.in_flight_max,
            ),
            schedules=schedules,
            chatting=Chat(sender=sender, llm=llm, timeout_ms=settings.timeout_ms_default),
            deliveries=store,
            reader=store,
            access=access,
            rates=rates,
            health=Health(
                store,
                clock,
                oldest_due_ms_max=settings.ready_age_ms_max,
                vitals=[store.vital, *(loop.vital for loop in loops)],
            ),
            metrics=lambda: _metrics(store, places, clock, telemetry),
            answered=telemetry.answered,
            clock=clock,
            limits=api_limits,
            trusted_proxies=settings.trusted_proxies,
            dev=dev,
        )
        door = HttpServer(
            app(),
            head_bytes_max=settings.head_bytes_max,
            connections_max=settings.connections_max,
        )
        pulse = await store.pulse(now_ms=clock.now_ms())
        supervisor = await stack.enter_async_context(
            Supervisor(
                door=door,
                dispatcher=dispatcher,
                others=[scheduler.loop, keeping.loop],
                places=places,
                drain_ms=settings.drain_ms,
            )
        )
        await door.start(listener)
        log_address = None
        if dev and (log_listener := _log_listener(settings, host, port)) is not None:
            log_door = HttpServer(
                app(routes=LOOKING),
                head_bytes_max=settings.head_bytes_max,
                connections_max=settings.connections_max,
            )
            stack.push_async_callback(log_door.close)
            await log_door.start(log_listener)
            log_address = _address(*log_listener.getsockname()[:2])
        announcement = Announcement(
            address=_address(host, port),
            log_address=log_address,
            database=settings.database_shown,
            due_count=pulse.due,
        )
        log.info("server_started", address=announcement.address, database=announcement.database)
        yield Server(port=port, store=store, supervisor=supervisor, announcement=announcement)


async def serve(settings: Settings, *, dev: bool, announce: Callable[[Announcement], None]) -> int:
    """Serve until a signal comes, or a loop fails for good; the exit code.

    The first SIGTERM or SIGINT drains; the second stops at once, and what is in
    flight is released; the third is the system's.
    """
    loop = asyncio.get_running_loop()
    async with running(settings, dev=dev) as server:
        supervisor = server.supervisor

        def stop() -> None:
            if supervisor.ended.is_set():
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
            supervisor.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        announce(server.announcement)
        _calm_the_collector()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        await supervisor.ended.wait()
    return 0 if supervisor.failed is None else 1


def _calm_the_collector() -> None:
    """Let the garbage collector look less often, and never at what start-up made.

    A message makes no cycles and a connection few, so there is little to find; looking
    took 10 % of the time under load (docs/decisions/0006-the-hot-path.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@asynccontextmanager
async def open_people(settings: Settings) -> AsyncIterator[People]:
    """Tenants and tokens, through short transactions beside a server that may be running."""
    async with engine_of(settings).people() as people:
        yield people


async def backup(settings: Settings, path: str) -> None:
    """Write a whole, consistent copy to `path`.  Raises Invalid where it exists."""
    await engine_of(settings).backup(path)


async def lag(settings: Settings) -> Lag:
    """How far the database's schema is behind this program.  Nothing is changed."""
    return await engine_of(settings).lag()


async def migrate(settings: Settings) -> None:
    """Bring the database's schema up to date."""
    await engine_of(settings).migrate()


async def erase(settings: Settings) -> None:
    """Remove the database, where there is one.  Raises Invalid where that is not for us to do."""
    await engine_of(settings).erase()


async def nodes(settings: Settings) -> list[Node]:
    """Who shares the database.  Raises Invalid where nobody can."""
    return await engine_of(settings).nodes()


async def copy(source: str, target: str, *, watch: Watch) -> list[Copied]:
    """Copy the store in a file into an empty PostgreSQL database, which is as it was until all of
    it is there.  Raises Invalid, Differs, and what opening either raises."""
    async with (
        open_source(source, now_ms=SystemClock().now_ms()) as opened,
        open_target(target, number_max=opened.number_max) as empty,
    ):
        return await copying.copy(opened, empty, watch=watch)


def _log_listener(settings: Settings, host: str, port: int) -> socket.socket | None:
    """Where a development server shows its logs: the port after its own, where that is free,
    unless another is asked for; a server on any free port has its logs on another.

    Raises OSError where the port that was asked for is taken.
    """
    after = port + 1 if settings.listen_port else 0
    try:
        return _listener(host, settings.log_port or after)
    except (OSError, OverflowError) as fault:
        if settings.log_port:
            raise
        log.warning("no_log_port", why=str(fault))
        return None


def _listener(host: str, port: int) -> socket.socket:
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        backlog=2_048,
    )


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _metrics(reader: Reader, places: Places, clock: Clock, telemetry: Telemetry) -> bytes:
    now_ms = clock.now_ms()
    try:
        pulse = await reader.pulse(now_ms=now_ms)
    except StoreUnavailable:
        return telemetry.render(None)
    oldest_ms = now_ms if pulse.oldest_due_ms is None else pulse.oldest_due_ms
    return telemetry.render(
        Readings(
            messages_waiting=pulse.waiting,
            messages_claimed=pulse.claimed,
            dead_letters=pulse.dead_letters,
            oldest_due_seconds=(now_ms - oldest_ms) / 1000,
            store_bytes=pulse.store_bytes,
            free_bytes=math.inf if pulse.free_bytes == BYTES_MAX else pulse.free_bytes,
            attempts_in_flight=places.in_flight,
            refusing=int(pulse.refusing is not None),
        )
    )
