"""DuckDB: one process that writes, or several that read, which it sees to with fcntl(2) locks.

The processes of one file's connections share a lock only when their descriptors are of one file.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from integration.programs import actors
from integration.programs.turns import Stage, Step, Turns, ending_with, explore, interleavings

#: Above and below `share_min`, and one whose last process was killed, with more than 1 MiB in its
#: WAL.
NAMES = ("large", "small", "left")
CONFIG = {"threads": "1"}


def fill(directory: Path) -> None:
    for name, rows in (("large", 60_000), ("small", 10), ("closed", 60_000)):
        with duckdb.connect(str(directory / name), config=CONFIG) as connection:
            connection.execute("create table counter as select 0 as number")
            connection.execute(
                "create table rows as select range as id, md5(range::varchar) as noise"
                " from range(?)",
                [rows],
            )
    with duckdb.connect(str(directory / "closed"), config=CONFIG) as connection:
        connection.execute("set checkpoint_threshold = '1GB'")
        connection.execute("insert into rows select id + 1000000, noise from rows limit 40000")
        shutil.copy(directory / "closed", directory / "left")
        shutil.copy(directory / "closed.wal", directory / "left.wal")
    (directory / "closed").unlink()
    for name in ("large", "left", "left.wal"):
        assert (directory / name).stat().st_size > 1 << 20
    assert (directory / "small").stat().st_size < 1 << 20


class Player(actors.Player):
    """A process with connections in slots."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._connections: dict[int, duckdb.DuckDBPyConnection] = {}

    def open(self, slot: int, name: str, read_only: bool) -> None:
        self.close(slot)
        self._connections[slot] = duckdb.connect(
            str(self.root / name), read_only=read_only, config=CONFIG
        )

    def close(self, slot: int) -> None:
        if slot in self._connections:
            self._connections.pop(slot).close()

    def do(self, slot: int, statement: str) -> list[Any]:
        return self._connections[slot].execute(statement).fetchall()

    def describe(self, error: Exception) -> str:
        return re.sub(r"PID \d+", "PID", super().describe(error))


LOOK = "select number from counter"
SUM = "select count(*), sum(id), min(noise), max(noise) from rows"
COUNT = "update counter set number = number + 1"
STATEMENTS = (
    *(LOOK, SUM, COUNT, COUNT, "begin", "commit", "rollback", "checkpoint"),
    "insert into rows select id + 2000000, noise || 'x' from rows where id % 100 = 0",
    *("update rows set noise = reverse(noise) where id % 7 = 0", "delete from rows where id < 9"),
)


def check(turns: Turns, name: str) -> None:
    """When everybody has gone, another process finds the same in it."""
    for side in (turns.native, turns.copy):
        side.end()
    turns.gives(None, "checker", "open", 0, name, False)
    for statement in (LOOK, SUM, "checkpoint", "select bit_xor(hash(id, noise)) from rows"):
        assert turns.do("checker", "do", 0, statement).kind == "gave"


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(fill)


# --- stories --------------------------------------------------------------------------------------


def test_a_reader_from_before_keeps_writers_of_other_processes_out(stage: Stage) -> None:
    for name in ("large", "small"):
        with stage.turns() as turns:
            turns.gives(None, "reader", "open", 0, name, True)
            turns.gives([(0,)], "reader", "do", 0, LOOK)
            turns.gives(None, "second", "open", 0, name, True)
            turns.fails("Conflicting lock is held", "writer", "open", 0, name, False)
            turns.gives(None, "second", "close", 0)
            turns.fails("Conflicting lock is held", "writer", "open", 0, name, False)
            turns.gives(None, "reader", "close", 0)
            turns.gives(None, "writer", "open", 0, name, False)
            turns.gives([(1,)], "writer", "do", 0, COUNT)
            turns.fails("Conflicting lock is held", "reader", "open", 0, name, True)
            turns.gives(None, "writer", "close", 0)
            turns.gives(None, "reader", "open", 0, name, True)
            turns.gives([(1,)], "reader", "do", 0, LOOK)
            check(turns, name)


def test_what_a_killed_process_has_committed_is_there_for_the_next(stage: Stage) -> None:
    for name in NAMES:
        with stage.turns() as turns:
            turns.gives(None, "writer", "open", 0, name, False)
            turns.do("writer", "do", 0, COUNT)
            turns.gives([], "writer", "do", 0, "begin")
            turns.do("writer", "do", 0, COUNT)
            turns.kill("writer")
            turns.gives(None, "reader", "open", 0, name, True)
            turns.gives([(1,)], "reader", "do", 0, LOOK)
            check(turns, name)


# --- made-up interleavings ------------------------------------------------------------------------


def plan(chance: random.Random) -> tuple[str, list[Step]]:
    """A reader comes first; those who would write wait for its end, or are refused."""
    name = chance.choice(NAMES)
    steps: list[Step] = [("first", "open", 0, name, chance.random() < 0.7)]
    there = {("first", 0)}
    for _ in range(chance.randint(10, 25)):
        kinds = ("do", "open", "pool", "close", "killed")
        [kind] = chance.choices(kinds, (9, 5, 2, 2, 1))
        actor, slot = chance.choice(sorted(there)) if there else ("first", 0)
        if kind == "do":
            steps.append((actor, "do", slot, chance.choice(STATEMENTS)))
        elif kind in ("open", "pool"):
            if kind == "open":
                actor = chance.choice(["first", "second"])
            slot = chance.randrange(2)
            steps.append((actor, "open", slot, name, chance.random() < 0.5))
            there.add((actor, slot))
        elif kind == "close":
            steps.append((actor, "close", slot))
            there.discard((actor, slot))
        else:
            steps.append((actor, "killed"))
            there = {one for one in there if one[0] != actor}
    return name, steps


play = ending_with(check)


def test_processes_take_turns_as_on_xfs(stage: Stage) -> None:
    explore(6, interleavings(plan), stage.playing(play))
