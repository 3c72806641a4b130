"""Who may do what: the directory in memory."""

import asyncio

import pytest

from waypost.domain.dev_users import DEV_USERS
from waypost.domain.errors import Invalid, NotFound, StoreUnavailable
from waypost.domain.signing import SigningKeys
from waypost.services.access import Access, Caller, Failures, fingerprint
from waypost.store.protocol import Tenant, Token

MINUTE = 60_000


class Directory:
    """A store with people in it; `changed` is true once after every change."""

    def __init__(self) -> None:
        self.kept: dict[str, Token] = {}
        self.unseen = False
        self.away = False
        self.keys = SigningKeys("sig_1", "sig_2")
        self.rotating = asyncio.Event()
        self.rotating.set()

    def add(self, token: str, *, tenant: str = "acme", read_only: bool = False) -> None:
        self.kept[token] = Token(
            id=f"tok_{token}",
            tenant=tenant,
            sha256=fingerprint(token),
            read_only=read_only,
            created_ms=0,
        )
        self.unseen = True

    async def changed(self) -> bool:
        unseen, self.unseen = self.unseen, False
        return unseen

    async def tokens(self) -> list[Token]:
        if self.away:
            raise StoreUnavailable("away")
        return list(self.kept.values())

    async def tenants(self) -> list[Tenant]:
        return [Tenant(id="acme", created_ms=0, keys=self.keys)]

    async def rotate_keys(self, tenant_id: str, *, new_key: str) -> SigningKeys | None:
        if tenant_id != "acme":
            return None
        await self.rotating.wait()
        self.keys = SigningKeys(self.keys.next, new_key)
        return self.keys


async def test_nobody_of_the_store_is_known_before_the_first_refresh() -> None:
    directory = Directory()
    directory.add("secret")
    access = Access(directory)
    assert access.caller("secret") is None

    assert await access.refresh()

    assert access.caller("secret") == Caller("acme", read_only=False)
    assert access.keys("acme") == SigningKeys("sig_1", "sig_2")
    assert access.keys("other") is None


async def test_the_directory_is_read_again_only_where_the_store_has_changed() -> None:
    directory = Directory()
    access = Access(directory)
    assert await access.refresh()
    assert not await access.refresh()
    directory.add("new", read_only=True)

    assert await access.refresh()

    assert access.caller("new") == Caller("acme", read_only=True)
    del directory.kept["new"]
    directory.unseen = True
    await access.refresh()
    assert access.caller("new") is None


async def test_a_change_that_could_not_be_read_is_read_later() -> None:
    directory = Directory()
    access = Access(directory)
    await access.refresh()
    directory.add("new")
    directory.away = True
    with pytest.raises(StoreUnavailable):
        await access.refresh()
    directory.away = False

    assert await access.refresh()

    assert access.caller("new") is not None


async def test_padding_makes_no_difference() -> None:
    """W10: whichever way a token was made and is shown."""
    directory = Directory()
    directory.add("cGFkZGVk==")
    access = Access(directory)
    await access.refresh()

    for token in ("cGFkZGVk", "cGFkZGVk=", "cGFkZGVk=="):
        assert access.caller(token) is not None
    for token in ("", "=", "cGFkZGV", "=cGFkZGVk", "ä", "\udcff"[:0]):
        assert access.caller(token) is None


async def test_refused_tokens_are_refused_though_the_store_has_them() -> None:
    """D30."""
    directory = Directory()
    known = DEV_USERS[0].token
    directory.add(known)
    access = Access(directory, refused_tokens=[known.rstrip("=")])
    await access.refresh()

    assert access.caller(known) is None


async def test_fixed_people_are_known_at_once_and_stay() -> None:
    """D30: they are not in the store."""
    directory = Directory()
    access = Access(directory, fixed=DEV_USERS)
    for _ in range(2):
        for user in DEV_USERS:
            assert access.caller(user.token) == Caller(user.name, read_only=False)
            assert access.keys(user.name) == SigningKeys(user.current, user.next)
        await access.refresh()
    assert directory.kept == {}


def test_twenty_failures_a_minute_are_free() -> None:
    """T12."""
    failures = Failures()
    found = [failures.too_many("a", now_ms=at_ms) for at_ms in range(0, 30_000, 1_000)]

    assert found == [False] * 20 + [True] * 10
    assert not failures.too_many("b", now_ms=30_000)
    assert failures.too_many("a", now_ms=MINUTE - 1)
    assert not failures.too_many("a", now_ms=MINUTE)


def test_no_more_addresses_are_counted_than_there_is_room_for() -> None:
    failures = Failures()
    for number in range(25_000):
        failures.too_many(str(number), now_ms=0)

    assert len(failures._seen) <= 10_000


async def test_rotated_keys_are_known_at_once() -> None:
    """W216: what was next is current, and a fresh one follows it."""
    access = Access(Directory())
    await access.refresh()

    rotated = await access.rotate("acme")

    assert rotated.current == "sig_2"
    assert rotated.next.startswith("sig_")
    assert len({"sig_1", "sig_2", rotated.next}) == 3
    assert access.keys("acme") == rotated


async def test_a_directory_that_is_being_read_does_not_undo_a_rotation() -> None:
    directory = Directory()
    access = Access(directory)
    directory.rotating.clear()
    async with asyncio.TaskGroup() as tasks:
        rotation = tasks.create_task(access.rotate("acme"))
        tasks.create_task(access.refresh())
        await asyncio.sleep(0)
        directory.rotating.set()

    assert access.keys("acme") == rotation.result()


async def test_rotations_of_one_moment_follow_each_other() -> None:
    access = Access(Directory())

    first, second = await asyncio.gather(access.rotate("acme"), access.rotate("acme"))

    assert second.current == first.next
    assert access.keys("acme") == second


async def test_the_keys_of_fixed_people_never_change() -> None:
    """D30."""
    access = Access(Directory(), fixed=DEV_USERS)

    with pytest.raises(Invalid, match="never change"):
        await access.rotate(DEV_USERS[0].name)
    with pytest.raises(NotFound):
        await access.rotate("nobody")
