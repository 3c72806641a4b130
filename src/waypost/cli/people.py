"""The home of `waypost tenant` and `waypost token`: who may use a server.

Both write through a short transaction of their own, also while a server runs,
which notices within a second (D32).  A token is shown when it is made and never
again: only its SHA-256 is kept.

They make the schema of an empty database, for there are people before the first
start.  One that is behind they leave alone: to look at people is no upgrade.
"""

import asyncio
import re
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Protocol

from cyclopts import App, Parameter

from waypost import assembly
from waypost.cli.database import see
from waypost.cli.flags import Given, with_settings
from waypost.cli.tables import minute, show
from waypost.clock import SystemClock
from waypost.domain import ids
from waypost.domain.errors import Invalid, NotFound
from waypost.domain.signing import SigningKeys
from waypost.services.access import fingerprint
from waypost.store.protocol import People, Tenant, Token

NAME_CHARS_MAX = 64

tenants = App(
    name="tenant",
    help="Make, list and revoke tenants: whoever owns messages and signing keys.",
    help_epilogue="Example: waypost tenant create acme --database sqlite:////srv/waypost/waypost.db",
)
tokens = App(
    name="token",
    help="Make, list and revoke the tokens of tenants.",
    help_epilogue="Example: TOKEN=$(waypost token create acme --database sqlite:///waypost.db)",
)


class Directory(People, Protocol):
    """What of a store is needed here."""

    async def tenants(self) -> list[Tenant]: ...

    async def tokens(self) -> list[Token]: ...


@asynccontextmanager
async def _people(given: Given, *, made: bool = False) -> AsyncIterator[Directory]:
    """The people of the database that was named; it is `made` where it is missing."""
    settings = given.settings()
    see(settings, made=made)
    async with assembly.open_people(settings) as people:
        yield people


with_database = with_settings(("database",))


@tenants.command(name="create")
@with_database
def create_tenant(
    given: Given, name: Annotated[str, Parameter(help="What to call it; its id.")], /
) -> int:
    """Make a tenant, with its two signing keys."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_CHARS_MAX - 1}}}", name):
        raise Invalid(
            f"{name!r} cannot be a tenant: up to {NAME_CHARS_MAX} letters, digits, '.', '_' and "
            "'-', of which the first is a letter or a digit"
        )
    keys = SigningKeys(ids.signing_key(_random()), ids.signing_key(_random()))
    tenant = Tenant(id=name, created_ms=SystemClock().now_ms(), keys=keys)

    async def run() -> None:
        async with _people(given, made=True) as people:
            await people.add_tenant(tenant)

    asyncio.run(run())
    sys.stdout.write(
        f"QSTASH_CURRENT_SIGNING_KEY={keys.current}\nQSTASH_NEXT_SIGNING_KEY={keys.next}\n"
    )
    sys.stderr.write(f"Made tenant {name}.  `waypost token create {name}` makes a token for it.\n")
    return 0


@tenants.command(name="list")
@with_database
def list_tenants(given: Given) -> int:
    """List the tenants, those who were revoked too: their messages may not have ended."""

    async def run() -> list[Tenant]:
        async with _people(given) as people:
            return await people.tenants()

    show(
        ("TENANT", "MADE", "STATE"),
        [
            (each.id, minute(each.created_ms), "revoked" if each.revoked else "live")
            for each in asyncio.run(run())
        ],
    )
    return 0


@tenants.command(name="revoke")
@with_database
def revoke_tenant(given: Given, name: Annotated[str, Parameter(help="The tenant.")], /) -> int:
    """End a tenant, for good.

    Its tokens are deleted: a running server refuses them within a second.
    Its schedules fire no more. What it has published is still delivered,
    signed and retried until it ends, and its log and dead letters stay as
    long as any. It is still listed, and its name cannot be used again.
    """

    async def run() -> bool:
        async with _people(given) as people:
            return await people.revoke_tenant(name)

    return _revoked(asyncio.run(run()), f"tenant {name}")


@tokens.command(name="create")
@with_database
def create_token(
    given: Given,
    tenant: Annotated[str, Parameter(help="Whose token it is.")],
    /,
    *,
    read_only: Annotated[
        bool, Parameter(help="It may look, not change.", negative="", show_default=False)
    ] = False,
) -> int:
    """Make a token for a tenant, and show it this once."""
    text = ids.api_token(tenant, secrets.token_hex(ids.TOKEN_ENTROPY_BYTES))
    token = Token(
        id=ids.token_text("tok_", _random()),
        tenant=tenant,
        sha256=fingerprint(text),
        read_only=read_only,
        created_ms=SystemClock().now_ms(),
    )

    async def run() -> None:
        async with _people(given) as people:
            await people.add_token(token)

    asyncio.run(run())
    sys.stdout.write(text + "\n")
    sys.stderr.write(f"Made token {token.id}.  It is shown this once: only its hash is kept.\n")
    return 0


@tokens.command(name="list")
@with_database
def list_tokens(given: Given) -> int:
    """List the tokens: their ids and what they may do."""

    async def run() -> list[Token]:
        async with _people(given) as people:
            return await people.tokens()

    show(
        ("TOKEN", "TENANT", "MAY", "MADE"),
        [
            (each.id, each.tenant, "read" if each.read_only else "all", minute(each.created_ms))
            for each in asyncio.run(run())
        ],
    )
    return 0


@tokens.command(name="revoke")
@with_database
def revoke_token(
    given: Given,
    token_id: Annotated[str, Parameter(help="Its id, as `waypost token list` shows it.")],
    /,
) -> int:
    """End a token: a running server refuses it within a second."""

    async def run() -> bool:
        async with _people(given) as people:
            return await people.revoke_token(token_id)

    return _revoked(asyncio.run(run()), f"token {token_id}")


def _revoked(found: bool, what: str) -> int:
    if not found:
        raise NotFound(f"there is no {what}")
    sys.stdout.write(f"Revoked {what}.\n")
    return 0


def _random() -> bytes:
    return secrets.token_bytes(ids.TOKEN_ENTROPY_BYTES)
