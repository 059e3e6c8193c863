"""numpy maps a file in several processes: r, r+ and c; what one stores, the others see.

With one difference, for a large file of no kind that is known to be changed in place, in a copy
with passthrough (docs/semantics.md): who opened it for reading before its first writer came keeps
the bytes that it opened, and its descriptor is not of the file that the name has since. It is
modelled here (`Expected`), so everything else must be as on XFS: all that is opened later, and
every other file.
"""

from __future__ import annotations

import functools
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from integration.programs import actors
from integration.programs.actors import Outcome
from integration.programs.turns import OPTIONS, Stage, Step, Turns, explore, interleavings

LARGE, SMALL = 3 << 20, 40_000
#: Which of them are weights, and shared until the first write.
NAMES = ("weights.npy", "data.bin", "small.bin", "large.log")
SHARED = ("weights.npy", "data.bin")
PAGE = 4096


def fill(directory: Path) -> None:
    noise = random.Random(1)
    numpy.save(directory / "weights.npy", numpy.frombuffer(noise.randbytes(LARGE), numpy.uint8))
    (directory / "data.bin").write_bytes(noise.randbytes(LARGE))
    (directory / "large.log").write_bytes(noise.randbytes(LARGE))
    (directory / "small.bin").write_bytes(noise.randbytes(SMALL))


def _start(name: str) -> int:
    """Where the array begins in its file."""
    return 128 if name.endswith(".npy") else 0


class Player(actors.Player):
    """A process with mappings, and descriptors, in slots."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._maps: dict[int, Any] = {}
        self._files: dict[int, int] = {}
        self._starts: dict[int, int] = {}

    def map(self, slot: int, name: str, how: str) -> None:
        self.close(slot)
        if name.endswith(".npy"):
            self._maps[slot] = numpy.load(self.root / name, mmap_mode=how)
        else:
            self._maps[slot] = numpy.memmap(self.root / name, numpy.uint8, how)

    def open(self, slot: int, name: str, how: str) -> None:
        self.close(slot)
        flags = os.O_RDWR if how == "r+" else os.O_RDONLY
        self._files[slot] = os.open(self.root / name, flags | os.O_CLOEXEC)
        self._starts[slot] = _start(name)

    def close(self, slot: int) -> None:
        self._maps.pop(slot, None)
        if slot in self._files:
            os.close(self._files.pop(slot))

    def see(self, slot: int, at: int) -> bytes:
        if slot in self._files:
            return os.pread(self._files[slot], 16, self._starts[slot] + at)
        return bytes(self._maps[slot][at : at + 16])

    def see_all(self, slot: int) -> int:
        if slot in self._files:
            size = os.fstat(self._files[slot]).st_size
            return zlib.crc32(os.pread(self._files[slot], size, 0))
        return zlib.crc32(self._maps[slot])

    def store(self, slot: int, at: int, value: int) -> None:
        if slot in self._files:
            os.pwrite(self._files[slot], bytes([value]) * 16, self._starts[slot] + at)
        else:
            self._maps[slot][at : at + 16] = value

    def flush(self, slot: int) -> None:
        if slot in self._files:
            os.fsync(self._files[slot])
        else:
            self._maps[slot].flush()

    def size(self, slot: int) -> int:
        return os.fstat(self._files[slot]).st_size if slot in self._files else len(self._maps[slot])

    def is_named(self, slot: int, name: str) -> bool:
        """Whether the descriptor is of the file that the name has, as programs find it out."""
        return os.path.samestat(os.fstat(self._files[slot]), os.stat(self.root / name))

    def read(self, name: str) -> tuple[int, int]:
        data = (self.root / name).read_bytes()
        return len(data), zlib.crc32(data)

    def write(self, name: str, at: int, value: int) -> None:
        with (self.root / name).open("r+b", buffering=0) as file:
            file.seek(_start(name) + at)
            file.write(bytes([value]) * 16)

    def append(self, name: str, value: int) -> None:
        with (self.root / name).open("ab", buffering=0) as file:
            file.write(bytes([value]) * 100)

    def replace(self, name: str) -> None:
        """As a download or a checkpoint does it."""
        data = (self.root / name).read_bytes()
        (self.root / "new").write_bytes(data[::-1])
        (self.root / "new").replace(self.root / name)


def readers_keep(mode: str) -> bool:
    """Whether readers of weights from before the first writer keep what they opened."""
    return mode == "passthrough" and "clone=open" not in OPTIONS


class Expected:
    """What must come of each step in the copy: what comes of it on XFS, but for a kept slot.

    A slot is kept that was opened for reading when nobody had opened the file for writing yet. It
    shows what it would on XFS if nobody ever did: so it is done in the source too, where nobody
    does.
    """

    def __init__(self, turns: Turns, *, keeps: bool) -> None:
        self._turns = turns
        self._keeps = keeps
        self._written: set[str] = set()
        self._kept: dict[tuple[str, int], str] = {}

    def play(self, steps: list[Step]) -> None:
        for actor, action, *args in steps:
            self.take(actor, action, *args)

    def take(self, actor: str, action: str, *args: Any) -> None:
        if action == "killed":
            self._turns.kill(actor)
            self._kept = {key: name for key, name in self._kept.items() if key[0] != actor}
            return
        expected, got = self._turns.both(actor, action, *args)
        key = (actor, args[0])
        if action in ("map", "open", "close"):
            self._kept.pop(key, None)
        if action in ("map", "open"):
            name, how = args[1:]
            if self._keeps and how != "r+" and name in SHARED and name not in self._written:
                self._kept[key] = name
            if how == "r+":
                self._written.add(name)
        elif action in ("write", "append", "replace"):
            self._written.add(args[0])
        if key in self._kept:
            as_if_still = self._turns.in_source(actor, action, *args)
            if action != "is_named":
                expected = as_if_still
            elif expected.kind == "gave" and self._kept[key] in self._written:
                expected = Outcome("gave", False)
        self._turns.compare(expected, got)


def check(turns: Turns) -> None:
    """When everybody has gone, the files are the same."""
    for side in (turns.native, turns.copy):
        side.end()
    for name in NAMES:
        assert turns.do("checker", "read", name).kind == "gave"


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


@pytest.fixture
def keeps(mode: str) -> bool:
    return readers_keep(mode)


# --- stories --------------------------------------------------------------------------------------


def test_a_mapping_from_before_the_first_writer_and_all_that_come_later(
    stage: Stage, keeps: bool
) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            expected = Expected(turns, keeps=keeps)
            for slot, how in enumerate(("r", "c")):
                expected.take("before", "map", slot, name, how)
                expected.take("before", "see", slot, PAGE)
            expected.take("before", "open", 2, name, "r")
            expected.take("before", "is_named", 2, name)
            expected.take("before", "store", 1, 2 * PAGE, 1)
            expected.take("writer", "map", 0, name, "r+")
            for value, at in ((2, PAGE), (3, 2 * PAGE)):
                expected.take("writer", "store", 0, at, value)
                for slot in range(3):
                    expected.take("before", "see", slot, at)
                    expected.take("before", "see_all", slot)
            expected.take("before", "is_named", 2, name)
            # Later ones, in the same process too, are with the writer.
            for actor in ("before", "later"):
                turns.gives(None, actor, "map", 3, name, "r")
                turns.gives(b"\2" * 16, actor, "see", 3, PAGE)
                turns.gives(None, actor, "open", 4, name, "r+")
                turns.gives(True, actor, "is_named", 4, name)
                turns.gives(None, actor, "store", 4, 3 * PAGE, 4)
            for actor, slot in (("writer", 0), ("before", 3), ("later", 3), ("later", 4)):
                turns.gives(b"\4" * 16, actor, "see", slot, 3 * PAGE)
            check(turns)


# --- made-up interleavings ------------------------------------------------------------------------


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """Readers come first, then a writer; then whatever they and others do to one file."""
    name = chance.choice(NAMES)
    steps: list[Step] = [
        ("first", "map", 0, name, chance.choice(["r", "c"])),
        ("first", chance.choice(["map", "open"]), 1, name, "r"),
        ("second", "map", 0, name, "r"),
    ]
    there = [("first", 0), ("first", 1), ("second", 0)]
    for _ in range(chance.randint(15, 35)):
        kinds = ("see", "store", "open", "named", "by name", "replace", "close", "killed")
        [kind] = chance.choices(kinds, (8, 8, 6, 2, 2, 1, 1, 1))
        actor, slot = chance.choice(there) if there else ("first", 0)
        at, value = chance.randrange(8) * PAGE + chance.choice([0, 100]), chance.randrange(256)
        if kind == "see":
            steps.append((actor, "see", slot, at))
            steps.append((actor, chance.choice(["see_all", "size", "flush"]), slot))
        elif kind == "store":
            steps.append((actor, "store", slot, at, value))
            steps += [(who, "see", where, at) for who, where in there]
        elif kind == "open":
            actor, slot = chance.choice(["first", "second", "third"]), chance.randrange(4)
            how = chance.choice(["r", "r+", "r+", "c"])
            steps.append((actor, chance.choice(["map", "map", "open"]), slot, name, how))
            there.append((actor, slot))
        elif kind == "named":
            steps.append((actor, "is_named", slot, name))
        elif kind == "by name":
            steps.append((actor, "write", name, at, value))
            if not name.endswith(".npy"):
                steps.append((actor, "append", name, value))
            steps.append((actor, "read", name))
        elif kind == "replace" and not name.endswith(".npy"):
            steps.append((actor, "replace", name))
        elif kind == "close":
            steps.append((actor, "close", slot))
            there = [one for one in there if one != (actor, slot)]
        elif kind == "killed":
            steps.append((actor, "killed"))
            there = [one for one in there if one[0] != actor]
    return name, steps


def play(turns: Turns, example: tuple[str, list[Step]], *, keeps: bool) -> None:
    Expected(turns, keeps=keeps).play(example[1])
    check(turns)


def play_coherent(turns: Turns, example: tuple[str, list[Step]]) -> None:
    play(turns, example, keeps=False)


def test_mappings_take_turns_as_on_xfs(stage: Stage, keeps: bool) -> None:
    explore(15, interleavings(plan), stage.playing(functools.partial(play, keeps=keeps)))
