"""Performs cases on plain XFS and in mounted copies, and compares."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from integration.conformance.cases import SAME, Case
from integration.conformance.furniture import LINKED
from integration.conformance.overlayfs import DIFFERENT, ENDLESS
from integration.conformance.processes import act_as, apart
from integration.trees import Entry, tree_state

#: Where the objects of a case are when it begins: in the template only; in the upper directory, as
#: clones; below a directory of the template that was renamed; made in the mount.
PLACES = ("shared", "private", "moved", "new")


_TOLD = 5  # differences that a failure shows
_LENGTH = 1000  # characters of a result


Tree = dict[str, Entry]
Show = Callable[[Tree], Tree]


def as_it_is(tree: Tree) -> Tree:
    """All of it is compared."""
    return tree


class Outcome(NamedTuple):
    """What a case gave, and the tree that it left."""

    result: object
    tree: Tree


class Stage:
    """A source with a directory for each case in each place, and the same on plain XFS."""

    def __init__(self, root: Path, cases: Iterable[Case]) -> None:
        self.source = root / "source"
        self._native = root / "native"
        self._cases = {case.name: case for case in cases}.values()
        self._outcomes: dict[str, Outcome] = {}
        self._failed: set[str] = set()  # cases, in the present copy
        self.source.mkdir()
        for place in PLACES[:-1]:
            self._prepare(self.source / place)
        self._prepare(self._native)

    def settle(self, copy: Path) -> None:
        """Bring the directories of a new copy into the places that they are named after."""
        self._failed.clear()
        for directory, directories, files in os.walk(copy / "private"):
            for name in (".", *directories, *files):
                path = os.path.join(directory, name)
                st = os.lstat(path)
                os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)
        (copy / "moved").rename(copy / "old")
        (copy / "moved").mkdir()
        for case in self._cases:
            (copy / "old" / case.name).rename(copy / "moved" / case.name)
        self._prepare(copy / "new")

    def check(self, case: Case, copy: Path, places: Iterable[str] = PLACES) -> None:
        """Do a case on XFS, once in the life of the stage, and in every place of a copy."""
        outcome = self._outcome(case)
        expected = outcome._replace(result=outcome.result if case.copy is SAME else case.copy)
        found = {place: _complaint(case, expected, copy / place / case.name) for place in places}
        self._assert_nothing(case, found)

    def check_overlayfs(self, case: Case, copy: Path) -> None:
        """The same in a copy that overlayfs serves, with what is known of that."""
        expected = self._outcome(case)
        endless, different = ENDLESS.get(case.name, ()), DIFFERENT.get(case.name, ())
        found = {
            place: _complaint(case, expected, copy / place / case.name, by_overlayfs)
            for place in PLACES
            if place not in endless
        }
        for place in different:
            assert found.pop(place), f"{place}: as on XFS, which it is not said to be"
        self._assert_nothing(case, found)

    def _assert_nothing(self, case: Case, found: dict[str, str]) -> None:
        try:
            _assert_nothing(found)
        except AssertionError:
            self._failed.add(case.name)
            raise

    def _outcome(self, case: Case) -> Outcome:
        if case.name not in self._outcomes:
            try:
                self._outcomes[case.name] = _perform(case, self._native / case.name)
            except AssertionError as error:
                raise AssertionError(f"XFS itself: {error}") from None
        return self._outcomes[case.name]

    def check_trees(
        self, copy: Path, places: Iterable[str] = PLACES, *, show: Show = as_it_is
    ) -> None:
        """What every case left behind in a copy, but those that failed, is as it is on XFS."""
        found = {
            f"{name}, {place}": _differences(show(outcome.tree), show(_tree(copy / place / name)))
            for name, outcome in self._outcomes.items()
            if name not in self._failed
            for place in places
            if show is as_it_is or place not in {**DIFFERENT, **ENDLESS}.get(name, ())
        }
        _assert_nothing(found)

    def _prepare(self, directory: Path) -> None:
        def fill() -> None:
            os.umask(0o022)
            directory.mkdir()
            for case in self._cases:
                own = directory / case.name
                own.mkdir()
                os.chdir(own)
                case.prepare()

        apart(fill)


def by_overlayfs(tree: Tree) -> Tree:
    """Without what overlayfs has in its own way in every tree: st_nlink of directories, and whether
    the names that a file of the template had are one file still."""
    return {
        path: entry._replace(nlink=0, links=())
        if stat.S_ISDIR(entry.mode) or path in LINKED
        else entry
        for path, entry in tree.items()
    }


def _perform(case: Case, directory: Path) -> Outcome:
    def act() -> object:
        os.chdir(directory)
        os.umask(0o022)
        return case.act()

    try:
        result = apart(act) if case.user is None else act_as(case.user, act)
    except OSError as error:
        raise AssertionError(error.strerror) from None  # what shall fail, the case says
    return Outcome(result, _tree(directory))


def _complaint(case: Case, expected: Outcome, directory: Path, show: Show = as_it_is) -> str:
    try:
        got = _perform(case, directory)
    except AssertionError as error:
        return str(error)
    if got.result != expected.result:
        return f"gives {str(got.result)[:_LENGTH]}\nnot   {str(expected.result)[:_LENGTH]}"
    return _differences(show(expected.tree), show(got.tree))


def _tree(directory: Path) -> dict[str, Entry]:
    return tree_state(directory, times=False)


def _differences(expected: dict[str, Entry], got: dict[str, Entry]) -> str:
    different = [
        f"{path}:\n  XFS:  {expected.get(path)}\n  copy: {got.get(path)}"
        for path in sorted(expected.keys() | got.keys())
        if expected.get(path) != got.get(path)
    ]
    return "\n".join(different[:_TOLD])


def _assert_nothing(found: dict[str, str]) -> None:
    told = [f"{where}: {complaint}" for where, complaint in found.items() if complaint]
    assert not told, "\n".join(told)
