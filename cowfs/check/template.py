"""Examining a template: whether the tree is still what was sealed.

The manifest holds counts and hard links, and no list of entries. So a change is found by the
counts, by times (a template's own ctime is the moment of its sealing, and nothing in it changes
later) and by the immutable flag, and not by comparing bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from cowfs.check.findings import Finding
from cowfs.store import templates
from cowfs.store.templates import Template
from cowfs.system import ondisk, remedy, syscalls
from cowfs.trees.treewalk import Place, Tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
_NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP)
_NAMED = 3  # directories that one finding names

_SEAL_ANEW = (
    "its copies show it as it is: take what you need from them, and discard them; after {gc} the "
    "next mount of {source} seals it anew"
)


class Sealed(NamedTuple):
    """What the examination of a copy needs to know of its template.

    paths_of: every path of everything but directories, by inode number. kinds: S_IFMT of everything
    by inode number. whole: nothing is missing, or there too much.
    """

    paths_of: dict[int, list[bytes]]
    kinds: dict[int, int]
    whole: bool


class _Unflagged(NamedTuple):
    place: Place
    name: bytes
    certain: bool  # neither the file nor the directory was changed since it was sealed


class TemplateCheck:
    """One template. `note` hears of findings, `progress` of every entry that was looked at.

    `gc` is the command that removes what no copy needs.
    """

    def __init__(
        self,
        template: Template,
        template_fd: int,
        *,
        gc: str,
        repair: bool,
        note: Callable[[Finding], None],
        progress: Callable[[int], None],
    ) -> None:
        self._template = template
        self._fd = template_fd
        self._seal_anew = _SEAL_ANEW.format(gc=gc, source=template.source)
        self._sealed_ns = os.fstat(template_fd).st_ctime_ns
        self._repair = repair
        self._note = note
        self._progress = progress
        self._has_flags = True
        self._unflagged: list[_Unflagged] = []
        self._changed: list[str] = []
        self._entries = 1
        self._bytes = 0
        self._paths_of: dict[int, list[bytes]] = {}
        self._kinds: dict[int, int] = {}

    def examine(self) -> Sealed | None:
        """Go through it; None when there is no tree. OSError."""
        try:
            tree_fd = os.open(templates.TREE, _DIRECTORY, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            self._tell(b"", "no-tree", "the template's tree is missing", self._seal_anew)
            return None
        try:
            with Tree(tree_fd) as tree:
                pending = [Place(b"", None)]
                while pending:
                    pending += self._directory(tree, pending.pop())
                counted = self._compare_counts()
                linked = self._compare_links()
                self._flag(tree, counted and linked)
        finally:
            os.close(tree_fd)
        return Sealed(self._paths_of, self._kinds, counted and linked)

    def _directory(self, tree: Tree, place: Place) -> list[Place]:
        found = []
        fd = tree.open(place)
        own = os.fstat(fd)
        touched = own.st_ctime_ns > self._sealed_ns
        if touched:
            self._changed.append(os.fsdecode(place.path() or b"."))
        entries = tree.entries(place)
        prefix = place.path()
        for name, st in entries:
            kind = stat.S_IFMT(st.st_mode)
            self._kinds[st.st_ino] = kind
            if kind == stat.S_IFDIR:
                found.append(Place(name, place))
            else:
                path = prefix + b"/" + name if prefix else name
                paths = self._paths_of.setdefault(st.st_ino, [])
                paths.append(path)
                if kind == stat.S_IFREG:
                    if len(paths) == 1:
                        self._bytes += st.st_size
                        self._regular(fd, place, name, st, touched)
                elif st.st_ctime_ns > self._sealed_ns:
                    self._changed.append(os.fsdecode(path))
                if kind != stat.S_IFREG and ondisk.is_whiteout(st):
                    self._tell(
                        path,
                        "whiteout-in-template",
                        "a whiteout (character device 0:0), which is never sealed",
                        self._seal_anew,
                    )
            if any(map(ondisk.is_internal, ondisk.list_xattrs(ondisk.proc_path(fd, name)))):
                self._tell(
                    path if kind != stat.S_IFDIR else found[-1].path(),
                    "mark-in-template",
                    "has a mark of an upper layer, which is never sealed",
                    self._seal_anew,
                )
        self._entries += len(entries)
        self._progress(len(entries))
        return found

    def _regular(
        self, fd: int, place: Place, name: bytes, st: os.stat_result, touched: bool
    ) -> None:
        flagged = not self._has_flags or self._is_immutable(fd, name)
        written = self._sealed_ns < min(st.st_mtime_ns, st.st_ctime_ns)
        if not flagged:
            self._unflagged.append(_Unflagged(place, name, not (written or touched)))
        elif written:
            self._tell(
                place.path(name), "written", "was written after it had been sealed", self._seal_anew
            )

    def _is_immutable(self, dir_fd: int, name: bytes) -> bool:
        file = os.open(name, _FILE, dir_fd=dir_fd)
        try:
            return bool(syscalls.get_file_flags(file) & syscalls.FS_IMMUTABLE_FL)
        except OSError as error:
            if error.errno not in _NO_FLAGS:
                raise
            self._has_flags = False
            return True
        finally:
            os.close(file)

    def _compare_counts(self) -> bool:
        template = self._template
        differences = [
            f"{found} {what} instead of {sealed}"
            for what, found, sealed in (
                ("entries", self._entries, template.entries),
                ("bytes", self._bytes, template.bytes),
            )
            if found != sealed
        ]
        if differences:
            where = ""
            if self._changed:
                more = len(self._changed) - _NAMED
                where = f"; changed since: {', '.join(sorted(self._changed)[:_NAMED])}" + (
                    f" and {more} more" if more > 0 else ""
                )
            detail = f"is not what was sealed: {' and '.join(differences)}{where}"
            self._tell(b"", "counts", detail, self._seal_anew)
        else:
            for path in self._changed:
                detail = "its owner, mode, attributes or entries were changed since it was sealed"
                self._tell(os.fsencode(path), "changed", detail, self._seal_anew)
        return not differences

    def _compare_links(self) -> bool:
        sealed = {frozenset(group) for group in self._template.hard_links}
        found = {frozenset(paths) for paths in self._paths_of.values() if len(paths) > 1}
        for group in sealed ^ found:
            one, other, *_ = sorted(group)
            told = "in the manifest and not in the tree"
            if group in found:
                told = "in the tree and not in the manifest"
            detail = f"a hard link with {os.fsdecode(other)} {told}"
            self._tell(one, "hard-links", detail, self._seal_anew)
        return sealed == found

    def _flag(self, tree: Tree, whole: bool) -> None:
        """Set the immutable flag where it is missing and the content is certainly the sealed one.

        Changing a file leaves a later mtime, replacing it a later ctime of its directory.
        """
        for place, name, certain in self._unflagged:
            path = place.path(name)
            if not (whole and certain):
                self._tell(
                    path,
                    "not-immutable",
                    "is not immutable, and it or its directory was changed since it was sealed",
                    "compare it with the source; " + self._seal_anew,
                )
                continue
            if self._repair:
                file = os.open(name, _FILE, dir_fd=tree.open(place))
                try:
                    syscalls.set_immutable(file, True)
                finally:
                    os.close(file)
            self._tell(
                path,
                "not-immutable",
                "is not immutable, and otherwise unchanged",
                remedy.command("chattr +i", os.path.join(self._template.tree, os.fsdecode(path))),
                repaired=self._repair,
            )

    def _tell(
        self, path: bytes, problem: str, detail: str, way: str, *, repaired: bool = False
    ) -> None:
        place = os.path.join(self._template.tree, os.fsdecode(path)).rstrip("/")
        self._note(Finding(place, problem, detail, way, repaired=repaired))
