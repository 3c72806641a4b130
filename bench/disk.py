"""The home of what the disk alone takes: a small write and its fdatasync, over and over.

Run as a process of its own, `python -m bench.disk FILE SECONDS`, beside whatever
is measured.  It overwrites 8 KB of a file that has its size already, as a
write-ahead log does that has come round, 50 times a second, and prints the
times in milliseconds.
"""

import os
import sys
import time

import msgspec

WRITE_BYTES = 8_192
FILE_BYTES = 4 * 1024 * 1024
EVERY_S = 0.02


def main(path: str, seconds: float) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, bytes(FILE_BYTES))
    os.fsync(fd)
    took_ms = []
    end_s = time.monotonic() + seconds
    at = 0
    while (began_s := time.monotonic()) < end_s:
        os.pwrite(fd, os.urandom(WRITE_BYTES), at)
        os.fdatasync(fd)
        took_ms.append((time.monotonic() - began_s) * 1000)
        at = (at + WRITE_BYTES) % FILE_BYTES
        time.sleep(EVERY_S)
    os.close(fd)
    sys.stdout.buffer.write(msgspec.json.encode(took_ms))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
