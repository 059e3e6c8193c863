"""How much the tests do whose sequences are made up, and from which seed: one measure for all.

COWFS_EFFORT=N makes each of them go on for N times as long, or do N times as much, with sequences
that no run has had before. The head of a run says the seed; COWFS_RANDOM_SEED=N repeats it. Without
it each does what meets every kind of thing that it makes up, and does the same each time; but for
kills and crashes, which come at other moments in each run (the head says COWFS_CHANCE).
`./test.sh --exhaustive` is all of the tests with COWFS_EFFORT=10.

Without it, too, a test that has parameters and runs in each mode has not each of them in each mode,
but by turns: so that each parameter, and each two of them together, come in one mode or the other.
Whoever names tests, or chooses them with -k, has them all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

EFFORT = int(os.environ.get("COWFS_EFFORT", "1"))

#: For what meets a moment by chance, such as a kill: another one in each run, if nobody says which.
CHANCE = int(
    os.environ.setdefault(
        "COWFS_CHANCE",
        os.environ.get("COWFS_RANDOM_SEED") or str(random.SystemRandom().randrange(1 << 30)),
    )
)

#: The same in every worker: they have their environment from the process that reads this first.
SEED = int(
    os.environ.setdefault(
        "COWFS_RANDOM_SEED", "1" if EFFORT == 1 else str(random.SystemRandom().randrange(1 << 30))
    )
)


def is_its_turn(item: pytest.Item, modes: Sequence[str]) -> bool:
    """Whether a test with these parameters is to run in its mode."""
    parameters = getattr(item, "callspec", None)
    if parameters is None or "mode" not in parameters.params or "volume" in parameters.params:
        return True
    places: list[int] = [
        parameters.indices[_first_name(mark.args[0])] for mark in item.iter_markers("parametrize")
    ]
    return not places or modes[sum(places) % len(modes)] == parameters.params["mode"]


def _first_name(names: str | Sequence[str]) -> str:
    return (names.split(",") if isinstance(names, str) else list(names))[0].strip()
