"""LMDB: a writer and readers of several processes, in an environment that the source has.

All map the data file, and the file of locks, which has a table of readers and the writers' mutex:
what one process stores there, every other one must see (lmdb.tech/doc).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, explore, interleavings

#: Above and below `share_min`.
NAMES = ("large", "small")
MAP = 16 << 20


def fill(directory: Path) -> None:
    for name, entries in (("large", 1500), ("small", 20)):
        environment = lmdb.open(str(directory / name), map_size=MAP)
        with environment.begin(write=True) as transaction:
            transaction.put(b"n", b"0")
            for number in range(entries):
                transaction.put(b"%06d" % number, b"%d" % number * 200)
        environment.close()
        size = (directory / name / "data.mdb").stat().st_size
        assert (size > 1 << 20) == (name == "large")


class Player(actors.Player):
    """A process with one environment, since it may have none twice, and transactions in slots."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._environment: Any = None
        self._transactions: dict[int, Any] = {}

    def open(self, name: str, how: str) -> None:
        self.close()
        self._environment = lmdb.open(
            str(self.root / name),
            map_size=MAP,
            readonly=how == "readonly",
            writemap=how == "writemap",
            create=False,
        )

    def close(self) -> None:
        for slot in list(self._transactions):
            self.abort(slot)
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def begin(self, slot: int, write: bool) -> None:
        self.abort(slot)
        self._transactions[slot] = self._environment.begin(write=write)

    def commit(self, slot: int) -> None:
        self._transactions.pop(slot).commit()

    def abort(self, slot: int) -> None:
        if slot in self._transactions:
            self._transactions.pop(slot).abort()

    def get(self, slot: int, key: bytes) -> bytes | None:
        value: bytes | None = self._transactions[slot].get(key)
        return value

    def all(self, slot: int) -> tuple[int, int]:
        """How many entries there are, and a checksum of them."""
        checksum = count = 0
        for key, value in self._transactions[slot].cursor():
            checksum = (checksum * 31 + sum(key) * len(value) + value[0] + value[-1]) % (1 << 61)
            count += 1
        return count, checksum

    def stat(self, slot: int) -> dict[str, int]:
        return dict(self._transactions[slot].stat())

    def put(self, slot: int, key: bytes, size: int) -> bool:
        return bool(self._transactions[slot].put(key, key[-1:] * size))

    def delete(self, slot: int, key: bytes) -> bool:
        return bool(self._transactions[slot].delete(key))

    def count(self, number: int) -> None:
        """A transaction of its own, as long as no other one of this process writes."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(b"n", b"%d" % number)

    def look(self) -> bytes:
        with self._environment.begin() as transaction:
            return bytes(transaction.get(b"n"))

    def info(self) -> dict[str, int]:
        found = self._environment.info()
        return {name: found[name] for name in ("last_pgno", "last_txnid", "num_readers")}

    def forget_dead_readers(self) -> int:
        return int(self._environment.reader_check())

    def sync(self) -> None:
        self._environment.sync(True)

    def copy(self, name: str) -> None:
        (self.root / name).mkdir()
        self._environment.copy(str(self.root / name), compact=True)


class Writing:
    """Who has the writers' mutex: a step that would wait for it is left out."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._writer: tuple[str, int] | None = None

    def take(self, actor: str, action: str, *args: Any) -> None:
        """Do the step, unless it would wait."""
        if self._would_wait(actor, action, *args):
            return
        if action == "killed":
            self._turns.kill(actor)
        else:
            outcome = self._turns.do(actor, action, *args)
            if outcome.kind == "gave" and action == "begin" and args[1]:
                self._writer = (actor, args[0])
                return
        if self._writer is not None and self._writer[0] == actor:
            slot_ends = action in ("begin", "commit", "abort") and args[0] == self._writer[1]
            if slot_ends or action in ("killed", "close", "open"):
                self._writer = None

    def _would_wait(self, actor: str, action: str, *args: Any) -> bool:
        if action == "count":
            return self._writer is not None
        return action == "begin" and args[1] and self._writer not in (None, (actor, args[0]))


def check(turns: Turns, name: str) -> None:
    """When everybody has gone, all that is in it can be read, and is the same."""
    for side in (turns.native, turns.copy):
        side.end()
    turns.gives(None, "checker", "open", name, "write")
    turns.gives(None, "checker", "begin", 0, False)
    for action in ("all", "stat"):
        assert turns.do("checker", action, 0).kind == "gave"
    turns.do("checker", "copy", "compacted")
    turns.gives(None, "checker", "open", "compacted", "readonly")
    turns.gives(None, "checker", "begin", 0, False)
    turns.do("checker", "all", 0)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["write", "writemap"])
def test_reader_from_before_the_first_writer_reads_what_is_committed(
    stage: Stage, how: str
) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", name, "readonly")
            turns.gives(b"0", "reader", "look")
            turns.gives(None, "writer", "open", name, how)
            for number in range(1, 6):
                turns.gives(None, "writer", "count", number)
                turns.gives(b"%d" % number, "reader", "look")
            turns.gives(None, "late", "open", name, "readonly")
            turns.gives(b"5", "late", "look")
            check(turns, name)


def test_pages_of_an_old_transaction_are_not_used_again_before_its_end(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", name, "readonly")
            turns.gives(None, "reader", "begin", 0, False)
            before = turns.do("reader", "all", 0)
            turns.gives(None, "writer", "open", name, "write")
            for number in range(1, 30):
                turns.gives(None, "writer", "begin", 0, True)
                for key in range(20):
                    turns.gives(True, "writer", "put", 0, b"%06d" % key, 100 + number)
                turns.gives(None, "writer", "commit", 0)
            turns.do("writer", "info")
            assert turns.do("reader", "all", 0) == before
            turns.gives(None, "reader", "abort", 0)
            turns.gives(None, "reader", "begin", 0, False)
            assert turns.do("reader", "all", 0) != before
            check(turns, name)


def test_the_mutex_and_the_place_of_the_killed_are_free_again(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", name, "readonly")
            turns.gives(None, "reader", "begin", 0, False)
            turns.gives(b"0", "reader", "get", 0, b"n")
            turns.gives(None, "writer", "open", name, "write")
            turns.gives(None, "writer", "begin", 0, True)
            turns.gives(True, "writer", "put", 0, b"n", 5)
            turns.kill("writer")
            turns.kill("reader")
            turns.gives(None, "next", "open", name, "write")
            turns.do("next", "forget_dead_readers")
            turns.gives(None, "next", "count", 7)
            turns.gives(b"7", "next", "look")
            check(turns, name)


# --- made-up interleavings ------------------------------------------------------------------------

KEYS = (b"n", b"000003", b"000700", b"new", b"x" * 300)


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A reader comes first, a writer after it; then whatever they and others do."""
    name = chance.choice(NAMES)
    actors = ("first", "second", "third")
    steps: list[Step] = [
        ("first", "open", name, "readonly"),
        ("first", "begin", 0, False),
        ("first", "all", 0),
        ("second", "open", name, chance.choice(["write", "writemap"])),
    ]
    there = {"first", "second"}
    for _ in range(chance.randint(15, 40)):
        kinds = ("look", "count", "read", "write", "of all", "open", "close", "killed")
        [kind] = chance.choices(kinds, (4, 4, 6, 4, 2, 2, 1, 1))
        actor, slot = chance.choice(sorted(there)), chance.randrange(2)
        if kind == "look":
            steps.append((actor, "look"))
        elif kind == "count":
            steps.append((actor, "count", chance.randrange(100)))
        elif kind == "read":
            if chance.random() < 0.5:
                steps.append((actor, "begin", slot, False))
            steps.append((actor, chance.choice(["all", "stat"]), slot))
            steps.append((actor, "get", slot, chance.choice(KEYS)))
        elif kind == "write":
            steps.append((actor, "begin", slot, True))
            for _ in range(chance.randrange(4)):
                steps.append((actor, "put", slot, chance.choice(KEYS), chance.choice([9, 9000])))
                steps.append((actor, "delete", slot, chance.choice(KEYS)))
            if chance.random() < 0.8:
                steps.append((actor, chance.choice(["commit", "commit", "abort"]), slot))
        elif kind == "of all":
            steps.append((actor, chance.choice(["info", "forget_dead_readers", "sync"])))
        elif kind == "open":
            actor = chance.choice(actors)
            how = chance.choice(["write", "readonly", "writemap"])
            steps.append((actor, "open", name, how))
            there.add(actor)
        elif len(there) > 1:
            steps.append((actor, "killed" if kind == "killed" else "close"))
            there.remove(actor)
    return name, steps


def play(turns: Turns, example: tuple[str, list[Step]]) -> None:
    name, steps = example
    writing = Writing(turns)
    for step in steps:
        writing.take(*step)
    check(turns, name)


def test_transactions_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(25, interleavings(plan), stage.playing(play))
