"""Going through a tree of any depth with few descriptors, and opening each directory but once.

A directory is known by its name and its parent, and opened from the nearest one above it that is
open still: the way to it costs the same at every depth. No link is followed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from cowfs.system import directories, syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_KEPT = 64  # descriptors; the children of a directory are mostly opened soon after it


class Step(Protocol):
    """A directory on the way down; the root has no parent, and no name."""

    @property
    def name(self) -> bytes | str: ...

    @property
    def parent(self) -> Step | None: ...


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
    """A tree below a descriptor, which stays the caller's. The end of the context closes the rest.

    `resolve` adds to how openat2(2) is told to go.
    """

    def __init__(self, root_fd: int, resolve: int = 0) -> None:
        self._root_fd = root_fd
        self._resolve = resolve
        self._kept: OrderedDict[Step, int] = OrderedDict()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()

    def open(self, place: Step) -> int:
        """A descriptor of the directory, good for the next few calls. OSError."""
        if place.parent is None:
            return self._root_fd
        fd = self._kept.get(place)
        if fd is None:
            fd = self._kept[place] = self._open(place)
            if len(self._kept) > _KEPT:
                os.close(self._kept.popitem(last=False)[1])
        else:
            self._kept.move_to_end(place)
        return fd

    def open_for_caller(self, place: Step) -> int:
        """Another one, for the caller to close. OSError."""
        if place.parent is not None:
            self.open(place.parent)  # those beside it will be wanted as well
        return self._open(place)

    def _open(self, place: Step) -> int:
        names = []
        step = place
        while step.parent is not None and (step is place or step not in self._kept):
            names.append(os.fsencode(step.name))
            step = step.parent
        start = self._root_fd
        if step.parent is not None:
            start = self._kept[step]
            self._kept.move_to_end(step)
        return syscalls.open_below(start, b"/".join(reversed(names)), _DIRECTORY, self._resolve)

    def entries(self, place: Place) -> list[tuple[bytes, os.stat_result]]:
        """Every entry of a directory with its lstat, by name. OSError."""
        with directories.entries(self.open(place)) as found:
            return sorted(
                (os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in found
            )


def below(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(directory, entry in it) for every step of a path, the last one first."""
    while path:
        directory, _, name = path.rpartition(b"/")
        yield directory, name
        path = directory
