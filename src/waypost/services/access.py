"""The home of who may do what: whose a token is, and which keys a tenant signs with.

A directory in memory, made from the store and from people who are handed in
and never stored (the development users, D30).  A token is known by its
fingerprint only; base64 padding makes no difference to it (W10).

Who guesses tokens is slowed down: after `FAILURES_MAX` wrong ones within a
minute, more wrong ones from that address are told to wait.  A right token from
the same address is not affected, for it is looked up first.
"""

import asyncio
import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Protocol

from msgspec import Struct

from waypost.domain.dev_users import DevUser
from waypost.domain.errors import Invalid, NotFound
from waypost.domain.ids import TOKEN_ENTROPY_BYTES, signing_key
from waypost.domain.signing import SigningKeys
from waypost.store.protocol import Tenant, Token

FAILURES_MAX: Final = 20
FAILURES_PERIOD_MS: Final = 60_000
ADDRESSES_MAX: Final = 10_000
"""So many addresses are counted at most; when there are more, counting starts anew."""


def fingerprint(token: str) -> bytes:
    """What is kept of a token: the SHA-256 of its text without base64 padding."""
    return sha256(token.rstrip("=").encode()).digest()


class Caller(Struct, frozen=True):
    """Whoever a token stands for."""

    tenant: str
    read_only: bool


class Directory(Protocol):
    """What of a store is needed here."""

    async def changed(self) -> bool: ...

    async def tokens(self) -> list[Token]: ...

    async def tenants(self) -> list[Tenant]: ...

    async def rotate_keys(self, tenant_id: str, *, new_key: str) -> SigningKeys | None: ...


class Access:
    """The directory.  It knows nobody but the `fixed` people before the first `refresh`.

    `refused_tokens` are never let in, whatever the store says.
    """

    def __init__(
        self,
        store: Directory,
        *,
        fixed: Sequence[DevUser] = (),
        refused_tokens: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._fixed_callers = {
            (known := fingerprint(user.token)): (known, Caller(user.name, read_only=False))
            for user in fixed
        }
        self._fixed_keys = {user.name: SigningKeys(user.current, user.next) for user in fixed}
        self._refused = frozenset(fingerprint(token) for token in refused_tokens)
        self._callers = self._fixed_callers
        self._keys = self._fixed_keys
        self._stale = True
        self._alone = asyncio.Lock()

    def caller(self, token: str) -> Caller | None:
        """Whose token this is; None: nobody's."""
        shown = fingerprint(token)
        found = self._callers.get(shown)
        if found is None or not hmac.compare_digest(found[0], shown):
            return None
        return found[1]

    def keys(self, tenant: str) -> SigningKeys | None:
        return self._keys.get(tenant)

    async def rotate(self, tenant: str) -> SigningKeys:
        """Sign with the tenant's next key from now on, and make a new next one.

        Both are on disk when this returns.  Raises NotFound, and Invalid for people whose
        keys are fixed: SDKs know a development server by them (D30).
        """
        if tenant in self._fixed_keys:
            raise Invalid("the signing keys of a development user never change")
        async with self._alone:
            new_key = signing_key(secrets.token_bytes(TOKEN_ENTROPY_BYTES))
            keys = await self._store.rotate_keys(tenant, new_key=new_key)
            if keys is None:
                raise NotFound("this tenant has no signing keys")
            self._keys = {**self._keys, tenant: keys}
            return keys

    async def refresh(self) -> bool:
        """Read the directory again where the store has changed; whether it was read.

        A change that could not be read because the store went away is not forgotten.
        """
        async with self._alone:  # what was read before a rotation must not undo it
            return await self._refresh()

    async def _refresh(self) -> bool:
        self._stale = await self._store.changed() or self._stale
        if not self._stale:
            return False
        tokens = await self._store.tokens()
        tenants = await self._store.tenants()
        self._callers = {
            token.sha256: (token.sha256, Caller(token.tenant, token.read_only))
            for token in tokens
            if token.sha256 not in self._refused
        } | self._fixed_callers
        self._keys = {tenant.id: tenant.keys for tenant in tenants} | self._fixed_keys
        self._stale = False
        return True


class Failures:
    """Wrong tokens per address, in periods of a minute."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}

    def too_many(self, address: str, *, now_ms: int) -> bool:
        """Count one wrong token; whether there were too many before it."""
        since_ms, count = self._seen.get(address, (now_ms, 0))
        if now_ms - since_ms >= FAILURES_PERIOD_MS:
            since_ms, count = now_ms, 0
        if len(self._seen) >= ADDRESSES_MAX and address not in self._seen:
            self._seen.clear()
        self._seen[address] = (since_ms, count + 1)
        return count >= FAILURES_MAX
