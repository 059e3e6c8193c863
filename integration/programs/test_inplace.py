"""`-o inplace=PATTERN[:PATTERN...]`: large files of such names are the same for all who open them.

What is named so is changed in place while others read it, as the files that cowfs knows itself:
nobody keeps what he opened before the first writer came, and the name keeps its inode number.
"""

from __future__ import annotations

from collections.abc import Callable

from integration.programs import test_memmap
from integration.programs.turns import Stage, explore, interleavings

Player = test_memmap.Player


def test_files_that_an_option_names_are_coherent_for_all(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(test_memmap.fill, "inplace=*.npy:data.*")
    explore(8, interleavings(test_memmap.plan), stage.playing(test_memmap.play_coherent))


def test_what_the_patterns_do_not_name_is_shared_as_before(
    make_stage: Callable[..., Stage], mode: str
) -> None:
    stage = make_stage(test_memmap.fill, "inplace=*.idx:weights")
    with stage.turns() as turns:
        expected = test_memmap.Expected(turns, keeps=test_memmap.readers_keep(mode))
        for name in test_memmap.NAMES:
            expected.take("reader", "map", 0, name, "r")
            expected.take("writer", "write", name, 4096, 1)
            expected.take("reader", "see_all", 0)
            expected.take("reader", "map", 0, name, "r")
            expected.take("reader", "see_all", 0)
        test_memmap.check(turns)
