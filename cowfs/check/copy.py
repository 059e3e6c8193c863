"""Examining the upper layer of a copy against its template, and repairing it.

Reads what rules.py judges entry by entry, and looks after what several entries have to do with
each other: two directories merged with one of the template, one inode number kept by two files,
hard links that were parted. A repair never removes or changes what a user wrote.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cowfs.check import rules
from cowfs.check.findings import Finding
from cowfs.check.rules import DIRECTORY, WHITEOUT, Entry, Problem
from cowfs.check.template import Sealed
from cowfs.system import ondisk, syscalls
from cowfs.trees.treewalk import Place, Tree, below

_OPEN_LOWER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


class _File(NamedTuple):
    """A name of a file of upper/ that keeps an inode number of the template."""

    place: Place
    name: bytes
    own_ino: int


class UpperCheck:
    """One upper layer. `path` is where it is, for findings; the descriptors stay the caller's.

    unfinished: inode numbers of files that the next mount removes (`copies.unfinished`).
    """

    def __init__(
        self,
        path: str,
        upper_fd: int,
        tree_fd: int,
        sealed: Sealed,
        unfinished: set[int],
        *,
        repair: bool,
        note: Callable[[Finding], None],
        progress: Callable[[int], None],
    ) -> None:
        self._path = path
        self._upper_fd = upper_fd
        self._tree_fd = tree_fd
        self._sealed = sealed
        self._unfinished = unfinished
        self._repair = repair
        self._note = note
        self._progress = progress
        self._root = Place(b"", None, b"")
        # By the path of the directory of the template.
        self._merged: dict[bytes, list[Place]] = {b"": [self._root]}
        self._redirected: list[Place] = []
        self._keeping: dict[int, list[_File]] = {}  # by kept inode number

    def examine(self) -> None:
        """Go through it. OSError."""
        with Tree(self._upper_fd) as upper:
            self._judge_root(upper)
            pending = [self._root]
            while pending:
                pending += self._directory(upper, pending.pop())
            self._look_for_double_merges(upper)
            self._look_at_kept_numbers(upper)

    def _judge_root(self, upper: Tree) -> None:
        where = ondisk.proc_path(upper.open(self._root))
        entry = Entry(DIRECTORY, _marks(where), below=DIRECTORY, is_root=True)
        for problem in rules.problems(entry):
            if self._repair and isinstance(problem.fix, bytes):
                ondisk.remove_xattr(where, problem.fix)
            self._tell(self._root, b"", problem, self._repair and problem.fix is not None)

    def _directory(self, upper: Tree, place: Place) -> list[Place]:
        entries = upper.entries(place)
        fd = upper.open(place)
        lower_fd = -1 if place.lower is None else self._open_lower(place.lower)
        try:
            found = [
                child
                for name, st in entries
                if (child := self._entry(place, fd, lower_fd, name, st)) is not None
            ]
        finally:
            if lower_fd >= 0:
                os.close(lower_fd)
        self._progress(len(entries))
        return found

    def _entry(
        self, place: Place, fd: int, lower_fd: int, name: bytes, st: os.stat_result
    ) -> Place | None:
        """Judge one entry; gives it as a place when it is a directory."""
        where = ondisk.proc_path(fd, name)
        kind = WHITEOUT if ondisk.is_whiteout(st) else stat.S_IFMT(st.st_mode)
        marks = _marks(where)
        covered = None if lower_fd < 0 else _kind(lower_fd, name)
        target, lower = self._redirect(place, marks) if kind == DIRECTORY else (None, None)
        kept = rules.ino_of(marks.get(ondisk.INO, b""))
        entry = Entry(
            kind,
            marks,
            below=covered,
            target=target,
            origin=None if kept is None else self._sealed.kinds.get(kept),
            whole=self._sealed.whole and place.certain,
        )
        fixed: set[bytes] = set()
        certain = True
        for problem in rules.problems(entry):
            repaired = self._repair and problem.fix is not None
            if repaired and problem.fix == "remove":
                with _keeping_times(fd):
                    os.unlink(name, dir_fd=fd)
            elif repaired:
                assert isinstance(problem.fix, bytes)
                ondisk.remove_xattr(where, problem.fix)
                fixed.add(problem.fix)
            certain = certain and (repaired or not problem.unmerges)
            self._tell(place, name, problem, repaired)
        if kind != DIRECTORY:
            same = entry.origin == kind and ondisk.INO not in fixed
            if kept is not None and same and st.st_ino not in self._unfinished:
                self._keeping.setdefault(kept, []).append(_File(place, name, st.st_ino))
            return None
        child = Place(name, place)
        child.certain = child.certain and certain
        if marks.get(ondisk.OPAQUE) != b"y":
            if ondisk.REDIRECT not in marks:
                if covered == DIRECTORY:
                    assert place.lower is not None
                    child.lower = place.lower + b"/" + name if place.lower else name
            elif target == DIRECTORY:
                child.lower = lower
                self._redirected.append(child)
        if child.lower is not None:
            self._merged.setdefault(child.lower, []).append(child)
        return child

    def _redirect(self, place: Place, marks: dict[bytes, bytes]) -> tuple[int | None, bytes | None]:
        """What a directory's redirect leads to, and that one's path in the template."""
        if ondisk.REDIRECT not in marks:
            return None, None
        try:
            path = rules.redirect_path(marks[ondisk.REDIRECT], place.lower)
            if path is None:
                return None, None
            fd = syscalls.open_below(self._tree_fd, path, os.O_PATH | os.O_NOFOLLOW)
        except (ValueError, OSError):  # malformed, or not there: checkrules says which
            return None, None
        try:
            return stat.S_IFMT(os.fstat(fd).st_mode), path
        finally:
            os.close(fd)

    def _open_lower(self, path: bytes) -> int:
        return syscalls.open_below(self._tree_fd, path, _OPEN_LOWER)

    # ---------------------------------------------------------------- several entries

    def _look_for_double_merges(self, upper: Tree) -> None:
        for path, places in self._merged.items():
            for place in places[1:]:
                self._double_merge(place, path, os.fsdecode(places[0].path()))
        for place in self._redirected:
            assert place.lower is not None
            if len(self._merged[place.lower]) == 1 and self._shows(upper, place.lower):
                self._double_merge(place, place.lower, "the directory itself")

    def _double_merge(self, place: Place, path: bytes, other: str) -> None:
        problem = Problem(
            "double-merge",
            f"is merged with {os.fsdecode(path)} of the template, and so is {other}",
            "mount the copy read-only, take what you need out of both, and mount the source as "
            "another copy (-o copy=NAME)",
        )
        self._tell(place, b"", problem, False)

    def _shows(self, upper: Tree, path: bytes) -> bool:
        """Whether something of the template shows through at *path*, with nothing of upper/ over
        it, although the copy has it elsewhere."""
        for directory, name in below(path):
            places = self._merged.get(directory)
            if places is not None:
                return _kind(upper.open(places[0]), name) is None
        return False

    def _look_at_kept_numbers(self, upper: Tree) -> None:
        for ino, files in self._keeping.items():
            first = files[0]
            parted = [file for file in files if file.own_ino != first.own_ino]
            for number in {file.own_ino: file for file in parted}.values():
                self._lose_number(
                    upper, number, f"keeps the inode number of {_path(first)}, another file"
                )
            names = self._sealed.paths_of[ino]
            for name in names:
                if self._shows(upper, name):
                    if len(names) > 1:
                        self._join(upper, first, name)
                    else:
                        shown = os.fsdecode(name)
                        self._lose_number(
                            upper, first, f"keeps the inode number of {shown}, which is there too"
                        )

    def _lose_number(self, upper: Tree, file: _File, detail: str) -> None:
        if self._repair:
            where = ondisk.proc_path(upper.open(file.place), file.name)
            ondisk.remove_xattr(where, ondisk.INO)
        remedy = "removing the mark makes them two files"
        problem = Problem("double-ino", detail, remedy, fix=ondisk.INO)
        self._tell(file.place, file.name, problem, self._repair)

    def _join(self, upper: Tree, file: _File, path: bytes) -> None:
        """A name of a group of hard links still shows the template's file: the others have left.

        The rest of the group follows, as copy-up would have had it.
        """
        directory, _, name = path.rpartition(b"/")
        places = self._merged.get(directory)
        repaired = self._repair and places is not None
        if repaired:
            assert places is not None
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(file.name, flags, dir_fd=upper.open(file.place))
            try:
                with _keeping_times(upper.open(places[0])) as target:
                    syscalls.link_fd(fd, target, name)
            finally:
                os.close(fd)
        problem = Problem(
            "parted-links",
            f"was one file with {os.fsdecode(path)}, which still is the template's",
            "linking that name to this file makes them one again"
            if places is not None
            else "mount the copy, touch the directory of that name, unmount it and check again",
        )
        self._tell(file.place, file.name, problem, repaired)

    def _tell(self, place: Place, name: bytes, problem: Problem, repaired: bool) -> None:
        path = os.path.join(self._path, os.fsdecode(place.path(name))).rstrip("/")
        self._note(
            Finding(
                path,
                problem.problem,
                problem.detail,
                problem.remedy,
                harmless=problem.harmless,
                repaired=repaired,
            )
        )


@contextlib.contextmanager
def _keeping_times(fd: int) -> Iterator[int]:
    """A repair of a directory is no change that users made."""
    st = os.fstat(fd)
    yield fd
    os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))


def _path(file: _File) -> str:
    return os.fsdecode(file.place.path(file.name))


def _marks(where: bytes) -> dict[bytes, bytes]:
    return {
        name: ondisk.get_xattr(where, name)
        for name in ondisk.list_xattrs(where)
        if ondisk.is_internal(name)
    }


def _kind(dir_fd: int, name: bytes) -> int | None:
    """S_IFMT of an entry of a directory, None when there is none."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None
