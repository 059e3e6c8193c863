"""Going through a tree of any depth with few descriptors and no path longer than one name.

No link is followed: every directory is opened by its name in its parent (O_NOFOLLOW). For trees
that nobody changes meanwhile.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
_KEPT = 64  # descriptors; the children of a directory are mostly opened soon after it


class Place:
    """A directory of the tree.

    For the caller: `lower`, which directory of the template it is merged with, and `certain`,
    whether that is known.
    """

    __slots__ = ("certain", "lower", "name", "parent")

    def __init__(self, name: bytes, parent: Place | None, lower: bytes | None = None) -> None:
        self.name = name
        self.parent = parent
        self.lower = lower
        self.certain: bool = parent is None or parent.certain

    def path(self, name: bytes = b"") -> bytes:
        """Its path in the tree, or that of an entry in it; b"" for the root."""
        parts = [name] if name else []
        step: Place = self
        while step.parent is not None:
            parts.append(step.name)
            step = step.parent
        return b"/".join(reversed(parts))


class Tree:
    """A tree below a descriptor, which stays the caller's. `close` ends it."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd
        self._kept: OrderedDict[Place, int] = OrderedDict()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()

    def open(self, place: Place) -> int:
        """A descriptor of the directory, good for the next few calls. OSError."""
        fd = self._kept.get(place)
        if fd is not None:
            self._kept.move_to_end(place)
            return fd
        missing = []
        step: Place | None = place
        while step is not None and step not in self._kept:
            missing.append(step)
            step = step.parent
        start = fd = self._root_fd if step is None else self._kept[step]
        for part in reversed(missing):
            try:
                child = os.open(part.name or b".", _DIRECTORY, dir_fd=fd)
            finally:
                if fd != start:
                    os.close(fd)
            fd = child
        self._kept[place] = fd
        if len(self._kept) > _KEPT:
            os.close(self._kept.popitem(last=False)[1])
        return fd

    def entries(self, place: Place) -> list[tuple[bytes, os.stat_result]]:
        """Every entry of a directory with its lstat, by name. OSError."""
        with os.scandir(self.open(place)) as found:
            return sorted(
                (os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in found
            )


def below(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(directory, entry in it) for every step of a path, the last one first."""
    while path:
        directory, _, name = path.rpartition(b"/")
        yield directory, name
        path = directory
