"""Shared by the tests of the wire: both event loops, senders, requests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trustme
import uvloop

from waypost.wire.egress import Egress
from waypost.wire.protocol import Request
from waypost.wire.sender import HttpSender

BODY_BYTES_MAX = 65_536


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test of the wire runs on both loops: they differ where connections break."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


SenderFactory = Callable[..., Any]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("tls") / "ca.pem")
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
async def a_sender(ca_file: str) -> AsyncIterator[SenderFactory]:
    """Opens senders that may reach loopback and trust `authority`; closed with the test."""
    async with AsyncExitStack() as stack:

        async def opened(**settings: Any) -> HttpSender:
            sender = HttpSender(
                **{
                    "egress": Egress.for_development(),
                    "body_bytes_max": BODY_BYTES_MAX,
                    "ca_file": ca_file,  # the system's takes 50 ms to read
                    **settings,
                }
            )
            return await stack.enter_async_context(sender)

        yield opened


@pytest.fixture
async def sender(a_sender: SenderFactory) -> HttpSender:
    opened: HttpSender = await a_sender()
    return opened


@pytest.fixture
def a_request() -> Callable[..., Request]:
    """Builds requests; a test names only what matters to it."""

    def build(url: str, **fields: Any) -> Request:
        return Request(
            **{
                "method": "POST",
                "url": url,
                "header": [("Content-Type", "text/plain")],
                "body": b"hello",
                "timeout_ms": 5_000,
                **fields,
            }
        )

    return build
