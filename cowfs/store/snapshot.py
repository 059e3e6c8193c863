"""A copy of a copy: an upper layer that is a clone of another one's, over the same template.

The other copy may be mounted, by whatever engine and version, and written to all the time. Nothing
of it is stopped or asked: its upper layer is cloned, looked at again, and what has changed by then
is cloned again (trees/mirror.py), until all of it is as it was at one moment. Files and directories
in which something goes on are looked at by themselves, so that this takes a moment in which nothing
happens to *these*, as short as it takes to clone them. One file that is written to without a pause
needs none: its clone has a moment of its own, and all else was as it is then.

What lies in work/ is no part of the copy: names of hard links that are not finished are left out,
as the next daemon would take them back (copies.recover). Files that have no name any more are left
out, too.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cowfs.store import copies, runtime
from cowfs.system import writeback
from cowfs.system.errors import MountFailure
from cowfs.trees.mirror import Looker, Mirror, State, differing, is_fine, only_data
from cowfs.trees.walk import walk

if TYPE_CHECKING:
    from cowfs.store.directory import StoreDirectory
    from cowfs.trees.cloning import Progress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# How long it is tried to find a moment, seconds.
PATIENCE = 20.0
# Looks at the places where something goes on, before all of it is looked at again.
_TRIES = 20
# Between two of them, seconds; longer each time.
_PAUSE = 0.001

Warn = Callable[[str], None]


def make_upper(
    store: StoreDirectory,
    name: str,
    target_copy_fd: int,
    *,
    warn: Warn,
    progress: Progress | None = None,
    patience: float = PATIENCE,
) -> None:
    """Give a copy that is being made the upper layer that this one has at one moment. MountFailure:
    there is none, as names in it are changed all the time. Gone. OSError.

    `warn` hears of files that are written to all the time, whose moments differ.
    """
    with opened(store, name) as copy_fd:
        os.mkdir(copies.UPPER, 0o700, dir_fd=target_copy_fd)
        target_fd = os.open(copies.UPPER, _DIRECTORY, dir_fd=target_copy_fd)
        try:
            upper_fd = os.open(copies.UPPER, _DIRECTORY, dir_fd=copy_fd)
        except FileNotFoundError:  # it is being removed
            os.close(target_fd)
            raise Gone from None
        try:
            _write_out(store, name, upper_fd)
            looker = Looker(upper_fd, fine=is_fine(target_fd))
            _Taking(store, name, copy_fd, looker).take(
                upper_fd, target_fd, warn, progress, time.monotonic() + patience
            )
        finally:
            os.close(upper_fd)
            os.close(target_fd)


@contextlib.contextmanager
def opened(store: StoreDirectory, name: str) -> Iterator[int]:
    """The directory of a copy. Gone, at the end as well."""
    try:
        copy_fd = os.open(name, _DIRECTORY, dir_fd=store.copies_fd)
    except (FileNotFoundError, NotADirectoryError):
        raise Gone from None
    try:
        yield copy_fd
        try:
            there = os.stat(name, dir_fd=store.copies_fd, follow_symlinks=False)
        except FileNotFoundError:
            raise Gone from None
        if not os.path.samestat(os.fstat(copy_fd), there):
            raise Gone
    finally:
        os.close(copy_fd)


class Gone(Exception):  # noqa: N818 -- says what the copy is
    """There is no such copy, or another one by now."""


class _Taking:
    """One try to find a moment."""

    def __init__(self, store: StoreDirectory, name: str, copy_fd: int, looker: Looker) -> None:
        self._store = store
        self._name = name
        self._copy_fd = copy_fd
        self._looker = looker

    def take(
        self,
        upper_fd: int,
        target_fd: int,
        warn: Warn,
        progress: Progress | None,
        deadline: float,
    ) -> None:
        """See `make_upper`."""
        before = self._look()
        if progress is not None:
            progress.begin(sum(len(listing.entries) for listing in before.values()), 0)
        advance = (lambda _: None) if progress is None else progress.advance
        mirror = Mirror(upper_fd, target_fd, self._store.trash_fd, advance)
        while True:
            mirror.follow(before)
            after = self._look()
            if before == after and mirror.shows(before):
                return
            busy = set(differing(before, after))
            settled = self._settle(mirror, after, busy)
            if settled is not None:
                now = self._look()
                if all(now.get(path) == settled[path] for path in settled.keys() - busy):
                    return  # all else was as it was before and after
                after = now
            if time.monotonic() >= deadline:
                self._give_up(mirror, after, warn)
                return
            before = after

    def _settle(self, mirror: Mirror, state: State, busy: set[bytes]) -> State | None:
        """Have the mirror show what these directories were at one moment; None: there was none."""
        before = self._again(state, busy)
        for turn in range(_TRIES):
            mirror.follow(before)
            after = self._again(before, busy)
            if mirror.shows(before):
                if before == after:
                    return before
                written = only_data(before, after)
                if written is not None and len(written) == 1:
                    return before
            before = after
            time.sleep(_PAUSE * turn)
        return None

    def _give_up(self, mirror: Mirror, state: State, warn: Warn) -> None:
        """Nothing but data may be of another moment, and that is said. MountFailure."""
        for _ in range(_TRIES):
            mirror.follow(state)
            after = self._look()
            written = only_data(state, after)
            if written is not None and mirror.shows(state):
                if not written:
                    return
                names = ", ".join(os.fsdecode(path) for path in sorted(written)[:3])
                more = f" and {len(written) - 3} more" if len(written) > 3 else ""
                warn(
                    f"{names}{more} of the copy {self._name} are written to all the time: each is "
                    "as it was at one moment, and not all at the same one"
                )
                return
            state, before = after, state
        path = min(differing(before, state), default=b"")
        raise MountFailure(
            f"the copy {self._name} keeps changing (in {os.fsdecode(path) or 'its top directory'}):"
            " stop what makes and removes files there for a moment, and try again"
        )

    def _look(self) -> State:
        self._note_unfinished()
        return self._looker.look()

    def _again(self, before: State, busy: set[bytes]) -> State:
        self._note_unfinished()
        return self._looker.again(before, busy)

    def _note_unfinished(self) -> None:
        try:
            work_fd = os.open(copies.WORK, _DIRECTORY, dir_fd=self._copy_fd)
        except FileNotFoundError:
            return
        try:
            self._looker.passed_over = copies.unfinished(work_fd)
        except FileNotFoundError:  # one was just finished
            self._looker.passed_over = set()
        finally:
            os.close(work_fd)


def _write_out(store: StoreDirectory, name: str, upper_fd: int) -> None:
    """Bring what programs have stored through mappings to the files, where the pages of the mount
    are its own: with FUSE, where it passes nothing through. OSError."""
    for record in runtime.all():
        is_its = record.copy == name and _is_at(store, record.store)
        if not is_its or record.engine != "fuse" or record.passthrough:
            continue
        with contextlib.ExitStack() as stack:
            try:
                root = os.open(record.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, root)
                device = os.fstat(root).st_dev
            except OSError:  # in another namespace, or without its daemon: nobody writes through it
                continue
            if f"{os.major(device)}:{os.minor(device)}" != record.device:
                continue
            for found in walk(upper_fd):
                if found.entry.is_file(follow_symlinks=False):
                    writeback.write_out_below(root, found.path)


def _is_at(store: StoreDirectory, path: str) -> bool:
    try:
        st = os.stat(path)
    except OSError:
        return False
    return (st.st_dev, st.st_ino) == store.identity
