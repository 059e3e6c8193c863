"""A copy and a reflink copy of its source beside it, changed in the same way and compared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from integration.command import cowfs, run
from integration.hand import Hand
from integration.mounts import MountCopy
from integration.randomops import LARGE, Operation
from integration.trees import Entry, differences, tree_state, with_ctimes
from integration.volumes import remove_tree, unmount

# Operations on a descriptor that only read, and what of them may be as it was at the open.
_READING = {"pread", "read", "direct_read", "lseek", "fstat", "map_read"}
# What says more than one descriptor about a file that a reader has open as it was.
_SHOWS_ATTRIBUTES = {"fchmod", "fchown", "futimens", "fxattr", "link_fd"}


class Origin:
    """A source, its template, and what both looked like before anybody changed a copy."""

    def __init__(self, mounts: MountCopy, source: Path, options: tuple[str, ...]) -> None:
        self.mounts = mounts
        self.source = source
        self.options = (*options, f"share_min={LARGE}", "dev", "suid")
        self.mountpoint = mounts(source, None, *self.options, "copy=first")
        record = mounts.record(self.mountpoint)
        self.store = Path(record["store"])
        self.template = self.store / "templates" / record["template"] / "tree"
        mounts.unmount(self.mountpoint)
        self._before = self._state()

    def _state(self) -> list[dict[str, tuple[Entry, int]]]:
        return [with_ctimes(self.source), with_ctimes(self.template)]

    def check_copy(self, name: str) -> None:
        """`cowfs check` finds nothing wrong with a copy that is not mounted."""
        cowfs("check", "--store", self.store, name)

    def check_unchanged(self) -> None:
        assert self._state() == self._before, "a change reached the source or the template"


class Pair:
    """One copy named *name*, mounted, and a native directory of the same content.

    *snapshots*: a descriptor of a large shared file may show what it opened, docs/semantics.md.
    """

    def __init__(self, origin: Origin, name: str, native: Path, *, snapshots: bool) -> None:
        self._origin = origin
        self._mounts = origin.mounts
        self._options = (*origin.options, f"copy={name}")
        self._on_disk = origin.store / "copies" / name
        run("cp", "-a", "--reflink=always", origin.source, native)
        self._mount()
        self.native = Hand(native, keeps_snapshots=snapshots)
        self.copy = Hand(origin.mountpoint)

    def _mount(self) -> None:
        self._mounts(self._origin.source, self._origin.mountpoint, *self._options)

    def close_all(self) -> None:
        self.native.close_all()
        self.copy.close_all()

    def remount(self) -> None:
        self.close_all()
        self._mounts.unmount(self._origin.mountpoint)
        self._mount()
        self.compare_trees()

    def kill_and_mount(self) -> None:
        """The daemon ends by SIGKILL; whoever has files open closes them first."""
        self.close_all()
        self._mounts.kill(self._origin.mountpoint)
        self._mount()
        self.compare_trees()

    def compare_trees(self) -> None:
        different = differences(self.native.tree(), self.copy.tree())
        assert not different, different

    def check_at_rest(self) -> None:
        """The copy as overlayfs shows it and after another mount, and all that may not change.

        The copy is mounted before and after.
        """
        self.compare_trees()
        self.close_all()
        state = tree_state(self.copy.root)
        self._mounts.unmount(self._origin.mountpoint)
        self._origin.check_copy(self._on_disk.name)
        shown = as_overlayfs_shows_it(self._origin.template, self._on_disk)
        self._mount()
        different = differences(state, tree_state(self.copy.root))
        assert not different, f"after the remount:\n{different}"
        different = differences(comparable(state), comparable(shown))
        assert not different, f"as overlayfs shows it:\n{different}"
        self._origin.check_unchanged()

    def discard(self) -> None:
        """Unmount, and delete both."""
        self.close_all()
        self._mounts.unmount(self._origin.mountpoint)
        remove_tree(self._on_disk)
        remove_tree(self.native.root)

    def do(self, operation: Operation) -> None:
        """Do it on both sides; AssertionError when something else comes of it."""
        name, args = operation.name, operation.args
        slot = args[0] if args and isinstance(args[0], int) else None
        loose = slot in self.native.snapshots
        if name in ("map_read", "map_store"):
            offset = args[1]
            if offset + (100 if name == "map_read" else 0) >= min(
                self.native.mapped_bytes(args[0]), self.copy.mapped_bytes(args[0])
            ):
                return
            if loose:
                return  # of one of two files; which one, the descriptor says no more
        if name == "copy_range" and {args[0], args[1]} & self.native.snapshots.keys():
            return
        if name in ("flock", "range_lock") and loose:
            return  # does not meet those of later descriptors
        expected, got = self.native.do(operation), self.copy.do(operation)
        if name == "stat" or (loose and name in _READING | _SHOWS_ATTRIBUTES):
            expected, got = self._tolerant(operation, expected, got)
        elif isinstance(expected, tuple) and isinstance(got, tuple) and self.native.snapshots:
            expected, got = self._without_slots(expected), self._without_slots(got)
        assert got == expected, f"{operation}\n  XFS:  {expected}\n  copy: {got}"

    def _tolerant(
        self, operation: Operation, expected: object, got: object
    ) -> tuple[object, object]:
        """A descriptor of a shared large file may show the bytes and attributes of its open."""
        if operation.name == "stat":
            return self._without_slots(expected), self._without_slots(got)
        if isinstance(got, str) or isinstance(expected, str):
            return expected, got  # an error is an error
        if operation.name in _SHOWS_ATTRIBUTES or operation.name == "fstat":
            return None, None
        is_relative = operation.name == "lseek" and operation.args[-1] == os.SEEK_CUR
        if operation.name == "read" or is_relative:
            return None, None  # with the bytes that are left the positions run apart
        if got == self.native.snapshot_result(operation):
            return got, got
        return expected, got

    def _without_slots(self, result: object) -> object:
        """A stat without the descriptors whose file may have been replaced."""
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], list):
            return result[0], [slot for slot in result[1] if slot not in self.native.snapshots]
        if isinstance(result, tuple):
            return tuple(self._without_slots(part) for part in result)
        return result


def drop_caches() -> None:
    """Let the kernel forget names and attributes that nobody uses, on every mount."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def mount_overlayfs(template: Path, copy: Path, at: Path, *options: str) -> None:
    """Mount the kernel's overlay over a template and the upper directory of a copy."""
    layers = f"lowerdir={template},upperdir={copy}/upper,workdir={copy}/work"
    command = ["mount", "-t", "overlay", "overlay", "-o", ",".join((*options, layers)), str(at)]
    subprocess.run(command, check=True)


def as_overlayfs_shows_it(template: Path, copy: Path) -> dict[str, Entry]:
    at = copy / "shown"
    at.mkdir()
    mount_overlayfs(template, copy, at, "ro")
    try:
        return tree_state(at)
    finally:
        unmount(at)
        at.rmdir()


def comparable(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Without what overlayfs cannot express: docs/on-disk-format.md."""
    return {
        path: entry._replace(
            nlink=0 if entry.mode & 0o170000 == 0o040000 else entry.nlink,
            xattrs=tuple(x for x in entry.xattrs if not x[0].startswith("trusted.cowfs.")),
        )
        for path, entry in tree.items()
    }
