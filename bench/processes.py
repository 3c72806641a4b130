"""The home of processes: each is started here, and ended by its own id."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

PACKAGES = {"nginx": "nginx-light", "wrk": "wrk"}
"""The programs that we need, and the Debian packages that have them."""

SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where nginx is, which a plain user's PATH leaves out."""

END_S_MAX = 10


class MissingProgram(Exception):
    """A program is not installed; says which package has it."""


def program(name: str) -> str:
    """The path of a program.  Raises MissingProgram."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_DIRECTORIES}")
    if found is None:
        package = PACKAGES[name]
        raise MissingProgram(
            f"the bench needs {name}, which is not installed; on Debian and Ubuntu: "
            f"apt-get install {package}"
        )
    return found


@contextlib.asynccontextmanager
async def process(
    *words: str, log: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process for the length of the block; its stderr goes to `log`, stdout can be read."""
    with log.open("ab") as stderr:
        started = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=stderr, env=environ
        )
    try:
        yield started
    finally:
        await _end(started)


async def _end(started: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        if started.returncode is None:
            started.terminate()
        try:
            async with asyncio.timeout(END_S_MAX):
                await started.wait()
        except TimeoutError:
            started.kill()
            await started.wait()
