"""Several processes change one copy at once: no call ends in an error of the filesystem's own.

effort.py goes on longer, with other changes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.effort import EFFORT, SEED
from integration.hand import Hand
from integration.mounts import MountCopy
from integration.pair import Origin, as_overlayfs_shows_it, comparable, drop_caches
from integration.randomops import LARGE, Plan, make_source
from integration.trees import differences, tree_state

SECONDS = 5.0 * EFFORT

# No program expects these of a file system that works.
FORBIDDEN = {"EIO", "ESTALE", "ENOTCONN", "ECONNABORTED", "EFAULT"}

# Every name that the storm moves about; the other processes use them too.
_STORMED = ("a", "b", "d", "e", "n1", "d/e", "a/b", "n1/b", "small", "large", "d/group", "biggroup")
_STORES = "mine-stores"  # a file of the template; Plan leaves names alone that begin like this
_REGION = 2 * mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)

Run = Callable[[Path, int, float], list[str]]


def _operations(root: Path, number: int, ends: float) -> list[str]:
    """Random operations until then; gives what should not have happened."""
    hand = Hand(root)
    plan = Plan(random.Random(f"{SEED} {number}"), root, lambda: list(hand.fds))
    complaints: list[str] = []
    rounds = 0
    while time.monotonic() < ends:
        rounds += 1
        operation = plan.draw()
        if operation.name.startswith("map") or operation.name == "rmtree":
            continue  # what somebody else cuts off meanwhile ends in SIGBUS
        result = hand.do(operation)
        if isinstance(result, str) and result in FORBIDDEN:
            complaints.append(f"process {number}, {rounds}: {operation} {result}"[:300])
        if number == 0 and rounds % 1000 == 0:
            drop_caches()
        if rounds % 50 == 0:
            complaints += _map_and_read_back(root / f"mine{number}", rounds)
            complaints += _store_and_read_back(root / _STORES, number, rounds)
    hand.close_all()
    return [*complaints, f"rounds {rounds}"]


def _map_and_read_back(path: Path, number: int) -> list[str]:
    """What a mapping stores, a descriptor reads, and the other way round."""
    data = b"%08d" % number * 1000
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, 8000)
        with mmap.mmap(fd, 8000) as mapped:
            mapped[:] = data
            if os.pread(fd, 8000, 0) != data:
                return [f"{path.name}: a store does not show"]
            os.pwrite(fd, b"W" * 100, 4000)
            if mapped[4000:4100] != b"W" * 100:
                return [f"{path.name}: a write does not show in the mapping"]
    finally:
        os.close(fd)
    with path.open("rb") as file:
        return [] if file.read(4000) == data[:4000] else [f"{path.name}: not what was stored"]


def _store_and_read_back(path: Path, number: int, rounds: int) -> list[str]:
    """Each process has a region of one file, which others store to at the same time."""
    data = b"%08d" % rounds * (_REGION // 8)
    start = number * _REGION
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, _REGION, offset=start) as mapped:
            mapped[:] = data
    finally:
        os.close(fd)
    with path.open("rb") as file:
        file.seek(start)
        found = file.read(_REGION)
    return [] if found == data else [f"process {number}, {rounds}: a store is lost"]


def _storm(root: Path, number: int, ends: float) -> list[str]:
    """Renames of the same few names, as fast as it goes."""
    source = random.Random(f"{SEED} {number}")
    complaints = []
    rounds = 0
    while time.monotonic() < ends:
        rounds += 1
        old, new = (root / source.choice(_STORMED) for _ in range(2))
        flags = source.randrange(3)
        if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
            error = errno.errorcode[ctypes.get_errno()]
            if error in FORBIDDEN:
                complaints.append(f"rename {old} {new} {flags}: {error}")
    return [*complaints, f"rounds {rounds}"]


_PROCESSES: tuple[Run, ...] = (*[_operations] * 4, *[_storm] * 2)


def _start(run: Run, root: Path, number: int, ends: float) -> tuple[int, int]:
    """Fork: a process of its own for each, and no threads of ours in it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 1
    try:
        os.close(reading)
        try:
            complaints = run(root, number, ends)
        except BaseException:
            complaints = [traceback.format_exc()]
        with os.fdopen(writing, "w") as file:
            file.write("\n".join(complaints))
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("clone", ["write", "open"])
def test_processes_change_one_copy_at_once(mount_copy: MountCopy, xfs: Path, clone: str) -> None:
    source = make_source(xfs / "source")
    (source / _STORES).write_bytes(b"\0" * max(2 * LARGE, len(_PROCESSES) * _REGION))
    origin = Origin(mount_copy, source, (f"clone={clone}",))
    copy = origin.mountpoint
    mount_copy(source, copy, *origin.options, "copy=random")
    ends = time.monotonic() + SECONDS
    children = [_start(run, copy, number, ends) for number, run in enumerate(_PROCESSES)]
    said = []
    for pid, reading in children:
        with os.fdopen(reading) as file:
            said += file.read().splitlines()
        assert os.waitpid(pid, 0)[1] == 0
    rounds = [int(line.split()[1]) for line in said if line.startswith("rounds ")]
    complaints = [line for line in said if not line.startswith("rounds ")]
    print("rounds:", rounds, file=sys.stderr)
    assert not complaints, "\n".join(complaints[:40])
    assert len(rounds) == len(_PROCESSES)
    state = tree_state(copy)
    mount_copy.unmount(copy)  # looks into the daemon's log
    origin.check_copy("random")
    shown = as_overlayfs_shows_it(origin.template, origin.store / "copies" / "random")
    mount_copy(source, copy, *origin.options, "copy=random")
    different = differences(state, tree_state(copy))
    assert not different, f"after the remount:\n{different}"
    different = differences(comparable(state), comparable(shown))
    assert not different, f"as overlayfs shows it:\n{different}"
    origin.check_unchanged()
