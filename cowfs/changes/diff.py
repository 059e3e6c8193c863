"""What differs between two trees: what was added, removed, changed and renamed.

Where both are based on one template only what either has of its own is looked at. Data is compared
by where it is on the disk, and is not read unless that is asked for.

A directory that was renamed is known by its redirect, a file by the inode number that it keeps, or
by the place of its data. A file that has a counterpart under its own name is compared with that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from cowfs.changes import extents
from cowfs.changes.shown import Node, Shown, children, find

Kind = Literal["added", "removed", "changed", "renamed"]

_READ = 1 << 20  # bytes at once

KINDS: tuple[Kind, ...] = ("added", "removed", "changed", "renamed")

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


@dataclass(frozen=True)
class Change:
    """One difference. Paths are relative to the tree, "." is its root, as `os.fsdecode` gives them.

    old_path: of what was renamed. what: of the entry: type, content, mode, owner, xattr, device,
    links (which other names are the same file), times. size, old_size: st_size of regular files in
    bytes. private: bytes on the disk that the new file shares with no other. origin: who made it,
    where that was asked for: "copy" or "source".
    """

    kind: Kind
    path: str
    type: str
    old_path: str | None = None
    what: tuple[str, ...] = ()
    size: int | None = None
    old_size: int | None = None
    private: int = 0
    origin: str | None = None


@dataclass
class Difference:
    """All of them, by path."""

    changes: list[Change] = field(default_factory=list)

    def count(self, kind: Kind) -> int:
        return sum(change.kind == kind for change in self.changes)

    @property
    def private(self) -> int:
        """Bytes on the disk that what was added and changed has for itself."""
        return sum(change.private for change in self.changes)

    def with_origins(self, ours: Difference) -> Difference:
        """The same, and for each who made it: what the copy has changed is known from `ours`."""
        paths = {path for change in ours.changes for path in (change.path, change.old_path)}
        return Difference(
            [
                replace(change, origin="copy" if change.path in paths else "source")
                for change in self.changes
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """One object: the counts, and the changes."""
        return {
            "different": bool(self.changes),
            **{kind: self.count(kind) for kind in KINDS},
            "private_bytes": self.private,
            "changes": [asdict(change) for change in self.changes],
        }


class _Pair(NamedTuple):
    old: Node
    new: Node
    renamed: bool = False


def compare(
    old: Shown,
    new: Shown,
    *,
    times: bool = False,
    content: bool = False,
    groups: Sequence[Sequence[bytes]] = (),
) -> Difference:
    """What has to be done to `old` to make it `new`. OSError.

    times: mtimes count. content: files whose data is elsewhere on the disk are read. groups: the
    hard links of the template that both are based on, all names of each file.
    """
    return _Comparison(old, new, times=times, content=content, groups=groups).run()


class _Comparison:
    """One comparison: the state that its steps share. Old paths are of the old tree, new ones of
    the new tree."""

    def __init__(
        self,
        old: Shown,
        new: Shown,
        *,
        times: bool,
        content: bool,
        groups: Sequence[Sequence[bytes]],
    ) -> None:
        self._old = old
        self._new = new
        self._times = times
        self._content = content
        self._related = bool(old.base) and old.base == new.base
        self._groups = groups if self._related else ()
        self._removed: dict[bytes, Node] = {}  # without what is in them
        self._added: dict[bytes, Node] = {}
        self._moved: set[bytes] = set()  # old paths that have their counterpart elsewhere
        self._placed: set[bytes] = set()  # new paths, likewise
        self._pairs: list[_Pair] = []
        self._linked: list[_Pair] = []  # files with several names
        self._changes: list[Change] = []
        self._told: set[tuple[int, int]] = set()  # files whose private bytes are counted

    def run(self) -> Difference:
        self._pairs.append(_Pair(self._old.root, self._new.root))
        while self._pairs:
            while self._pairs:
                self._together(self._pairs.pop())
            self._match_directories()
            if not self._pairs:
                self._match_leftovers()
        removed = list(_below(self._old, self._removed.values(), self._moved))
        added = list(_below(self._new, self._added.values(), self._placed))
        self._match_files(removed, added)
        self._changes += [self._gone(node) for node in removed if node.path not in self._moved]
        self._changes += [self._came(node) for node in added if node.path not in self._placed]
        self._compare_links()
        return Difference(sorted(self._changes, key=lambda change: (change.path, change.kind)))

    # ------------------------------------------------------------------- entries of one name

    def _together(self, pair: _Pair) -> None:
        old, new, renamed = pair
        what = self._what(old, new)
        if what or renamed:
            self._changes.append(self._change(pair, what))
        self._note_links(pair)
        if old.stands_in:
            return
        if old.is_directory and new.is_directory:
            self._inside(old, new)
        elif old.is_directory:
            self._removed.update((child.path, child) for child in children(self._old, old))
        elif new.is_directory:
            self._added.update((child.path, child) for child in children(self._new, new))

    def _inside(self, old: Node, new: Node) -> None:
        if self._related and old.lower is not None and old.lower == new.lower:
            names = self._old.private_names(old) | self._new.private_names(new)
        else:
            names = self._old.names(old) | self._new.names(new)
        for name in sorted(names):
            before, after = self._old.child(old, name), self._new.child(new, name)
            if before is None and after is None:
                continue
            if before is None:
                assert after is not None
                self._added[after.path] = after
            elif after is None:
                self._removed[before.path] = before
            elif self._is_another_directory(before, after):
                self._removed[before.path] = before
                self._added[after.path] = after
            elif not self._is_shared(before, after):
                self._pairs.append(_Pair(before, after))

    def _is_shared(self, before: Node, after: Node) -> bool:
        """Whether both are one entry of the template, with nothing private in or below it."""
        private = before.private or after.private
        return self._related and not private and before.lower == after.lower

    def _is_another_directory(self, before: Node, after: Node) -> bool:
        """Whether it shows another directory of the template: that may be elsewhere in the other
        tree."""
        return (
            self._related
            and before.is_directory
            and after.is_directory
            and before.lower != after.lower
        )

    def _what(self, old: Node, new: Node) -> list[str]:
        if old.stands_in:
            return []
        if old.kind != new.kind:
            return ["type"]
        found = []
        before, after = old.st, new.st
        if not self._is_same_data(old, new):
            found.append("content")
        if stat.S_IMODE(before.st_mode) != stat.S_IMODE(after.st_mode):
            found.append("mode")
        if (before.st_uid, before.st_gid) != (after.st_uid, after.st_gid):
            found.append("owner")
        if self._old.xattrs(old) != self._new.xattrs(new):
            found.append("xattr")
        if old.kind in (stat.S_IFCHR, stat.S_IFBLK) and before.st_rdev != after.st_rdev:
            found.append("device")
        if self._times and before.st_mtime_ns != after.st_mtime_ns:
            found.append("times")
        return found

    def _is_same_data(self, old: Node, new: Node) -> bool:
        if old.kind == stat.S_IFLNK:
            return self._old.target(old) == self._new.target(new)
        if old.kind != stat.S_IFREG:
            return True
        if old.st.st_size != new.st.st_size:
            return False
        if os.path.samestat(old.st, new.st) or not new.st.st_size:
            return True
        with contextlib.ExitStack() as opened:
            one = _opened(opened, self._old, old)
            other = _opened(opened, self._new, new)
            size = new.st.st_size
            first = extents.pieces(one, size, sync=self._old.sync)
            second = extents.pieces(other, size, sync=self._new.sync)
            ranges = extents.unlike(first, second)
            if not ranges:
                return True
            read = self._content or extents.placeless(first) or extents.placeless(second)
            return read and extents.same_bytes(one, other, ranges)

    # ------------------------------------------------------------------- what has another name

    def _match_directories(self) -> None:
        """Pair directories that show the same one of the template under different names."""
        if not self._related:
            return
        for new in list(_merged(self._new, self._added.values(), self._placed)):
            old = self._where_it_was(new)
            if old is not None and old.path not in self._moved:
                self._moved.add(old.path)
                self._placed.add(new.path)
                self._pairs.append(_Pair(old, new, renamed=old.path != new.path))

    def _where_it_was(self, new: Node) -> Node | None:
        """What in a removed tree shows the same directory of the template."""
        assert new.lower is not None
        for root in self._removed.values():
            if not root.is_directory or root.lower is None:
                continue
            if new.lower != root.lower and not new.lower.startswith(root.lower + b"/"):
                continue
            node: Node | None = root
            for name in new.lower[len(root.lower) :].split(b"/"):
                if name and node is not None and node.is_directory:
                    node = self._old.child(node, name)
            if node is not None and node.is_directory and node.lower == new.lower:
                return node
        return None

    def _match_leftovers(self) -> None:
        """Directories of one name that have no counterpart elsewhere belong together after all."""
        for path in self._removed.keys() & self._added.keys() - self._moved - self._placed:
            old, new = self._removed[path], self._added[path]
            if old.is_directory and new.is_directory:
                del self._removed[path], self._added[path]
                self._pairs.append(_Pair(old, new))

    def _match_files(self, removed: list[Node], added: list[Node]) -> None:
        """Pair what is no directory: by the inode number, then by the place of the data, or, if
        files are read, the data."""
        ways: list[_Numbers] = [_Numbers(self._old, self._new), _Places(self._old, self._new)]
        if self._content:
            ways.append(_Bytes(self._old, self._new))
        for keys in ways:
            lost: dict[object, list[Node]] = {}
            left = [n for n in added if n.path not in self._placed and not n.is_directory]
            wanted = {keys.hint(node) for node in left}
            for node in removed:
                if node.is_directory or node.path in self._moved or keys.hint(node) not in wanted:
                    continue
                if (key := keys.of_old(node)) is not None:
                    lost.setdefault(key, []).append(node)
            if not lost:
                continue
            for node in left:
                key = keys.of_new(node)
                if key is not None and lost.get(key):
                    self._rename(lost[key].pop(0), node)

    def _rename(self, old: Node, new: Node) -> None:
        self._moved.add(old.path)
        self._placed.add(new.path)
        pair = _Pair(old, new, renamed=old.path != new.path)
        what = self._what(old, new)
        if what or pair.renamed:
            self._changes.append(self._change(pair, what))
        self._note_links(pair)

    # ------------------------------------------------------------------- hard links

    def _note_links(self, pair: _Pair) -> None:
        several = max(pair.old.st.st_nlink, pair.new.st.st_nlink) > 1
        if several and not pair.old.is_directory and pair.old.kind == pair.new.kind:
            self._linked.append(pair)

    def _compare_links(self) -> None:
        """Tell of names that were one file and are not, or the other way round.

        That a file got or lost a name is told by that name.
        """
        seen = {pair.old.path for pair in self._linked}
        for group in self._groups:
            if not seen.isdisjoint(group):
                for path in set(group) - seen:
                    old, new = find(self._old, path), find(self._new, path)
                    if old is not None and new is not None and old.kind == new.kind:
                        self._linked.append(_Pair(old, new))
        self._linked.sort(key=lambda pair: (pair.new.private, pair.new.path))
        for ours, theirs in ((_old_file, _new_file), (_new_file, _old_file)):
            first: dict[tuple[int, int], tuple[int, int]] = {}
            for pair in self._linked:
                if first.setdefault(ours(pair), theirs(pair)) != theirs(pair):
                    self._tell_links(pair)

    def _tell_links(self, pair: _Pair) -> None:
        path = _text(pair.new.path)
        for index, change in enumerate(self._changes):
            if change.path == path and change.kind in ("changed", "renamed"):
                if "links" not in change.what:
                    self._changes[index] = replace(change, what=(*change.what, "links"))
                return
        self._changes.append(self._change(pair, ["links"]))

    # ------------------------------------------------------------------- what is told

    def _change(self, pair: _Pair, what: list[str]) -> Change:
        old, new, renamed = pair
        return Change(
            kind="renamed" if renamed else "changed",
            path=_text(new.path),
            type=_type(new),
            old_path=_text(old.path) if renamed else None,
            what=tuple(what),
            size=_size(new),
            old_size=_size(old),
            private=self._private(new),
        )

    def _gone(self, node: Node) -> Change:
        return Change("removed", _text(node.path), _type(node), old_size=_size(node))

    def _came(self, node: Node) -> Change:
        private = self._private(node)
        return Change("added", _text(node.path), _type(node), size=_size(node), private=private)

    def _private(self, node: Node) -> int:
        file = node.st.st_dev, node.st.st_ino
        if not node.private or node.kind != stat.S_IFREG or file in self._told:
            return 0
        self._told.add(file)
        with contextlib.ExitStack() as opened:
            return extents.private_bytes(_opened(opened, self._new, node), node.st.st_size)


class _Numbers:
    """Files are known by inode numbers: those that a copy keeps for the template's."""

    def __init__(self, old: Shown, new: Shown) -> None:
        self._old = old
        self._new = new

    def hint(self, node: Node) -> object:
        return node.kind

    def of_old(self, node: Node) -> object:
        return node.kind, node.st.st_dev, self._old.ino(node)

    def of_new(self, node: Node) -> object:
        return node.kind, node.st.st_dev, self._new.ino(node)


class _Places(_Numbers):
    """Files are known by where their data is."""

    def hint(self, node: Node) -> object:
        return node.kind, node.st.st_size

    def of_old(self, node: Node) -> object:
        return _place(self._old, node)

    def of_new(self, node: Node) -> object:
        return _place(self._new, node)


class _Bytes(_Places):
    """Files are known by what is in them."""

    def of_old(self, node: Node) -> object:
        return _digest(self._old, node)

    def of_new(self, node: Node) -> object:
        return _digest(self._new, node)


def _digest(tree: Shown, node: Node) -> object:
    if node.kind != stat.S_IFREG or not node.st.st_size:
        return None
    digest = hashlib.blake2b()
    with os.fdopen(tree.open(node), "rb", buffering=0) as file:
        while data := file.read(_READ):
            digest.update(data)
    return node.st.st_size, digest.digest()


def _place(tree: Shown, node: Node) -> object:
    size = node.st.st_size
    if node.kind != stat.S_IFREG or not size:
        return None
    with contextlib.ExitStack() as opened:
        found = extents.pieces(_opened(opened, tree, node), size, sync=tree.sync)
    return (size, *found) if found and not extents.placeless(found) else None


def _merged(tree: Shown, roots: Iterable[Node], done: set[bytes]) -> Iterator[Node]:
    """The directories in added trees that show one of the template, as far as their parents, which
    have no counterpart, are the copy's own."""
    pending = list(roots)
    while pending:
        node = pending.pop()
        if not node.is_directory or node.path in done:
            continue
        if node.lower is not None:
            yield node
        children_of_its_own = (tree.child(node, name) for name in tree.private_names(node))
        pending += [child for child in children_of_its_own if child is not None]


def _below(tree: Shown, roots: Iterable[Node], done: set[bytes]) -> Iterator[Node]:
    """These and all that is in them, by path, but for what has its counterpart."""
    pending = sorted(roots, key=lambda node: node.path, reverse=True)
    while pending:
        node = pending.pop()
        if node.path in done:
            continue
        yield node
        if node.is_directory and not node.stands_in:
            pending += reversed(list(children(tree, node)))


def _opened(stack: contextlib.ExitStack, tree: Shown, node: Node) -> int:
    fd = tree.open(node)
    stack.callback(os.close, fd)
    return fd


def _old_file(pair: _Pair) -> tuple[int, int]:
    return pair.old.st.st_dev, pair.old.st.st_ino


def _new_file(pair: _Pair) -> tuple[int, int]:
    return pair.new.st.st_dev, pair.new.st.st_ino


def _text(path: bytes) -> str:
    return os.fsdecode(path) or "."


def _type(node: Node) -> str:
    return _TYPES[node.kind]


def _size(node: Node) -> int | None:
    return node.st.st_size if node.kind == stat.S_IFREG else None
