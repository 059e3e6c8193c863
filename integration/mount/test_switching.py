"""A copy that FUSE serves today and overlayfs tomorrow: programs of operations, as on XFS.

The programs are those of test_stateful.py, with one more step: the other engine goes on. What
overlayfs does in its own way is told here by name (docs/semantics.md).
effort.py makes more and other programs.
"""

from __future__ import annotations

import functools
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from integration.effort import EFFORT, SEED
from integration.hand import WHATEVER, Hand
from integration.mounts import MountCopy
from integration.overlay.test_stateful import Changes
from integration.pair import Origin, Pair, comparable
from integration.randomops import Operation, make_source
from integration.trees import differences

EXAMPLES = 5 * EFFORT
STEPS = 60

_FUSE = ("engine=fuse", "clone=write")
_OVERLAY = ("engine=overlay",)


class _Native(Hand):
    """XFS, with what overlayfs shows in its own way as something that nobody promises."""

    by_overlayfs = False

    def _seen(self, st: os.stat_result) -> tuple[object, ...]:
        seen = super()._seen(st)
        if self.by_overlayfs and stat.S_ISDIR(st.st_mode):
            return (seen[0], WHATEVER, *seen[2:])  # st_nlink of directories is 1
        return seen


class _Switched(Pair):
    """A pair whose copy is mounted by one engine or the other."""

    def __init__(self, origin: Origin, name: str, native: Path) -> None:
        self.engine = _FUSE
        super().__init__(origin, name, native, snapshots=True)
        self.native: _Native = _Native(native, keeps_snapshots=True)

    def _mount(self) -> None:
        options = (*self._options, *self.engine)
        self._mounts(self._origin.source, self._origin.mountpoint, *options)

    def switch(self) -> None:
        self.engine = _FUSE if self.engine is _OVERLAY else _OVERLAY
        self.remount()

    def remount(self) -> None:
        self.close_all()
        overlay = self.engine is _OVERLAY
        # A descriptor that is older than the first write shows it, as on XFS.
        self.native._keeps_snapshots = not overlay
        self.native.by_overlayfs = overlay
        super().remount()

    def compare_trees(self) -> None:
        native, copy = self.native.tree(), self.copy.tree()
        if self.engine is _OVERLAY:
            native, copy = comparable(native), comparable(copy)
        different = differences(native, copy)
        assert not different, different

    def do(self, operation: Operation) -> None:
        if self.engine is _OVERLAY and operation.name.startswith("map"):
            return  # a mapping that is older than the first write shows the old bytes
        if (
            self.engine is _OVERLAY
            and operation.name == "remove_acl"
            and self._lacks_acl(operation)
        ):
            return  # overlayfs says ENODATA, and XFS that it is gone
        super().do(operation)

    def _lacks_acl(self, operation: Operation) -> bool:
        path, default = operation.args
        try:
            names = os.listxattr(self.native._at(path), follow_symlinks=False)
        except OSError:
            return False
        return not default and "system.posix_acl_access" not in names


class _Switches(Changes):
    pair: _Switched

    @rule()
    def switch(self) -> None:
        self._try(self.pair.switch)

    @rule()
    def switch_again(self) -> None:
        self._try(self.pair.switch)

    def kill_the_daemon(self) -> None:
        """Not here: see test_engine.py."""


@pytest.mark.timeout(900 * EFFORT)
def test_programs_of_operations_do_as_on_xfs_whichever_engine_serves(
    mount_plain: MountCopy, xfs: Path
) -> None:
    source = make_source(xfs / "source")
    _part_links(source)
    origin = Origin(mount_plain, source, ())
    numbers: Iterator[int] = itertools.count()

    def make_pair() -> Pair:
        number = next(numbers)
        return _Switched(origin, f"copy{number}", xfs / f"native{number}")

    machine = functools.partial(_Switches, make_pair)
    run_state_machine_as_test(
        cast("type[_Switches]", seed(f"{SEED} switching")(machine)),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _part_links(source: Path) -> None:
    """Under overlayfs the names of one file of the template part when one of them is changed."""
    for path in sorted(source.rglob("*")):
        st = path.lstat()
        if not path.is_dir() and st.st_nlink > 1:
            held = path.parent.stat()
            other = path.with_name("parted")
            if path.is_symlink():
                other.symlink_to(path.readlink())
            else:
                other.write_bytes(path.read_bytes())
                other.chmod(stat.S_IMODE(st.st_mode))
            other.replace(path)
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)
            os.utime(path.parent, ns=(held.st_atime_ns, held.st_mtime_ns))
