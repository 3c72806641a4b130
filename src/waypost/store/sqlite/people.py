"""The home of tenants and tokens.

The command line writes them through short transactions of its own, also while
a server has the database open (D32); the server sees that by `data_version`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from waypost.domain.errors import Invalid, NotFound
from waypost.domain.signing import SigningKeys
from waypost.store.calls import Rotate
from waypost.store.protocol import Tenant, Token
from waypost.store.sqlite.database import as_problems, connect, make, query, transaction
from waypost.store.sqlite.writer import Batch


class PeopleFile:
    """Tenants and tokens of a database, without the server's lock.

    Every call raises StoreFull, StoreUnavailable where the file stays locked, and Unusable.
    """

    def __init__(self, path: str) -> None:
        """Open a file, and make the schema where it has none.

        Raises Invalid where its schema is behind, and SchemaTooNew; then nothing was changed.
        """
        self._path = path
        self._db = connect(path)
        try:
            make(self._db)
        except BaseException:
            self._db.close()
            raise

    async def add_tenant(self, tenant: Tenant) -> None:
        with self._writing():
            add_tenant(self._db, tenant)

    async def revoke_tenant(self, tenant_id: str) -> bool:
        with self._writing():
            self._db.execute("DELETE FROM token WHERE tenant = ?", (tenant_id,))
            self._db.execute("UPDATE schedule SET next_ms = NULL WHERE tenant = ?", (tenant_id,))
            self._db.execute("UPDATE tenant SET revoked = 1 WHERE id = ?", (tenant_id,))
            return bool(self._db.changes())

    async def add_token(self, token: Token) -> None:
        with self._writing():
            add_token(self._db, token)

    async def revoke_token(self, token_id: str) -> bool:
        with self._writing():
            self._db.execute("DELETE FROM token WHERE id = ?", (token_id,))
            return bool(self._db.changes())

    async def tenants(self) -> list[Tenant]:
        with as_problems(f"read the database {self._path}"):
            return tenants(self._db)

    async def tokens(self) -> list[Token]:
        with as_problems(f"read the database {self._path}"):
            return tokens(self._db)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with as_problems(f"write to the database {self._path}"), transaction(self._db):
            yield


def add_tenant(db: apsw.Connection, tenant: Tenant) -> None:
    """Raises Invalid where the id is taken."""
    keys = tenant.keys
    try:
        db.execute(
            "INSERT INTO tenant VALUES (?, ?, ?, ?, 0)",
            (tenant.id, tenant.created_ms, keys.current, keys.next),
        )
    except apsw.ConstraintError:
        raise Invalid(f"there is a tenant {tenant.id} already") from None


def add_token(db: apsw.Connection, token: Token) -> None:
    """Raises NotFound where there is no such tenant, or it was revoked."""
    live = "SELECT 1 FROM tenant WHERE id = ? AND revoked = 0"
    if query(db, live, (token.tenant,)).fetchone() is None:
        raise NotFound(f"there is no tenant {token.tenant}")
    db.execute(
        "INSERT INTO token VALUES (?, ?, ?, ?, ?)",
        (token.id, token.tenant, token.sha256, token.read_only, token.created_ms),
    )


def rotate_keys(batch: Batch, calls: list[Rotate]) -> list[SigningKeys | None]:
    """Rotate signing keys; see `Keys.rotate_keys`."""
    return [_rotate_keys(batch.db, call) for call in calls]


def _rotate_keys(db: apsw.Connection, call: Rotate) -> SigningKeys | None:
    found = query(
        db,
        "UPDATE tenant SET current_key = next_key, next_key = ? WHERE id = ?"
        " RETURNING current_key, next_key",
        (call.new_key, call.tenant_id),
    ).fetchall()
    return SigningKeys(*found[0]) if found else None


def tenants(db: apsw.Connection) -> list[Tenant]:
    """Everyone, those who were revoked too: their last deliveries are still signed."""
    return [
        Tenant(
            id=tenant_id,
            created_ms=created_ms,
            keys=SigningKeys(current=current, next=following),
            revoked=bool(revoked),
        )
        for tenant_id, created_ms, current, following, revoked in query(
            db,
            "SELECT id, created_ms, current_key, next_key, revoked FROM tenant ORDER BY created_ms",
        )
    ]


def tokens(db: apsw.Connection) -> list[Token]:
    return [
        Token(
            id=token_id,
            tenant=tenant,
            sha256=sha256,
            read_only=bool(read_only),
            created_ms=created_ms,
        )
        for token_id, tenant, sha256, read_only, created_ms in query(
            db,
            "SELECT id, tenant, sha256, read_only, created_ms FROM token ORDER BY created_ms, id",
        )
    ]
