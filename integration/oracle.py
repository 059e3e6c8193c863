"""XFS itself as the judge: an action must come out the same in a copy and in a reflink copy."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from integration.command import run
from integration.trees import tree_state

T = TypeVar("T")


class Oracle:
    """A mounted copy, and beside it what `cp -a --reflink=always` made of the same source."""

    def __init__(self, copy: Path, native: Path) -> None:
        self.copy = copy
        self.native = native

    @classmethod
    def beside(cls, copy: Path, source: Path, native: Path) -> Oracle:
        """Make the plain copy at `native`, a new name on the volume of `source`."""
        run("cp", "-a", "--reflink=always", source, native)
        return cls(copy, native)

    def same(self, action: Callable[[Path], T], *, trees: bool = True) -> T:
        """Do `action(root)` in both, compare what it returns or the errno that it fails with, then
        both whole trees.

        What fails in both with the same errno is raised again, so that a test can go on from there.
        """
        expected, expected_error = _try(action, self.native)
        got, got_error = _try(action, self.copy)
        assert _name(got_error) == _name(expected_error), (
            f"XFS: {expected_error or expected!r}, copy: {got_error or got!r}"
        )
        if trees:
            self.assert_same_trees()
        if got_error is not None:
            raise got_error
        assert got == expected, f"XFS: {expected!r}, copy: {got!r}"
        assert got is not None or expected is None
        return got  # type: ignore[return-value]

    def assert_same_trees(self, *, times: bool = False) -> None:
        """Names, types, modes, owners, sizes, link counts, contents and extended attributes are the
        same.
        """
        got, expected = (tree_state(root, times=times) for root in (self.copy, self.native))
        different = [
            f"{path}:\n  XFS:  {expected.get(path)}\n  copy: {got.get(path)}"
            for path in sorted(got.keys() | expected.keys())
            if got.get(path) != expected.get(path)
        ]
        assert not different, "\n".join(different)


def _try(action: Callable[[Path], T], root: Path) -> tuple[T | None, OSError | None]:
    try:
        return action(root), None
    except OSError as error:
        return None, error


def _name(error: OSError | None) -> str:
    return "success" if error is None else errno.errorcode.get(error.errno or 0, str(error.errno))
