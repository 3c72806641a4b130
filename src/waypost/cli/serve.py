"""The home of `waypost dev` and `waypost serve`: how a server is started, and what it says.

What is said goes to stdout, plain and at once, for programs read it too: the JS
SDK waits there for "running at".  The log goes to stderr.
"""

import asyncio
import ipaddress
import os
import resource
import shlex
import sys
from collections.abc import Callable
from typing import Annotated

import uvloop
from cyclopts import Parameter

from waypost import __version__, assembly
from waypost.assembly import Announcement
from waypost.cli.database import make_private, see
from waypost.cli.flags import Given, with_settings
from waypost.domain.dev_users import DEV_USERS
from waypost.settings import DEV_DEFAULTS, MEMORY, Settings, SettingsError
from waypost.telemetry import configure_logging

FILES_MAX = 65_536
"""Open files that a server asks the system for."""

DEV_VARIABLES = {
    "QSTASH_DEV_PORT": "WAYPOST_LISTEN_PORT",
    "QSTASH_DEV_LOG_PORT": "WAYPOST_LOG_PORT",
    "QSTASH_DEV_QUOTA": "WAYPOST_QUOTA",
}
"""Variables of the QStash dev server, which the SDKs read too, and what they say to us."""


@with_settings(defaults=DEV_DEFAULTS)
def dev(
    given: Given,
    *,
    fresh: Annotated[
        bool, Parameter(help="Begin with an empty database.", negative="", show_default=False)
    ] = False,
    memory: Annotated[
        bool, Parameter(help="Keep nothing on disk.", negative="", show_default=False)
    ] = False,
) -> int:
    """Start a development server on this machine, with the QStash dev server's users."""
    also = {
        ours: os.environ[theirs] for theirs, ours in DEV_VARIABLES.items() if theirs in os.environ
    }
    if memory:
        if "database" in given.flags:
            raise SettingsError("--memory and --database contradict each other")
        given = Given(given.config, {**given.flags, "database": MEMORY})
    settings = given.settings(defaults=DEV_DEFAULTS, also=also)
    named_here = "database" in given.flags or settings.database == DEV_DEFAULTS["database"]
    if fresh and not named_here:
        raise SettingsError(
            f"--fresh would remove {settings.database_shown}, which a variable or the file names; "
            "say --database to mean it"
        )
    if not ipaddress.ip_address(settings.listen_host).is_loopback:
        raise SettingsError(
            f"listen_host = {settings.listen_host}: `waypost dev` has well-known tokens and "
            "listens on loopback addresses only; use `waypost serve`"
        )
    path = settings.database_path
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if fresh:
        asyncio.run(assembly.erase(settings))
    if path is not None:
        make_private(path)

    def announce(announcement: Announcement) -> None:
        user = DEV_USERS[0]
        where = str(path.resolve()) if path else announcement.database
        where = "in memory" if settings.database == MEMORY else where
        _say(
            f"Waypost {__version__} is running at {announcement.address}",
            "",
            f"QSTASH_URL={announcement.address}",
            f"QSTASH_TOKEN={user.token}",
            f"QSTASH_CURRENT_SIGNING_KEY={user.current}",
            f"QSTASH_NEXT_SIGNING_KEY={user.next}",
            "",
            f"Database: {where}",
            *([f"Logs: {announcement.log_address}"] if announcement.log_address else []),
            f"Old messages due now: {announcement.due_count}"
            + (" (--fresh begins without them)" if announcement.due_count else ""),
        )

    return _run(settings, dev=True, announce=announce)


@with_settings()
def serve(given: Given) -> int:
    """Start a server.  It needs a database, and a token in it."""
    settings = given.settings()
    see(settings, made=True)
    if not asyncio.run(_has_token(settings)):
        shown = settings.database_shown
        database = shlex.quote(shown)
        raise SettingsError(
            f"{shown} has no token, so nobody could publish; make one with "
            f"`waypost tenant create NAME --database {database}` and then "
            f"`waypost token create NAME --database {database}`"
        )

    def announce(announcement: Announcement) -> None:
        _say(f"Waypost {__version__} is running at {announcement.address}")

    return _run(settings, dev=False, announce=announce)


async def _has_token(settings: Settings) -> bool:
    """Whether a server has anybody to serve.  Its schema is brought up to date, as a start does."""
    if (await assembly.lag(settings)).missing:
        await assembly.migrate(settings)
    async with assembly.open_people(settings) as people:
        return bool(await people.tokens())


def _run(settings: Settings, *, dev: bool, announce: Callable[[Announcement], None]) -> int:
    configure_logging(level=settings.log_level, format=settings.log_format)
    _allow_many_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(assembly.serve(settings, dev=dev, announce=announce))


def _allow_many_files() -> None:
    """Raise the bound on open files, which is often 1,024, as far as we may: every caller
    and every attempt under way is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
