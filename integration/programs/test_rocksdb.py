"""RocksDB: a primary, and read-only and secondary instances of other processes that look at it.

A secondary keeps the primary's MANIFEST and WAL open and reads on where it was when it is told to
catch up (github.com/facebook/rocksdb/wiki/Read-only-and-Secondary-instances).
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocksdict import AccessType, Options, Rdict, WriteOptions

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, ending_with, explore, interleavings

#: A large table; nothing but little files; and a WAL of more than 1 MiB, its process was killed.
NAMES = ("large", "small", "left")
TOP = Path(__file__).parent.parent.parent


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_max_background_jobs(1)
    return options


def fill(directory: Path) -> None:
    for name, entries in (("large", 3000), ("small", 10)):
        database = Rdict(str(directory / name), _options())
        _put(database, entries)
        database.close()
    # It is killed before anything is flushed to a table.
    code = "from integration.programs.test_rocksdb import leave; import sys; leave(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, directory / "left"], cwd=TOP, timeout=60)
    for name, kind in (("large", "sst"), ("left", "log")):
        assert any(f.stat().st_size > 1 << 20 for f in (directory / name).glob(f"*.{kind}"))


def leave(path: str) -> None:
    database = Rdict(path, _options())
    _put(database, 3000)
    os.kill(os.getpid(), signal.SIGKILL)


def _put(database: Rdict, entries: int) -> None:
    noise = random.Random(1)
    for number in range(entries):
        database[b"%05d" % number] = noise.randbytes(600)
    database[b"n"] = b"0"


class Player(actors.Player):
    """A process with instances in slots, of one database."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._instances: dict[int, Rdict] = {}

    def open(self, slot: int, name: str, how: str) -> None:
        self.close(slot)
        if how == "primary":
            access = AccessType.read_write()
        elif how == "readonly":
            access = AccessType.read_only(False)
        else:
            # Its own log goes to a directory of its own.
            access = AccessType.secondary(str(self.root / f"secondary-{os.getpid()}-{slot}"))
        options = _options()
        self._instances[slot] = Rdict(str(self.root / name), options, access_type=access)

    def close(self, slot: int) -> None:
        if slot in self._instances:
            self._instances.pop(slot).close()

    def catch_up(self, slot: int) -> None:
        self._instances[slot].try_catch_up_with_primary()

    def get(self, slot: int, key: bytes) -> bytes | None:
        value: bytes | None = self._instances[slot].get(key)
        return value

    def all(self, slot: int) -> tuple[int, int]:
        """How many entries there are, and a checksum of them."""
        checksum = count = 0
        for key, value in self._instances[slot].items():
            checksum = (checksum * 31 + sum(key) + sum(value)) % (1 << 61)
            count += 1
        return count, checksum

    def put(self, slot: int, key: bytes, size: int, sync: bool) -> None:
        options = WriteOptions()
        options.sync = sync
        self._instances[slot].put(key, key[-1:] * size, write_opt=options)

    def delete(self, slot: int, first: bytes, last: bytes) -> None:
        self._instances[slot].delete_range(first, last)

    def flush(self, slot: int) -> None:
        self._instances[slot].flush()

    def compact(self, slot: int) -> None:
        self._instances[slot].compact_range(None, None)

    def sequence(self, slot: int) -> Any:
        return self._instances[slot].latest_sequence_number()

    def describe(self, error: Exception) -> str:
        return re.sub(r"\d+", "N", super().describe(error))


def check(turns: Turns, name: str) -> None:
    """When everybody has gone, another process finds the same in it, and can go on."""
    for side in (turns.native, turns.copy):
        side.end()
    turns.gives(None, "checker", "open", 0, name, "primary")
    assert turns.do("checker", "all", 0).kind == "gave"
    turns.gives(None, "checker", "put", 0, b"n", 3, True)
    turns.gives(None, "checker", "compact", 0)
    assert turns.do("checker", "all", 0).kind == "gave"


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------


def test_a_secondary_from_before_the_first_writer_follows_the_primary(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "second", "open", 0, name, "secondary")
            turns.gives(b"0", "second", "get", 0, b"n")
            turns.gives(None, "first", "open", 0, name, "primary")
            for size in (1, 2, 70_000, 3):
                turns.gives(None, "first", "put", 0, b"n", size, False)
                turns.gives(None, "second", "catch_up", 0)
                turns.gives(b"n" * size, "second", "get", 0, b"n")
                turns.gives(None, "first", "flush", 0)
                turns.gives(None, "second", "catch_up", 0)
                turns.do("second", "all", 0)
            turns.gives(None, "first", "compact", 0)
            turns.do("second", "all", 0)
            turns.gives(None, "second", "catch_up", 0)
            turns.gives(b"nnn", "second", "get", 0, b"n")
            check(turns, name)


def test_a_second_primary_is_refused(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", 0, name, "readonly")
            turns.gives(None, "first", "open", 0, name, "primary")
            turns.fails("lock", "second", "open", 0, name, "primary")
            turns.fails("lock", "first", "open", 1, name, "primary")
            turns.kill("first")
            turns.gives(None, "second", "open", 0, name, "primary")
            turns.gives(b"0", "second", "get", 0, b"n")
            turns.do("reader", "all", 0)
            check(turns, name)


# --- made-up interleavings ------------------------------------------------------------------------

KEYS = (b"n", b"00003", b"02000", b"new")


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A secondary and a read-only instance come first, then a primary."""
    name = chance.choice(NAMES)
    steps: list[Step] = [
        ("second", "open", 0, name, "secondary"),
        ("third", "open", 0, name, "readonly"),
        ("first", "open", 0, name, "primary"),
    ]
    there = {("first", 0), ("second", 0), ("third", 0)}
    for _ in range(chance.randint(15, 30)):
        kinds = ("write", "look", "catch up", "open", "close", "killed")
        [kind] = chance.choices(kinds, (7, 5, 4, 2, 1, 1))
        actor, slot = chance.choice(sorted(there)) if there else ("first", 0)
        if kind == "write":
            steps.append(("first", "put", 0, chance.choice(KEYS), chance.randrange(900), False))
            if chance.random() < 0.3:
                steps.append(("first", chance.choice(["flush", "compact", "sequence"]), 0))
            if chance.random() < 0.1:
                steps.append(("first", "delete", 0, b"00005", b"00100"))
        elif kind == "look":
            steps.append((actor, "get", slot, chance.choice(KEYS)))
            steps.append((actor, "all", slot))
        elif kind == "catch up":
            steps.append(("second", "catch_up", 0))
            steps.append(("second", "get", 0, chance.choice(KEYS)))
        elif kind == "open":
            actor, slot = chance.choice(["first", "second", "third"]), chance.randrange(2)
            how = chance.choice(["primary", "readonly", "secondary"])
            steps.append((actor, "open", slot, name, how))
            there.add((actor, slot))
        elif kind == "close":
            steps.append((actor, "close", slot))
            there.discard((actor, slot))
        else:
            steps.append((actor, "killed"))
            there = {one for one in there if one[0] != actor}
    return name, steps


play = ending_with(check)


def test_instances_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(8, interleavings(plan), stage.playing(play))
