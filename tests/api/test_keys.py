"""Signing keys, over HTTP (contract section 13)."""

from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs

from tests.support.application import SETTINGS, Application, Received, person, serving
from waypost.domain import signing
from waypost.domain.dev_users import DEV_USERS


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Application]:
    """A server with a database of its own, and the tenant `mine`."""
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    token = await person(settings, "mine")
    async with serving(settings, dev=False, token=token) as application:
        yield application


def signed_with(request: Received, keys: Iterable[str]) -> list[str]:
    """Which of the keys a delivery was signed with."""
    signature = request.header["Upstash-Signature"]
    claims = signature.split(".")[1]
    text = urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
    return [key for key in keys if signing.token(key, text) == signature]


@pytest.mark.parametrize("path", ["/v2/keys/rotate", "/v2/rotate", "/v2/Keys/Rotate"])
async def test_rotating_moves_the_next_key_up_and_makes_a_fresh_one(
    served: Application, path: str
) -> None:
    """W216, W7."""
    before = (await served.ask("GET", "/v2/keys")).json

    reply = await served.ask("POST", path)

    assert reply.status == 200
    assert set(reply.json) == {"current", "next"}
    assert reply.json["current"] == before["next"]
    assert reply.json["next"].startswith("sig_")
    assert reply.json["next"] not in before.values()
    assert (await served.ask("GET", "/v2/keys")).json == reply.json


async def test_deliveries_are_signed_with_the_new_current_key_at_once(served: Application) -> None:
    """W216: receivers that know both keys go on through a rotation."""
    before = (await served.ask("GET", "/v2/keys")).json
    await served.accepted()
    await served.receiver.first(1)
    after = (await served.ask("POST", "/v2/keys/rotate")).json
    await served.accepted()

    first, second = await served.receiver.first(2)
    assert signed_with(first, before.values()) == [before["current"]]
    assert signed_with(second, after.values()) == [after["current"]]
    assert signed_with(second, before.values()) == [before["next"]]


async def test_rotated_keys_survive_a_restart(tmp_path: Path) -> None:
    """W216: and those of another tenant stay as they are."""
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    mine, theirs = await person(settings, "mine"), await person(settings, "theirs")
    async with serving(settings, dev=False, token=mine) as server:
        for _ in range(2):
            rotated = (await server.ask("POST", "/v2/rotate")).json

    async with serving(settings, dev=False, token=mine) as server:
        assert (await server.ask("GET", "/v2/keys")).json == rotated
        kept = (await server.ask("GET", "/v2/keys", token=theirs)).json
        assert kept == {"current": "sig_theirs_1", "next": "sig_theirs_2"}


async def test_a_read_only_token_may_not_rotate(tmp_path: Path) -> None:
    """W11, D29."""
    settings = structs.replace(SETTINGS, database=f"sqlite:///{tmp_path}/waypost.db")
    token = await person(settings, "mine")
    reading = await person(settings, "mine", read_only=True, new=False)
    async with serving(settings, dev=False, token=token) as server:
        for path in ("/v2/keys/rotate", "/v2/rotate"):
            assert (await server.ask("POST", path, token=reading)).status == 403
        assert (await server.ask("GET", "/v2/keys")).json["current"] == "sig_mine_1"


async def test_development_users_keep_their_keys(server: Application) -> None:
    """W217, D30: the SDKs know a development server by them."""
    for user in DEV_USERS:
        for path in ("/v2/keys/rotate", "/v2/rotate"):
            reply = await server.ask("POST", path, token=user.token)
            assert reply.status == 400
            assert "never change" in reply.json["error"]

        kept = (await server.ask("GET", "/v2/keys", token=user.token)).json
        assert kept == {"current": user.current, "next": user.next}
