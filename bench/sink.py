"""The home of the sink: nginx, which answers 200 at once and keeps nothing."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from bench.processes import process, program

START_S_MAX = 5

CONFIG = """
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 200; }}
    }}
}}
"""


@contextlib.asynccontextmanager
async def sink(directory: Path) -> AsyncIterator[int]:
    """The port, on 127.0.0.1, of a server that answers every request with 200."""
    own = Path(tempfile.mkdtemp(prefix="sink-", dir=directory))
    port = free_port()
    config = own / "nginx.conf"
    config.write_text(CONFIG.format(directory=own, port=port))
    words = (program("nginx"), "-e", "stderr", "-p", str(own), "-c", str(config))
    async with process(*words, log=own / "stderr.log") as nginx:
        try:
            async with asyncio.timeout(START_S_MAX):
                await _listening(port, nginx)
        except TimeoutError:
            raise RuntimeError(f"nginx did not start: {(own / 'stderr.log').read_text()}") from None
        yield port


async def _listening(port: int, nginx: asyncio.subprocess.Process) -> None:
    while nginx.returncode is None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
