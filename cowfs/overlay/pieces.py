"""Long work of the event loop's thread, cut into pieces between which others have their turn.

It is written as a generator that yields wherever others may come in: what it has done so far must
mean nothing to them yet, or be right by itself.  So the work knows no event loop; `turns.py` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

R = TypeVar("R")

# Work that gives an R.
Pieces: TypeAlias = "Generator[None, None, R]"


def at_once(work: Pieces[R]) -> R:
    """Do all of it while everybody waits."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        result: R = end.value
        return result
