"""What a copy, a template or a whole store has for itself: what removing it would free.

A template shares its blocks with its source until the source is changed or removed, and from then
on has them alone. FIEMAP says of an extent that it is shared, and not with whom. So extents that
are not shared count; and of the shared ones those that several of the trees have that go together
(a template, its tree for overlayfs, files of the copy that were cloned from it), unless the file of
that path has them in a tree that stays: the source, also where set-source has said that it is now,
or another template of it.

A clone that somebody has made of a file by hand, under another name, is not known: then less is
freed than was said.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowfs.store import copies, sources, templates
from cowfs.system import directories, mountinfo, ondisk, syscalls
from cowfs.system.errors import MountFailure
from cowfs.trees.walk import walk

if TYPE_CHECKING:
    from cowfs.store.directory import StoreDirectory
    from cowfs.store.templates import Template

# How many entries of templates are looked at for one answer: by who wants a list, and by who is to
# remove them anyway.
AT_A_GLANCE = 2_000
AT_LEISURE = 100_000

_SHARED = syscalls.FIEMAP_EXTENT_SHARED

Range = tuple[int, int]  # of bytes on the disk: where it begins and ends


class Weight(NamedTuple):
    """Bytes; `exact` is false when templates were too large to be looked at: then it is more.

    private: those of them that are in files of copies, and in no other file.
    """

    bytes: int
    exact: bool = True
    private: int = 0


class Tree(NamedTuple):
    """A directory below an open one. staying: those that may have the same files, and stay.
    is_upper: it is the upper layer of a copy."""

    dir_fd: int
    path: bytes
    staying: tuple[Tree, ...] = ()
    is_upper: bool = False


class Scales:
    """Weighs what is in one store, as it is used now.

    limit: the entries of templates that are looked at for one answer; None for no limit.
    """

    def __init__(self, store: StoreDirectory, limit: int | None = AT_A_GLANCE) -> None:
        self._store = store
        self._limit = limit
        self._mounts = mountinfo.read()
        self._users = _users(store)
        self._templates = {
            name: template
            for name in directories.names(store.templates_fd)
            if (template := _read(store, name)) is not None
        }

    def needed_by_nobody(self, without: Iterable[str] = ()) -> list[Template]:
        """The templates that no copy is based on, but for these; none when that is not known."""
        if self._users is None:
            return []
        going = set(without)
        needed = {name for name, users in self._users.items() if users.keys() - going}
        return [known for name, known in self._templates.items() if name not in needed]

    def template_of(self, name: str) -> Template | None:
        """The template that this copy alone is based on; None when there is no such thing."""
        template_id = self._template_id(name)
        if template_id is None or self.others(name):
            return None
        return self._templates.get(template_id)

    def others(self, name: str) -> int:
        """How many other copies are based on the template of this one."""
        template_id = self._template_id(name)
        return 0 if template_id is None else len((self._users or {})[template_id]) - 1

    def copy(self, name: str, template: Template | None) -> Weight:
        """A copy, with its template when that is to go, too."""
        return self._weigh([name], [] if template is None else [template])

    def templates(self, together: list[Template]) -> Weight:
        """Templates without any copy."""
        return self._weigh([], together)

    def rubbish(
        self, together: list[Template], names: Iterable[str] = (), leftovers: Iterable[str] = ()
    ) -> Weight:
        """The same, with all that is in the trash, these copies, and these entries of `partial`."""
        partial = (Tree(self._store.partial_fd, os.fsencode(name)) for name in leftovers)
        return self._weigh(names, together, Tree(self._store.trash_fd, b"."), *partial)

    def everything(self) -> Weight:
        """All copies and templates."""
        return self._weigh(copies.names(self._store), list(self._templates.values()))

    def _template_id(self, name: str) -> str | None:
        users = (self._users or {}).items()
        return next((template_id for template_id, names in users if name in names), None)

    def _weigh(self, names: Iterable[str], doomed: list[Template], *others: Tree) -> Weight:
        looked_at, left = [], self._limit
        for template in sorted(doomed, key=lambda template: template.entries):
            if left is None or template.entries <= left:
                looked_at.append(template)
                left = None if left is None else left - template.entries
        try:
            total, private = _exclusive(self._trees(names, looked_at, doomed, others))
        except OSError:  # it goes away meanwhile, or cannot be read
            return Weight(0, exact=False)
        return Weight(total, len(looked_at) == len(doomed), private)

    def _trees(
        self,
        names: Iterable[str],
        looked_at: Iterable[Template],
        doomed: list[Template],
        others: Iterable[Tree],
    ) -> Iterator[Tree]:
        yield from others
        for name in names:
            yield Tree(self._store.copies_fd, os.fsencode(f"{name}/{copies.UPPER}"), is_upper=True)
        for template in looked_at:
            with contextlib.ExitStack() as stack:
                staying = tuple(self._staying(stack, template, doomed))
                yield _tree_of(self._store.templates_fd, template, staying)
            if self._store.has_lowers():
                yield _tree_of(self._store.lowers_fd, template)

    def _staying(
        self, stack: contextlib.ExitStack, template: Template, doomed: list[Template]
    ) -> Iterator[Tree]:
        """The trees that may have the same files, and do not go with this template."""
        places = self._sources(template)
        for source in sorted(places):
            with contextlib.suppress(OSError, sources.Hidden):
                fd = sources.opened(self._store, source, self._mounts)
                stack.callback(os.close, fd)
                yield Tree(fd, b".")
        for other in self._templates.values():
            if other not in doomed and places & self._sources(other):
                yield _tree_of(self._store.templates_fd, other)

    def _sources(self, template: Template) -> set[str]:
        """Where its source was when it was made, and where its copies have it now."""
        return {template.source, *(self._users or {}).get(template.id, {}).values()}


def _tree_of(part_fd: int, template: Template, staying: tuple[Tree, ...] = ()) -> Tree:
    return Tree(part_fd, os.fsencode(f"{template.id}/{templates.TREE}"), staying)


def _users(store: StoreDirectory) -> dict[str, dict[str, str]] | None:
    """The copies of each template that has any, and the source of each; None when that is not known
    for one."""
    users: dict[str, dict[str, str]] = {}
    for name in copies.names(store):
        try:
            record = copies.read(store, name)
            users.setdefault(record.template, {})[name] = record.source
        except (FileNotFoundError, NotADirectoryError):
            continue
        except MountFailure:
            return None
    return users


def _read(store: StoreDirectory, template_id: str) -> Template | None:
    try:
        return templates.read(store, template_id)
    except MountFailure:
        return None


def _exclusive(trees: Iterable[Tree]) -> tuple[int, int]:
    """Bytes that would be free without these trees, and which of them are private. OSError."""
    private = alone = 0
    shared: list[Range] = []
    elsewhere: list[Range] = []
    for tree in trees:
        for path, extents in _files(tree):
            unshared = sum(extent.length for extent in extents if not extent.flags & _SHARED)
            alone += unshared
            private += unshared if tree.is_upper else 0
            found = [_range(extent) for extent in extents if extent.flags & _SHARED]
            shared += found
            if found:
                for other in tree.staying:
                    there = _extents_at(other.dir_fd, other.path + b"/" + path)
                    elsewhere += map(_range, there)
    return alone + _held_here_alone(shared, elsewhere), private


def _range(extent: syscalls.Extent) -> Range:
    return extent.physical, extent.physical + extent.length


def _held_here_alone(ours: list[Range], theirs: list[Range]) -> int:
    """The bytes that at least two of our ranges have, and none of theirs."""
    marks = [mark for begin, end in ours for mark in ((begin, 1, 0), (end, -1, 0))]
    marks += [mark for begin, end in theirs for mark in ((begin, 0, 1), (end, 0, -1))]
    total = here = there = last = 0
    for place, one, other in sorted(marks):
        if here > 1 and not there:  # one of ours is shared with somebody whom we do not know
            total += place - last
        here += one
        there += other
        last = place
    return total


def _files(tree: Tree) -> Iterator[tuple[bytes, list[syscalls.Extent]]]:
    """Path and extents of each regular file, once for all of its names; none: it is not there."""
    try:
        fd = syscalls.open_below(tree.dir_fd, tree.path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        seen: set[int] = set()
        for found in walk(fd):
            if found.entry.is_file(follow_symlinks=False) and found.entry.inode() not in seen:
                seen.add(found.entry.inode())
                yield found.path, _extents_at(found.directory_fd, found.name)
    finally:
        os.close(fd)


def _extents_at(dir_fd: int, path: bytes) -> list[syscalls.Extent]:
    """None for what is no regular file, not there any more, or on another filesystem: it may be a
    user's directory."""
    try:
        place = syscalls.open_below(dir_fd, path, os.O_PATH, syscalls.RESOLVE_NO_XDEV)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            return []
        fd = os.open(ondisk.proc_path(place), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    finally:
        os.close(place)
    try:
        return syscalls.fiemap(fd, sync=False)
    except OSError:
        return []
    finally:
        os.close(fd)
