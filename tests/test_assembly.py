"""What is wired together listens where it was told to."""

import socket

import pytest

from waypost import assembly
from waypost.settings import DEV_DEFAULTS, MEMORY, parse


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_a_server_listens_on_either_kind_of_address(host: str, shown: str) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    settings = parse(
        environ={},
        file_text=None,
        flags={"database": MEMORY, "listen_host": host, "listen_port": "0"},
        defaults=DEV_DEFAULTS,
    )

    async with assembly.running(settings, dev=True) as server:
        assert server.announcement.address == f"http://{shown}:{server.port}"
        with socket.create_connection((host, server.port)):
            pass


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
