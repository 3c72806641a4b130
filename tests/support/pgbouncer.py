"""The home of pgbouncer: a pooler in transaction mode, which changes the server's connection under
a client whenever no transaction is open."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.postgres import DEADLINE_S, USER, Server, as_user, own_directory

PORT = 6432


def pgbouncer() -> str | None:
    """The program; None where it is not installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


@contextmanager
def bouncing(server: Server, *, connections: int) -> Iterator[str]:
    """Stands before a server, with so many connections to each of its databases; the end of
    the URLs that lead there."""
    program = pgbouncer()
    assert program is not None
    directory = own_directory()
    settings = {
        "listen_addr": "",
        "unix_socket_dir": directory,
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": connections,
        "server_round_robin": 1,
    }
    ini = ["[databases]", f"* = host={server.directory} user={USER}", "[pgbouncer]"]
    ini += [f"{name} = {value}" for name, value in settings.items()]
    (directory / "ini").write_text("\n".join(ini))
    with (directory / "log").open("wb") as log:
        bouncer = subprocess.Popen(
            [program, directory / "ini"], stdout=log, stderr=log, **as_user(directory)
        )
    try:
        until_s = time.monotonic() + DEADLINE_S
        while not (directory / f".s.PGSQL.{PORT}").exists():
            assert bouncer.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < until_s, (directory / "log").read_text()
            time.sleep(0.01)
        yield f"?host={directory}&port={PORT}"
    finally:
        bouncer.kill()
        bouncer.wait(DEADLINE_S)
        shutil.rmtree(directory)
