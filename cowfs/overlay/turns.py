"""Taking turns in the event loop's thread: locks, and long work in pieces.

What touches nothing but descriptors goes to a worker thread instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from cowfs.overlay.inodes import Node
    from cowfs.overlay.pieces import Pieces

R = TypeVar("R")


class Turns:
    """Lets others have their turns while one handler of a mount works for long."""

    def __init__(self) -> None:
        # Pieces of work that were done: as long as it grows, what takes long is no hang.
        self.taken = 0

    async def do(self, work: Pieces[R]) -> R:
        """Do all of it, and give what it returns."""
        try:
            while True:
                next(work)
                await self.give()
        except StopIteration as end:
            result: R = end.value
            return result

    async def give(self) -> None:
        """Let others have their turns."""
        self.taken += 1
        await trio.lowlevel.checkpoint()


class taking:  # noqa: N801 -- it reads as what it does
    """Holds a lock: `async with`.

    One that is free is taken without a turn of the event loop, which would cost as much as most of
    what is done under it.
    """

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


def lock_of(node: Node) -> taking:
    """Holds the lock that guards what spans an await in the life of *node*."""
    if node.lock is None:
        node.lock = trio.Lock()
    return taking(node.lock)
