"""The life of a volume: its copy, the one mount of that, and its end.

The copy of a volume is a kept one, also for a pod's own volume: after a reboot the kubelet starts
the same pod again and publishes the same id, and what the pod had written is there. That it goes
with the pod is the record's affair.

It is mounted by `cowfs mount` in a process of its own: sealing forks, and needs signals, which
threads of a server have not. That process has the lock of our turn with the volume (records.py).

A volume that ends is marked so first. Then a thread unmounts it and removes its copy, and goes on
trying while somebody still holds it: a container that is just taken apart, mostly. Whoever asked
waits for that for a while and not longer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from grpc import StatusCode

from cowfs.csi.calls import Refused, again, not_found, precondition
from cowfs.csi.records import Records, Turn, Volume, key_of
from cowfs.mount import options, unmount
from cowfs.mount.mountpoint import Mountpoint
from cowfs.store import runtime
from cowfs.store.directory import STORE_NAME, volume_of
from cowfs.store.store import Store
from cowfs.system import mountinfo, syscalls
from cowfs.system.errors import CowfsError

log = logging.getLogger(__name__)

_COWFS = (sys.executable, "-I", "-m", "cowfs")

# What `cowfs mount` says when it fails, and the code that this is. Whatever else: INTERNAL.
_MEANINGS = (
    ("no space left on the volume", StatusCode.RESOURCE_EXHAUSTED),
    ("is in use: ", StatusCode.ABORTED),
    ("already a cowfs mount", StatusCode.ABORTED),
    ("does not exist", StatusCode.NOT_FOUND),
    ("reflink", StatusCode.FAILED_PRECONDITION),
    ("FICLONE", StatusCode.FAILED_PRECONDITION),
    ("keeps changing", StatusCode.FAILED_PRECONDITION),
    ("on different volumes", StatusCode.FAILED_PRECONDITION),
    ("no permission to use the store", StatusCode.FAILED_PRECONDITION),
)

# How long whoever ends a volume waits until it is put away: seconds.
_END_SECONDS = 20.0
# Between two tries to put a volume away, growing from the first to the second: seconds.
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# How long what a copy holds is told without a look: seconds.
_KEPT_SECONDS = 60.0


class Usage(NamedTuple):
    """Bytes: what the copy has written, and what is free on its disk."""

    used: int
    free: int


class Queue:
    """Lets a number of callers in at a time, in the order in which they came."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Wait for one's turn."""
        with self._lock:
            waiter = None
            if self._free and not self._waiting:
                self._free -= 1
            else:
                waiter = threading.Event()
                self._waiting.append(waiter)
        if waiter is not None:
            waiter.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()  # the place is handed on
                else:
                    self._free += 1


class Volumes:
    """Makes mounts of volumes, and ends volumes."""

    def __init__(self, records: Records, *, at_once: int) -> None:
        self._records = records
        self._queue = Queue(at_once)
        self._used: dict[str, tuple[float, int]] = {}
        self._ending: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def place(self) -> contextlib.AbstractContextManager[None]:
        """A place among those who make mounts at the same time. Taken before a turn, which nobody
        has while he waits."""
        return self._queue.place()

    def mount(self, turn: Turn, volume: Volume) -> str:
        """See that the volume's copy is mounted and served; where. Refused, OSError."""
        path = self._records.mountpoint(turn.key)
        with contextlib.suppress(FileExistsError):
            os.mkdir(turn.key, 0o700, dir_fd=self._records.mounts_fd)
        if (mount := mountinfo.mounted_at(path)) is not None:
            if _is_served(mount):
                return path
            log.warning("nobody serves %s any more: it is mounted anew", path)
            for other in mountinfo.read():
                if other.device == mount.device:
                    with contextlib.suppress(OSError):
                        Mountpoint.of(other).unmount(syscalls.MNT_DETACH)
        wanted = [f"copy={volume.copy}", f"store={volume.store}"]
        wanted += ["ro"] if volume.read_only else []
        done = subprocess.run(
            [*_COWFS, "mount", "-o", options.join(wanted), "--", volume.path, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            pass_fds=[turn.lock_fd],
            start_new_session=True,
        )
        lines = [line.removeprefix("cowfs: ") for line in done.stderr.splitlines()]
        for line in lines:
            log.info("mount of %s: %s", volume.copy, line)
        if done.returncode:
            raise _refused(lines, done.returncode)
        self._check_source(volume)
        return path

    def _check_source(self, volume: Volume) -> None:
        """Refused if the copy is not of the directory that was allowed: somebody has put a link in
        the way between our look and that of `cowfs mount`."""
        store = Store.open(volume.store)
        with contextlib.closing(store):
            record = store.read(volume.copy)
        if record is None or record.source != volume.path:
            raise precondition(f"source {volume.source} was exchanged just now: {volume.path}")

    def unmount(self, key: str) -> bool:
        """Unmount the volume's own mount; whether nobody has it any more. OSError.

        Its targets are unbound already. Whatever holds it longer than it should loses sight of it.
        """
        path = self._records.mountpoint(key)
        while (mount := mountinfo.mounted_at(path)) is not None:
            try:
                taken = unmount.unmount(path)
                if taken.elsewhere is not None:
                    log.warning("%s is mounted elsewhere yet: %s", path, taken.elsewhere)
                    return False
            except CowfsError as error:
                log.warning("%s", error)
                if mountinfo.mounted_at(path) == mount:
                    self._detach(path)
                return False
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(key, dir_fd=self._records.mounts_fd)
        return True

    def go_on_ending(self, key: str) -> threading.Event:
        """Have one put away that is marked as ending; the event tells when it is.

        Each has a thread, so that none waits for one that is held.
        """
        with self._lock:
            event = self._ending.get(key)
            if event is None:
                event = self._ending[key] = threading.Event()
                threading.Thread(
                    target=self._put_away_at_last, args=(key, event), name=key, daemon=True
                ).start()
        return event

    @staticmethod
    def wait(event: threading.Event) -> bool:
        """Until a volume is put away, or for a while; whether it is."""
        return event.wait(_END_SECONDS)

    def put_away(self, turn: Turn, volume: Volume) -> bool:
        """Whether everything of it is gone, and with it the record. OSError."""
        if not self.unmount(turn.key):
            return False
        if not _remove_copy(volume):
            return False
        self._used.pop(turn.key, None)
        turn.forget()
        return True

    def usage(self, key: str, volume: Volume) -> Usage:
        """What the volume holds, looked up once in a while. Refused, OSError."""
        kept = self._used.get(key)
        if kept is None or time.monotonic() - kept[0] > _KEPT_SECONDS:
            kept = time.monotonic(), _private_bytes(volume)
            self._used[key] = kept
        return Usage(kept[1], free_bytes(volume.store))

    def _detach(self, path: str) -> None:
        while mountinfo.mounted_at(path) is not None:
            syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)

    def _put_away_at_last(self, key: str, event: threading.Event) -> None:
        pause = _PAUSE
        while not self._is_put_away(key):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        with self._lock:
            del self._ending[key]
        event.set()

    def _is_put_away(self, key: str) -> bool:
        try:
            with self._records.turn(key) as turn:
                volume = turn.read()
                return volume is None or not volume.ending or self.put_away(turn, volume)
        except (Refused, CowfsError, OSError) as error:
            log.warning("volume %s is put away later: %s", key, error)
        except Exception:
            log.exception("volume %s is put away later", key)
        return False


def new(volume_id: str, source: str, path: str, store: str | None) -> Volume:
    """A volume of which nothing is there yet, as a pod's own."""
    return Volume(
        id=volume_id,
        source=source,
        path=path,
        store=store or os.path.join(volume_of(path), STORE_NAME),
        copy=f"csi-{key_of(volume_id)}",
        inline=True,
    )


def free_bytes(path: str) -> int:
    """What is free on the volume of a directory, or of where it would be."""
    st = os.statvfs(volume_of(path))
    return st.f_bavail * st.f_frsize


def _is_served(mount: mountinfo.Mount) -> bool:
    if not mount.is_cowfs:
        return False
    if mount.template:  # the kernel's overlayfs needs nobody
        return True
    record = runtime.of(mount)
    return record is not None and any(map(runtime.living, (record.daemon_pid, record.keeper_pid)))


def _private_bytes(volume: Volume) -> int:
    try:
        store = Store.open(volume.store)
    except CowfsError as error:
        raise not_found(str(error)) from None
    with contextlib.closing(store):
        from cowfs.store import copies

        return copies.private_bytes(store, volume.copy)


def _remove_copy(volume: Volume) -> bool:
    """Whether there is none (any more)."""
    if not os.path.lexists(volume.store):
        return True
    store = Store.open(volume.store)
    with contextlib.closing(store):
        if not store.has(volume.copy):
            return True
        try:
            store.remove(volume.copy)
        except CowfsError as error:
            if store.has(volume.copy):
                log.warning("%s", error)
                return False
        return True


def _refused(lines: list[str], status: int) -> Refused:
    said = [line for line in lines if line and not line.startswith("warning: ")]
    sentence = said[-1] if said else f"the mount ended with {status}"
    for words, code in _MEANINGS:
        if words in sentence:
            return again(sentence) if code is StatusCode.ABORTED else Refused(code, sentence)
    return Refused(StatusCode.INTERNAL, sentence)
