"""Writers whose files tell after a crash what had become of every one of their calls.

A slot is a thing that goes through numbered states: state 0 is what the source has, `act(n)` brings
it into state n, `sync` makes that durable in the ways that XFS promises (fsync of a file: its data
and its name; fsync of the directories: what was renamed or removed), and `states` tells which state
or states it may be in now. A writer notes in a log outside of the volume when it begins an act,
when it has returned, and when it was synced. So after a crash a slot has to be in a state between
the last one that was synced (after SIGKILL: that had returned) and the last one that was begun.

    python -m integration.crashload ROOT LOG SEED WRITER FIRST

runs one writer until a call fails; FIRST is the number of the first act.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from pathlib import Path

BLOCK = 4096
WRITERS = 4
KEPT_MODE = 0o640
DIRECTORIES = ("one", "two/deep")

_libc = ctypes.CDLL(None, use_errno=True)


class Damaged(Exception):  # noqa: N818 -- what was found
    """A file holds what nobody ever wrote into it."""


def stamp(slot: str, n: int, block: int) -> bytes:
    line = f"{slot} {n} {block}\n".encode()
    return (line * (BLOCK // len(line) + 1))[:BLOCK]


def content(slot: str, n: int, blocks: int) -> bytes:
    return b"".join(stamp(slot, n, block) for block in range(blocks))


def numbers(slot: str, data: bytes) -> list[int]:
    """The state of each block. Damaged when one is of no state, or of another file or place."""
    found = []
    for block in range(0, len(data), BLOCK):
        part = data[block : block + BLOCK]
        try:
            name, n, place = part[: part.index(b"\n")].decode().split()
            whole = part == stamp(slot, int(n), block // BLOCK)
        except ValueError:
            whole = False
        if not whole or name != slot or int(place) != block // BLOCK:
            raise Damaged(f"{slot}: block {block // BLOCK} of {len(data)} bytes: {part[:60]!r}")
        found.append(int(n))
    return found


def write_all(fd: int, data: bytes) -> None:
    """A call that an error cuts short says how far it came; only the next one fails."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], done)


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Slot:
    """*at*: its directory, *name*: of the slot and of its file."""

    def __init__(self, root: Path, at: str, name: str) -> None:
        self.root = root
        self.directory = root / at
        self.name = name
        self.path = self.directory / name

    def make(self) -> None:
        """State 0, in a source."""

    def act(self, n: int) -> None:
        raise NotImplementedError

    def sync(self) -> None:
        fsync(self.directory)

    def states(self, low: int, high: int) -> set[int]:
        """Every state from low to high that it may be in, as far as can be seen. Damaged."""
        raise NotImplementedError


class InPlace(Slot):
    """A file of the source that is written over in place. States of single blocks may differ."""

    blocks = 16

    def make(self) -> None:
        self.path.write_bytes(content(self.name, 0, self.blocks))
        self.path.chmod(KEPT_MODE)
        os.chown(self.path, 1234, 1234)
        os.setxattr(self.path, "user.kept", b"kept")
        os.utime(self.path, ns=(10**18, 10**18))

    def act(self, n: int) -> None:
        self.write(self.path, n)

    def write(self, path: Path, n: int) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            write_all(fd, content(self.name, n, self.blocks))
        finally:
            os.close(fd)

    def sync(self) -> None:
        fsync(self.path)

    def states(self, low: int, high: int) -> set[int]:
        st = self.path.stat()
        kept = (st.st_mode & 0o7777, st.st_uid, st.st_gid, os.getxattr(self.path, "user.kept"))
        if kept != (KEPT_MODE, 1234, 1234, b"kept"):
            raise Damaged(f"{self.name}: attributes {kept}")
        if high == 0 and st.st_mtime_ns != 10**18:
            raise Damaged(f"{self.name}: mtime {st.st_mtime_ns}")
        data = self.path.read_bytes()
        if len(data) != self.blocks * BLOCK:
            raise Damaged(f"{self.name}: {len(data)} bytes")
        found = numbers(self.name, data)
        return {min(found)} if low <= min(found) and max(found) <= high else {-1}


class Large(InPlace):
    """The same, large enough for passthrough of the template's file."""

    blocks = 400


class Linked(InPlace):
    """A file of the source with names in several directories, written through any of them."""

    blocks = 4

    def paths(self) -> list[Path]:
        return [self.path, *(self.root / at / f"{self.name}+" for at in DIRECTORIES)]

    def make(self) -> None:
        super().make()
        for path in self.paths()[1:]:
            os.link(self.path, path)

    def act(self, n: int) -> None:
        self.write(self.paths()[n % 3], n)

    def states(self, low: int, high: int) -> set[int]:
        inodes = {path.stat().st_ino for path in self.paths()}
        contents = {path.read_bytes() for path in self.paths()}
        links = {path.stat().st_nlink for path in self.paths()}
        if len(inodes) != 1 or len(contents) != 1 or links != {3}:
            raise Damaged(f"{self.name}: names parted: {inodes}, {len(contents)}, {links}")
        return super().states(low, high)


class Replaced(Slot):
    """A file of the source that is replaced as a whole by one that was synced before."""

    def make(self) -> None:
        self.path.write_bytes(content(self.name, 0, 1))

    def act(self, n: int) -> None:
        new = self.directory / f"{self.name}.tmp"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(fd, content(self.name, n, n % 7 + 1))
            os.fsync(fd)
        finally:
            os.close(fd)
        new.rename(self.path)

    def states(self, low: int, high: int) -> set[int]:  # noqa: ARG002
        data = self.path.read_bytes()
        [n] = set(numbers(self.name, data)) or {-1}
        if len(data) != (n % 7 + 1) * BLOCK:
            raise Damaged(f"{self.name}: {len(data)} bytes of state {n}")
        return {n}


class Toggled(Slot):
    """A file of the source that is removed and created again: even states are there."""

    def make(self) -> None:
        self.path.write_bytes(content(self.name, 0, 3))

    def act(self, n: int) -> None:
        if n % 2:
            self.path.unlink(missing_ok=True)
            return
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(fd, content(self.name, n, 3))
        finally:
            os.close(fd)

    def sync(self) -> None:
        # A new file's name is durable with its data; that a name is gone, with its directory.
        fsync(self.path if self.path.exists() else self.directory)

    def states(self, low: int, high: int) -> set[int]:
        if not self.path.exists():
            return {n for n in range(low, high + 1) if n % 2}
        data = self.path.read_bytes()
        if len(data) == 3 * BLOCK and data[-1]:
            found = set(numbers(self.name, data))
            if len(found) != 1:
                raise Damaged(f"{self.name} is of states {found}")
            return found
        # Created, and not synced: some of the data may be missing, and none is that of others.
        numbers(self.name, data.rstrip(b"\0")[: len(data) // BLOCK * BLOCK])
        return {n for n in range(low + 1, high + 1) if n % 2 == 0}


class Moved(Slot):
    """A directory of the source that moves between two directories."""

    def place(self, n: int) -> Path:
        return self.root / DIRECTORIES[n % 2] / self.name

    def make(self) -> None:
        (self.place(0) / "inner").mkdir(parents=True)
        (self.place(0) / "inner" / "file").write_bytes(content(self.name, 0, 2))

    def act(self, n: int) -> None:
        if self.place(n + 1).exists():
            self.place(n + 1).rename(self.place(n))

    def sync(self) -> None:
        for n in (0, 1):
            fsync(self.place(n).parent)

    def states(self, low: int, high: int) -> set[int]:
        there = [n for n in (0, 1) if self.place(n).exists()]
        if len(there) != 1:
            raise Damaged(f"{self.name} is at {len(there)} places")
        path = self.place(there[0]) / "inner" / "file"
        if path.read_bytes() != content(self.name, 0, 2):
            raise Damaged(f"{path} is not what it was")
        return {n for n in range(low, high + 1) if n % 2 == there[0]}


class Exchanged(Slot):
    """A directory and a file of the source that change places (RENAME_EXCHANGE)."""

    def make(self) -> None:
        self.path.mkdir()
        (self.path / "file").write_bytes(content(self.name, 0, 1))
        self.other().write_bytes(content(self.name, 0, 2))

    def other(self) -> Path:
        return self.root / f"{self.name}.other"

    def act(self, n: int) -> None:
        if self.path.is_dir() == (n % 2 == 1):
            names = (os.fsencode(self.path), os.fsencode(self.other()))
            if _libc.renameat2(-100, names[0], -100, names[1], 2):
                raise OSError(ctypes.get_errno(), "renameat2")

    def sync(self) -> None:
        fsync(self.directory)
        fsync(self.root)

    def states(self, low: int, high: int) -> set[int]:
        places = [self.path, self.other()]
        odd = int(self.other().is_dir())
        if odd:
            places.reverse()
        found = (places[0] / "file").read_bytes(), places[1].read_bytes()
        if found != (content(self.name, 0, 1), content(self.name, 0, 2)):
            raise Damaged(f"{self.name}: exchanged to something else")
        return {n for n in range(low, high + 1) if n % 2 == odd}


class Link(Slot):
    """A file of the source that gets a second name (odd states) and loses it again."""

    def make(self) -> None:
        self.path.write_bytes(content(self.name, 0, 2))

    def second(self) -> Path:
        return self.root / f"{self.name}.second"

    def act(self, n: int) -> None:
        self.second().unlink(missing_ok=True)
        if n % 2:
            os.link(self.path, self.second())

    def sync(self) -> None:
        fsync(self.path)
        fsync(self.root)

    def states(self, low: int, high: int) -> set[int]:
        if self.path.read_bytes() != content(self.name, 0, 2):
            raise Damaged(f"{self.name} is not what it was")
        there = int(self.second().exists())
        if there and not self.second().samefile(self.path):
            raise Damaged(f"{self.name}: the link is another file")
        return {n for n in range(low, high + 1) if n % 2 == there}


class Shrunk(Slot):
    """A large file of the source that is truncated, a block less each time."""

    blocks = 600

    def make(self) -> None:
        self.path.write_bytes(content(self.name, 0, self.blocks))

    def act(self, n: int) -> None:
        os.truncate(self.path, max(0, self.blocks - n) * BLOCK)

    def sync(self) -> None:
        fsync(self.path)

    def states(self, low: int, high: int) -> set[int]:
        data = self.path.read_bytes()
        if set(numbers(self.name, data)) - {0} or len(data) % BLOCK:
            raise Damaged(f"{self.name}: {len(data)} bytes")
        left = len(data) // BLOCK
        return {n for n in range(low, high + 1) if max(0, self.blocks - n) == left}


class Emptied(Slot):
    """A directory of the source that is removed and made again: even states are there."""

    def make(self) -> None:
        self.path.mkdir()
        (self.path / "lower").write_bytes(b"lower")

    def act(self, n: int) -> None:
        if n % 2 == 0:
            self.path.mkdir(exist_ok=True)
            (self.path / "lower").unlink(missing_ok=True)
        elif self.path.exists():
            (self.path / "lower").unlink(missing_ok=True)
            self.path.rmdir()

    def states(self, low: int, high: int) -> set[int]:
        if not self.path.exists():
            return {n for n in range(low, high + 1) if n % 2}
        if (self.path / "lower").exists():
            return {0}
        # Its file goes before it does.
        return {n for n in range(low, high + 1) if (n % 2 == 0 and n > 0) or (n % 2 and n > low)}


KINDS = (
    InPlace, InPlace, Large, Linked, Replaced, Replaced, Toggled, Toggled, Moved, Exchanged, Link,
    Shrunk, Emptied,
)  # fmt: skip


def slots(root: Path, writer: int) -> list[Slot]:
    """The slots of one writer: names of its own in directories that it shares with the others."""
    return [
        kind(root, DIRECTORIES[number % 2], f"{kind.__name__}-{writer}-{number}")
        for number, kind in enumerate(KINDS)
    ]


def make_source(path: Path) -> Path:
    for directory in DIRECTORIES:
        (path / directory).mkdir(parents=True)
    for writer in range(WRITERS):
        for slot in slots(path, writer):
            slot.make()
    return path


def replay(log: Path, *, after: str, first: int) -> dict[int, tuple[int, int]]:
    """For each slot the first and the last state that it may be in; `after` "d" or "s"."""
    bounds: dict[int, tuple[int, int]] = {}
    for line in log.read_text().splitlines():
        slot, what, n = line.split()
        low, high = bounds.get(int(slot), (first - 1, first - 1))
        low = int(n) if what in (after, "s") else low
        high = int(n) if what == "b" else high
        bounds[int(slot)] = (low, high)
    return bounds


def work(root: Path, log: Path, seed: str, writer: int, first: int) -> None:
    """Go on until something fails."""
    chance = random.Random(f"{seed} {writer}")
    mine = slots(root, writer)
    next_of = [first] * len(mine)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: str) -> None:
        os.write(fd, f"{number} {what} {n}\n".encode())

    while True:
        number = chance.randrange(len(mine))
        slot, n = mine[number], next_of[number]
        next_of[number] += 1
        note("b")
        slot.act(n)
        note("d")
        if chance.random() < 0.4:
            slot.sync()
            note("s")


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    except OSError as error:
        print(f"{error.errno} {error}")
