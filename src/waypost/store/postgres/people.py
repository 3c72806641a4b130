"""The home of tenants and tokens.

The command line writes them through short connections of its own, also while nodes have
the database open (D32); these see that by `people_version`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from waypost.domain.errors import Invalid, NotFound
from waypost.domain.signing import SigningKeys
from waypost.store.calls import Rotate
from waypost.store.postgres.database import Connection, connection, is_text, make
from waypost.store.postgres.writer import Batch
from waypost.store.protocol import Tenant, Token


class PeopleDatabase:
    """Tenants and tokens of a database, through a connection for each call."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def add_tenant(self, tenant: Tenant) -> None:
        async with self._writing() as db:
            await add_tenant(db, tenant)

    async def revoke_tenant(self, tenant_id: str) -> bool:
        if not is_text(tenant_id):
            return False
        async with self._writing() as db:
            # The tenant first: whoever adds a token has locked it, or finds it revoked.
            revoked = await db.fetchval(
                "UPDATE tenant SET revoked = true WHERE id = $1 RETURNING true", tenant_id
            )
            await db.execute("DELETE FROM token WHERE tenant = $1", tenant_id)
            await db.execute("UPDATE schedule SET next_ms = NULL WHERE tenant = $1", tenant_id)
            return revoked is not None

    async def add_token(self, token: Token) -> None:
        async with self._writing() as db:
            await add_token(db, token)

    async def revoke_token(self, token_id: str) -> bool:
        if not is_text(token_id):
            return False
        async with self._writing() as db:
            found = await db.fetchval("DELETE FROM token WHERE id = $1 RETURNING true", token_id)
            return found is not None

    async def tenants(self) -> list[Tenant]:
        async with self._connection() as db:
            return await tenants(db)

    async def tokens(self) -> list[Token]:
        async with self._connection() as db:
            return await tokens(db)

    def close(self) -> None:
        """Nothing is open between calls."""

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection to the database, whose schema is made where there is none.

        Raises StoreUnavailable, SchemaTooNew, and Invalid where the schema is behind, the role
        lacks a right, or the URL names no database.
        """
        async with connection(self._url) as db:
            await make(db)
            yield db

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Connection]:
        async with self._connection() as db, db.transaction():
            yield db
            await _note_a_change(db)


async def _note_a_change(db: Connection) -> None:
    """Let all nodes see that people have changed."""
    await db.execute("UPDATE people_version SET count = count + 1")


async def add_tenant(db: Connection, tenant: Tenant) -> None:
    """Raises Invalid where the id is taken."""
    keys = tenant.keys
    added = await db.fetchval(
        "INSERT INTO tenant VALUES ($1, $2, $3, $4, false) ON CONFLICT DO NOTHING RETURNING true",
        *(tenant.id, tenant.created_ms, keys.current, keys.next),
    )
    if added is None:
        raise Invalid(f"there is a tenant {tenant.id} already")


async def add_token(db: Connection, token: Token) -> None:
    """Raises NotFound where there is no such tenant, or it was revoked."""
    live = "SELECT 1 FROM tenant WHERE id = $1 AND NOT revoked FOR SHARE"
    if not is_text(token.tenant) or await db.fetchval(live, token.tenant) is None:
        raise NotFound(f"there is no tenant {token.tenant}")
    await db.execute(
        "INSERT INTO token VALUES ($1, $2, $3, $4, $5)",
        *(token.id, token.tenant, token.sha256, token.read_only, token.created_ms),
    )


async def rotate_keys(batch: Batch, calls: list[Rotate]) -> list[SigningKeys | None]:
    """Rotate signing keys; see `Keys.rotate_keys`."""
    rotated = [await _rotate_keys(batch.db, call) for call in calls]
    await _note_a_change(batch.db)
    return rotated


async def _rotate_keys(db: Connection, call: Rotate) -> SigningKeys | None:
    found = await db.fetchrow(
        "UPDATE tenant SET current_key = next_key, next_key = $1 WHERE id = $2"
        " RETURNING current_key, next_key",
        call.new_key,
        call.tenant_id,
    )
    return None if found is None else SigningKeys(*found)


async def tenants(db: Connection) -> list[Tenant]:
    """Everyone, those who were revoked too: their last deliveries are still signed."""
    rows = await db.fetch(
        "SELECT id, created_ms, current_key, next_key, revoked FROM tenant ORDER BY created_ms, id"
    )
    return [
        Tenant(
            id=tenant_id,
            created_ms=created_ms,
            keys=SigningKeys(current=current, next=following),
            revoked=revoked,
        )
        for tenant_id, created_ms, current, following, revoked in rows
    ]


async def tokens(db: Connection) -> list[Token]:
    rows = await db.fetch(
        "SELECT id, tenant, sha256, read_only, created_ms FROM token ORDER BY created_ms, id"
    )
    return [
        Token(
            id=token_id,
            tenant=tenant,
            sha256=sha256,
            read_only=read_only,
            created_ms=created_ms,
        )
        for token_id, tenant, sha256, read_only, created_ms in rows
    ]


async def version(db: Connection) -> int:
    """How often tenants, tokens and keys have changed."""
    count: int = await db.fetchval("SELECT count FROM people_version")
    return count
