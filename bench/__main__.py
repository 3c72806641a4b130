"""The home of the command: which measurements, where, and the table at the end."""

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench import figures
from bench.figures import Figure
from bench.measures import MEASURES, ON_POSTGRES
from bench.plan import Plan
from bench.postgres import installed
from bench.processes import PACKAGES, MissingProgram, program

DIRECTORY = "/var/tmp"
"""On disk on every system, where /tmp may be memory."""

MEMORY = ("tmpfs", "ramfs")
FILES_MIN = 8_192


def main() -> int:
    asked = _arguments()
    names: list[str] = asked.names or list(MEASURES)
    if (kind := _file_system(asked.directory)) in MEMORY:
        return _fault(f"{asked.directory} is {kind}, and a sync there is none; see --directory")
    try:
        for name in PACKAGES:
            program(name)
    except MissingProgram as fault:
        return _fault(str(fault))
    on_postgres = [name for name in names if name in ON_POSTGRES]
    if on_postgres and installed() is None:
        return _fault(
            f"{', '.join(on_postgres)}: PostgreSQL is not installed; make setup brings it"
        )
    _allow_files()
    with tempfile.TemporaryDirectory(dir=asked.directory, prefix="waypost-bench-") as directory:
        plan = (Plan.quick if asked.quick else Plan)(directory=Path(directory))
        found: list[Figure] = []
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_measure(names, plan, found))
        finally:  # whatever became of the rest
            figures.show(found, title=f"{plan.pairs} paired runs each; {_machine()}")
    return int(any(figure.missed for figure in found))


async def _measure(names: list[str], plan: Plan, found: list[Figure]) -> None:
    """Measure one after the other, and add what was found."""
    for name in names:
        began_s = time.monotonic()
        sys.stderr.write(f"{name} … ")
        sys.stderr.flush()
        found += await MEASURES[name](plan)
        sys.stderr.write(f"{time.monotonic() - began_s:.0f} s\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASURES)}; else all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--directory", type=Path, default=Path(DIRECTORY), help="on the disk")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(MEASURES):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    return asked


def _file_system(directory: Path) -> str:
    """The kind of file system that a directory is on."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_MIN:
        wanted = FILES_MIN if hard == resource.RLIM_INFINITY else min(FILES_MIN, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _machine() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {version}"


def _fault(text: str) -> int:
    sys.stderr.write(f"bench: {text}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
