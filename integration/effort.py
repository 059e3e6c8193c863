"""How much the tests do whose sequences are made up, and from which seed: one measure for all.

COWFS_EFFORT=N makes each of them go on for N times as long, or do N times as much, with sequences
that no run has had before. The head of a run says the seed; COWFS_RANDOM_SEED=N repeats it. Without
it each does what meets every kind of thing that it makes up, and does the same each time; but for
kills and crashes, which come at other moments in each run (the head says COWFS_CHANCE).
`./test.sh --exhaustive` is all of the tests with COWFS_EFFORT=10.
"""

from __future__ import annotations

import os
import random

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
