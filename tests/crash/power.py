"""The home of the power-loss model: a system-call log of the server, to the disks it may leave.

The log is strace's, of the unmodified server.  A write is in the page cache from
the moment its call begins; a sync that has returned makes durable what had
returned before it began, of that file alone.  A name is durable once its
directory was synced after the name was made or taken away.  An acknowledgement
counts from the moment the server begins to write `HTTP/1.1 2xx` to its socket.

At a crash every unsynced write and name may be there or not, in any order:

| image   | of what was not synced, there is                        |
| ------- | ------------------------------------------------------- |
| nothing | nothing                                                 |
| all     | everything                                              |
| prefix  | what came first, of each file and directory             |
| subset  | any part, of each file and directory                    |
| torn    | any 512-byte sectors of any part                        |

`-shm` is not written: SQLite makes it anew from the log.  Directories that were
there before the trace are taken to stay.
"""

import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct, field

CALLS = (
    "openat,open,creat,close,dup,dup2,dup3,pwrite64,pwritev,pwritev2,write,writev,sendto,sendmsg,"
    "ftruncate,fallocate,fsync,fdatasync,sync_file_range,msync,sync,syncfs,unlink,unlinkat,"
    "rename,renameat,renameat2,link,linkat"
)
SECTOR = 512

Image = Literal["nothing", "all", "prefix", "subset", "torn"]
IMAGES: tuple[Image, ...] = ("nothing", "all", "prefix", "subset", "torn")


def strace(log: Path) -> list[str]:
    """What to put before a server's command, so that `log` is written."""
    return [
        *("strace", "-f", "--seccomp-bpf", "-A", "-y", "-xx", "-s", "200000"),
        *("-e", "signal=none", "-e", f"trace={CALLS}", "-o", str(log)),
    ]


class Call(Struct):
    """One system call.  `begin` and `end` are places in the log; an `end` of None: never."""

    name: str
    arguments: str
    begin: int
    end: int | None
    result: int


_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?:<.*>)?(?: .*)?$")
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+)(?:<.*>)?(?: .*)?$")


def calls(log: Path) -> list[Call]:
    """The calls of a log that did not fail, in the order in which they began."""
    found: list[Call] = []
    begun: dict[str, Call] = {}
    with log.open(encoding="ascii", errors="replace") as lines:
        for place, line in enumerate(lines):
            if whole := _LINE.match(line):
                found.append(Call(whole[2], whole[3], place, place, int(whole[4])))
            elif half := _BEGUN.match(line):
                begun[half[1]] = Call(half[2], half[3], place, None, 0)
                found.append(begun[half[1]])
            elif rest := _RESUMED.match(line):
                call = begun.pop(rest[1], None)
                if call is not None:
                    call.end, call.result = place, int(rest[4])
                    call.arguments += rest[3]
    return [call for call in found if call.result >= 0]


class Write(Struct):
    """Bytes at a place of a file; None: the file is cut or filled to `at`."""

    at: int
    data: bytes | None
    end: int | None

    def sectors(self) -> "Iterator[Write]":
        """The same write in pieces that do not cross a sector."""
        if self.data is None:
            yield self
            return
        start = 0
        while start < len(self.data):
            size = SECTOR - (self.at + start) % SECTOR
            yield Write(self.at + start, self.data[start : start + size], self.end)
            start += size


def _apply(content: bytearray, write: Write) -> None:
    if write.data is None:
        del content[write.at :]
        content.extend(bytes(write.at - len(content)))
        return
    content.extend(bytes(max(0, write.at - len(content))))
    content[write.at : write.at + len(write.data)] = write.data


class Inode(Struct):
    """A file: what of it is durable, and what is not yet."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write] = field(default_factory=list)

    def sync(self, *, began: int) -> None:
        later = []
        for write in self.pending:
            if write.end is not None and write.end < began:
                _apply(self.durable, write)
            else:
                later.append(write)
        self.pending = later

    def image(self, kind: Image, rng: random.Random) -> bytes:
        content = bytearray(self.durable)
        for write in _chosen(self.pending, kind, rng):
            for piece in write.sectors() if kind == "torn" else [write]:
                if kind != "torn" or rng.random() < 0.5:
                    _apply(content, piece)
        return bytes(content)


class Name(Struct):
    """A name that a directory gained (`inode`) or lost (None)."""

    path: str
    inode: Inode | None
    end: int | None


class Disk:
    """The files below one directory, as a log changes them call by call."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._cache: dict[str, Inode] = {}
        self._durable: dict[str, Inode] = {}
        self._pending: list[Name] = []
        self._fds: dict[int, Inode] = {}
        self.syncs = 0
        self.writes = 0

    def run(self, call: Call) -> None:
        """Apply a call; `synced` applies what it makes durable, at its end."""
        text = call.arguments
        match call.name:
            case "openat" | "open" | "creat":
                self._open(call)
            case "pwrite64" | "write":
                inode = self._inode(text)
                if inode is not None:
                    [data] = _strings(text)
                    at = int(text.rpartition(",")[2]) if call.name == "pwrite64" else None
                    assert at is not None, f"a write without a place: {text[:200]}"
                    if call.end is not None:  # the end of the process may have cut it short
                        assert call.result <= len(data), f"a longer write: {text[:200]}"
                        data = data[: call.result]
                    inode.pending.append(Write(at, data, call.end))
                    self.writes += 1
            case "ftruncate":
                inode = self._inode(text)
                if inode is not None:
                    inode.pending.append(Write(int(text.rpartition(",")[2]), None, call.end))
            case "unlink" | "unlinkat":
                path = _strings(text)[-1].decode()
                if path in self._cache:
                    del self._cache[path]
                    self._pending.append(Name(path, None, call.end))
            case "close":
                self._fds.pop(_fd(text), None)
            case "fsync" | "fdatasync" | "sendto" | "sendmsg" | "writev":
                pass
            case _:
                assert self._root not in _decoded(text), f"not modelled: {call.name}({text[:200]}"

    def synced(self, call: Call, inode: Inode | None) -> None:
        """A sync has returned."""
        if inode is not None:
            inode.sync(began=call.begin)
            self.syncs += 1
        elif _decoded(call.arguments).endswith(f"<{self._root}>"):
            later = []
            for name in self._pending:
                if name.end is not None and name.end < call.begin:
                    _put(self._durable, name)
                else:
                    later.append(name)
            self._pending = later

    def target(self, call: Call) -> Inode | None:
        """What a sync is of: a file of ours, else None."""
        return self._inode(call.arguments)

    def images(self, rng: random.Random) -> Iterator[tuple[Image, dict[str, bytes]]]:
        """What may be found after a crash now: content by file name."""
        for kind in IMAGES:
            names = dict(self._durable)
            for name in _chosen(self._pending, kind, rng):
                _put(names, name)
            yield (
                kind,
                {
                    Path(path).name: inode.image(kind, rng)
                    for path, inode in names.items()
                    if not path.endswith(("-shm", ".lock"))
                },
            )

    def _open(self, call: Call) -> None:
        path = _strings(call.arguments)[-1].decode()
        if str(Path(path).parent) != self._root:
            self._fds.pop(call.result, None)
            return
        flags = call.arguments
        assert "O_DIRECT" not in flags, flags
        assert "SYNC" not in flags, flags
        inode = self._cache.get(path)
        if inode is None:
            assert "O_CREAT" in flags, f"opened before it was made: {path}"
            inode = self._cache[path] = Inode()
            self._pending.append(Name(path, inode, call.end))
        if "O_TRUNC" in flags:
            inode.pending.append(Write(0, None, call.end))
        self._fds[call.result] = inode

    def _inode(self, text: str) -> Inode | None:
        inode = self._fds.get(_fd(text))
        # A process that was killed has closed nothing: a number may be another's by now.
        ours = inode is not None and self._root in _decoded(text.partition(",")[0])
        return inode if ours else None


def _put(names: dict[str, Inode], name: Name) -> None:
    if name.inode is None:
        names.pop(name.path, None)
    else:
        names[name.path] = name.inode


def _chosen(pending: list, kind: Image, rng: random.Random) -> list:  # type: ignore[type-arg]
    """Which of the unsynced changes there are, in order."""
    match kind:
        case "nothing":
            return []
        case "all":
            return pending
        case "prefix":
            return pending[: rng.randint(0, len(pending))]
        case "subset" | "torn":
            return [each for each in pending if rng.random() < 0.5]


_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _strings(text: str) -> list[bytes]:
    assert "..." not in text, "strace cut a string"
    return [bytes.fromhex(found.replace("\\x", "")) for found in _STRING.findall(text)]


def _decoded(text: str) -> str:
    """With the hexadecimal text of descriptors read."""
    return re.sub(r"(?:\\x[0-9a-f]{2})+", lambda found: ast.literal_eval(f"'{found[0]}'"), text)


def _fd(text: str) -> int:
    found = re.match(r"(\d+)", text)
    return int(found[1]) if found else -1


def acknowledged(call: Call) -> list[str]:
    """The ids in a write of an answer to a publisher; nothing, in any other call."""
    if call.name not in ("write", "writev", "sendto", "sendmsg") or r"\x48\x54\x54" not in (
        call.arguments
    ):
        return []
    ids: list[str] = []
    for sent in _strings(call.arguments):
        if sent.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
            ids += [each.decode() for each in re.findall(rb'\{"messageId":"(msg_\w+)"', sent)]
    return ids


class Crash(Struct):
    """A moment at which the power may go: the images, and what was acknowledged by then."""

    place: int
    writes: int
    syncs: int
    acked: list[str]
    images: list[tuple[Image, dict[str, bytes]]]


def crashes(log: Path, root: Path, *, count: int, rng: random.Random) -> Iterator[Crash]:
    """`count` crash points of a log: half of them right after an acknowledgement."""
    found = calls(log)
    moments: list[tuple[int, int, Call]] = []  # (place, 0: begins, 1: has returned)
    for call in found:
        moments.append((call.begin, 0, call))
        if call.name in ("fsync", "fdatasync") and call.end is not None:
            moments.append((call.end, 1, call))
    moments.sort(key=lambda moment: moment[:2])
    disk = Disk(root)
    ours = [
        nth
        for nth, (_, _, call) in enumerate(moments)
        if call.name in ("pwrite64", "ftruncate", "fdatasync", "fsync", "unlink")
    ]
    answers = [nth for nth, (_, _, call) in enumerate(moments) if acknowledged(call)]
    points = set(rng.sample(answers, min(count // 2, len(answers))))
    others = [nth for nth in ours if nth not in points]
    points |= set(rng.sample(others, min(count - len(points), len(others))))
    targets: dict[int, Inode | None] = {}
    acked: list[str] = []
    for nth, (place, half, call) in enumerate(moments):
        if half:
            disk.synced(call, targets.pop(call.begin))
        else:
            if call.name in ("fsync", "fdatasync"):
                targets[call.begin] = disk.target(call)
            disk.run(call)
            acked += acknowledged(call)
        if nth in points:
            yield Crash(place, disk.writes, disk.syncs, list(acked), list(disk.images(rng)))
