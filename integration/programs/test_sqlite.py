"""SQLite: several connections of several processes, in a database that the source has.

It keeps one state of locks for each (st_dev, st_ino) in a process, since a process loses its POSIX
locks with the first descriptor of a file that it closes (sqlite.org/lockingv3.html): so it is a
judge of whether two descriptors are of one file.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, ending_with, explore, interleavings

#: Above and below `share_min`, in both kinds of journal, and one whose last process was killed: it
#: has more than 1 MiB in its WAL. The names say nothing about what they are.
NAMES = ("large-delete", "large-wal", "small-delete", "small-wal", "left-wal")


def fill(directory: Path) -> None:
    for name in NAMES[:-1]:
        _make(directory / name, name.partition("-")[2], 400 if name.startswith("large") else 20)
    _make(directory / "closed", "wal", 400)
    with sqlite3.connect(directory / "closed", isolation_level=None) as connection:
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute("update rows set noise = noise || 'and more'")
        shutil.copy(directory / "closed", directory / "left-wal")
        shutil.copy(directory / "closed-wal", directory / "left-wal-wal")
    connection.close()
    (directory / "closed").unlink()
    for name in NAMES:
        assert ((directory / name).stat().st_size > 1 << 20) == (not name.startswith("small"))
    assert (directory / "left-wal-wal").stat().st_size > 1 << 20


def _make(path: Path, journal: str, rows: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"pragma journal_mode = {journal}")
    connection.execute("create table counter (number)")
    connection.execute("insert into counter values (0)")
    connection.execute("create table rows (id integer primary key, noise text)")
    connection.execute("create index by_noise on rows (noise)")
    noise = [(f"{number * 7919 % 10007:05}" * 300,) for number in range(rows)]
    connection.executemany("insert into rows (noise) values (?)", noise)
    connection.commit()
    connection.close()


class Player(actors.Player):
    """A process with connections in slots. None waits for a lock."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._connections: dict[int, sqlite3.Connection] = {}
        self._cursors: dict[int, sqlite3.Cursor] = {}

    def open(self, slot: int, name: str, mode: str) -> None:
        self.close(slot)
        uri = f"file:{self.root / name}?mode={mode}"
        self._connections[slot] = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)

    def close(self, slot: int) -> None:
        self.end_of_cursor(slot)
        if slot in self._connections:
            self._connections.pop(slot).close()

    def do(self, slot: int, statement: str) -> list[Any]:
        return self._connections[slot].execute(statement).fetchall()

    def cursor(self, slot: int) -> Any:
        """Begin to read the rows, and stay in the middle: the connection keeps its shared lock."""
        self._cursors[slot] = self._connections[slot].execute("select * from rows order by id")
        return self._cursors[slot].fetchone()

    def next(self, slot: int) -> Any:
        return self._cursors[slot].fetchone()

    def end_of_cursor(self, slot: int) -> None:
        if slot in self._cursors:
            self._cursors.pop(slot).close()


LOOK = "select number from counter"
SUM = "select count(*), sum(length(noise)), max(noise) from rows"
COUNT = "update counter set number = number + 1"
STATEMENTS = (
    *(LOOK, SUM, "select count(*) from rows where noise > '05'"),
    *("begin", "begin immediate", "begin exclusive", "commit", "rollback"),
    *(COUNT, "insert into rows (noise) select noise || 'x' from rows where id % 50 = 0"),
    *("update rows set noise = substr(noise, 6) || 'abcde'", "delete from rows where id % 3 = 0"),
    *("pragma wal_checkpoint(passive)", "pragma wal_checkpoint(truncate)", "vacuum"),
    *("pragma journal_mode = wal", "pragma journal_mode = delete", "pragma journal_mode"),
    *("pragma cache_size = 10", "pragma mmap_size = 10000000", "pragma integrity_check"),
)


def check(turns: Turns, name: str) -> None:
    """When everybody has gone the database is sound, and has the same in it."""
    for side in (turns.native, turns.copy):
        side.end()
    turns.do("checker", "open", 0, name, "rw")
    turns.gives([("ok",)], "checker", "do", 0, "pragma integrity_check")
    for statement in (LOOK, "select * from rows order by id", "pragma journal_mode"):
        turns.do("checker", "do", 0, statement)


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------


@pytest.mark.quick
def test_reader_from_before_the_first_writer_reads_what_is_committed(stage: Stage) -> None:
    for name in NAMES:
        for mode in ("ro", "rw"):
            with stage.turns() as turns:
                turns.gives(None, "reader", "open", 0, name, mode)
                turns.gives([(0,)], "reader", "do", 0, LOOK)
                turns.gives(None, "writer", "open", 0, name, "rw")
                for number in range(1, 4):
                    turns.gives([], "writer", "do", 0, COUNT)
                    turns.gives([(number,)], "reader", "do", 0, LOOK)
                turns.gives(None, "late", "open", 0, name, "ro")
                turns.gives([(3,)], "late", "do", 0, LOOK)
                check(turns, name)


def test_reader_from_before_the_first_writer_keeps_it_from_committing(stage: Stage) -> None:
    for name in ("large-delete", "small-delete"):
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", 0, name, "ro")
            turns.do("reader", "cursor", 0)
            turns.gives(None, "writer", "open", 0, name, "rw")
            turns.fails("database is locked", "writer", "do", 0, COUNT)
            turns.gives(None, "reader", "end_of_cursor", 0)
            turns.gives([], "writer", "do", 0, COUNT)
            turns.gives([(1,)], "reader", "do", 0, LOOK)
            check(turns, name)


def test_a_pool_that_had_readers_first_keeps_other_processes_out(stage: Stage) -> None:
    # The writing connection of the pool must get locks of its own, and keep them when a reading
    # one of before is closed.
    for name in NAMES:
        with stage.turns() as turns:
            for slot in range(3):
                turns.gives(None, "pool", "open", slot, name, "ro")
                turns.do("pool", "cursor", slot)
            turns.gives(None, "pool", "open", 3, name, "rw")
            turns.gives([], "pool", "do", 3, "begin immediate")
            turns.gives([], "pool", "do", 3, COUNT)
            turns.gives(None, "other", "open", 0, name, "rw")
            turns.fails("database is locked", "other", "do", 0, "begin immediate")
            for slot in range(3):
                turns.gives(None, "pool", "close", slot)
            turns.fails("database is locked", "other", "do", 0, COUNT)
            turns.gives([], "pool", "do", 3, "commit")
            turns.gives([(1,)], "other", "do", 0, LOOK)
            check(turns, name)


def test_a_pool_in_a_read_transaction_is_not_overtaken(stage: Stage) -> None:
    # With the pages that it has read it goes on to write, where another process had committed.
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "pool", "open", 0, name, "ro")
            turns.do("pool", "cursor", 0)
            turns.gives(None, "pool", "open", 1, name, "rw")
            turns.gives([], "pool", "do", 1, "pragma cache_size = -40000")
            turns.gives([], "pool", "do", 1, "begin")
            turns.do("pool", "do", 1, SUM)
            turns.gives(None, "other", "open", 0, name, "rw")
            turns.do("other", "do", 0, "delete from rows where id % 2 = 0")
            turns.do("other", "do", 0, "insert into rows (noise) select noise || 'y' from rows")
            turns.gives(None, "pool", "close", 0)
            turns.do("pool", "do", 1, "update rows set noise = substr(noise, 1, 900) || id")
            turns.do("pool", "do", 1, "commit")
            turns.do("other", "do", 0, SUM)
            check(turns, name)


def test_the_journal_of_a_killed_writer_is_rolled_back_for_all(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", 0, name, "rw")
            turns.gives([(0,)], "reader", "do", 0, LOOK)
            turns.gives(None, "writer", "open", 0, name, "rw")
            # With so small a cache the pages are in the file before the commit.
            turns.gives([], "writer", "do", 0, "pragma cache_size = 10")
            turns.gives([], "writer", "do", 0, "begin immediate")
            turns.gives([], "writer", "do", 0, COUNT)
            turns.gives([], "writer", "do", 0, "update rows set noise = 'lost' || noise")
            turns.kill("writer")
            turns.gives([(0,)], "reader", "do", 0, LOOK)
            turns.do("reader", "do", 0, SUM)
            check(turns, name)


# --- made-up interleavings ------------------------------------------------------------------------

USUAL: tuple[Step, ...] = (
    *(("first", "do", 0, LOOK), ("first", "end_of_cursor", 0), ("first", "do", 1, LOOK)),
    *(("first", "do", 1, COUNT), ("second", "do", 0, COUNT), ("second", "do", 0, SUM)),
    *(("first", "do", 1, "begin"), ("second", "do", 0, "begin immediate")),
)


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A reader comes first, writers after it; then whatever their processes and others do."""
    name = chance.choice(NAMES)
    steps: list[Step] = [
        ("first", "open", 0, name, "ro"),
        chance.choice([("first", "cursor", 0), ("first", "do", 0, SUM)]),
        ("first", "open", 1, name, chance.choice(["ro", "rw"])),
        ("second", "open", 0, name, "rw"),
    ]
    there = {("first", 0), ("first", 1), ("second", 0)}
    for _ in range(chance.randint(15, 40)):
        kinds = ("usual", "do", "cursor", "open", "close", "killed")
        [kind] = chance.choices(kinds, (8, 12, 4, 2, 1, 1))
        actor, slot = chance.choice(sorted(there))
        if kind == "usual":
            steps.append(chance.choice(USUAL))
        elif kind == "do":
            steps.append((actor, "do", slot, chance.choice(STATEMENTS)))
        elif kind == "cursor":
            steps.append((actor, chance.choice(["cursor", "next", "end_of_cursor"]), slot))
        elif kind == "open":
            actor, slot = chance.choice(["first", "second", "third"]), chance.randrange(3)
            steps.append((actor, "open", slot, name, chance.choice(["ro", "rw", "rw"])))
            there.add((actor, slot))
        elif kind == "close" and len(there) > 1:
            steps.append((actor, "close", slot))
            there.remove((actor, slot))
        elif kind == "killed" and len({actor for actor, _ in there}) > 1:
            steps.append((actor, "killed"))
            there = {one for one in there if one[0] != actor}
    return name, steps


play = ending_with(check)


def test_connections_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(25, interleavings(plan), stage.playing(play))
