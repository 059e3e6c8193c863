"""The same programs go on as on XFS while the daemon is killed, between their steps and in them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from integration.effort import EFFORT, SEED
from integration.programs import (
    test_duckdb,
    test_git,
    test_hub,
    test_lmdb,
    test_loader,
    test_memmap,
    test_rocksdb,
    test_sqlite,
    test_tail,
)
from integration.programs.actors import Nursery
from integration.programs.turns import Stage, Turns

PROGRAMS: dict[str, ModuleType] = {
    module.__name__.rpartition("_")[2]: module
    for module in (
        *(test_sqlite, test_lmdb, test_duckdb, test_rocksdb),
        *(test_memmap, test_tail, test_git, test_hub, test_loader),
    )
}
#: In each play. A daemon that ends within a second of its start is replaced after a pause.
KILLS = 2


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def nursery(program: str) -> Iterator[Nursery]:
    """In place of the module's own: of the program's actors."""
    nursery = Nursery(f"integration.programs.test_{program}")
    yield nursery
    nursery.close()


def test_programs_do_not_notice(make_stage: Callable[..., Stage], program: str, mode: str) -> None:
    module = PROGRAMS[program]
    stage = make_stage(module.fill)
    play: Callable[[Turns, object], None] = module.play
    if program == "memmap":
        play = functools.partial(play, keeps=test_memmap.readers_keep(mode))
    for number in range(EFFORT):
        chance = random.Random(f"{SEED} {number} {program}")
        example = module.plan(chance)
        with stage.turns() as turns:
            for step in chance.sample(range(2, 2 + len(example[1])), KILLS):
                turns.kills[step] = chance.choice(["before", "during", "during"])
            play(turns, example)
            assert len(turns.kills) < KILLS, "it came to none of the steps in question"
