"""What a mount holds does not grow, however long it runs and however often its daemon is replaced.

The long run of an hour: COWFS_EFFORT=300.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from cowfs.overlay.vault import KEPT_EXCHANGES
from integration.effort import EFFORT
from integration.mounts import MountCopy
from integration.takeoverload import Load, make_source

SECONDS = 12.0 * EFFORT
KILLS = 6 * EFFORT
LOAD = ["sequential", "small", "synced", "copied-in", "churn", "more-churn"]


class Footprint(NamedTuple):
    """Of one process: resident KiB, open descriptors."""

    memory: int
    descriptors: int


def footprint(pid: int) -> Footprint:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (memory,) = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return Footprint(memory, len(os.listdir(f"/proc/{pid}/fd")))


def ledger_blocks(pid: int) -> int:
    """What the shared memory of a daemon really takes, in units of 512 bytes."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if "cowfs-ledger" in os.readlink(fd):
            return fd.stat().st_blocks
    raise AssertionError("it has no ledger")


def at_rest(mounts: MountCopy, root: Path) -> tuple[Footprint, Footprint, int]:
    """Keeper, daemon and ledger, when nobody uses the mount and the kernel has forgotten it."""
    record = mounts.record(root)
    seen = None
    for _ in range(50):
        Path("/proc/sys/vm/drop_caches").write_text("2")  # dentries and inodes: FORGET
        time.sleep(0.2)
        now = (footprint(record["keeper_pid"]), footprint(record["daemon_pid"]))
        if now == seen:
            break
        seen = now
    return *now, ledger_blocks(record["daemon_pid"])


def replace_daemon(mounts: MountCopy, root: Path) -> None:
    pid = mounts.wait_until_served(root)
    os.kill(pid, signal.SIGKILL)
    mounts.wait_until_served(root, other_than=pid)


@pytest.mark.timeout(180 + 2 * SECONDS + 10 * KILLS)
def test_memory_and_descriptors_stay_what_they_were(mount_copy: MountCopy, xfs: Path) -> None:
    source = make_source(xfs / "source")
    root = mount_copy(source, None, "copy=enduring")
    seen = []
    for phase in range(3):
        load = Load(root, source, phase, LOAD)
        try:
            for _ in range(max(1, KILLS // 3)):
                time.sleep(SECONDS / max(3, KILLS))
                replace_daemon(mount_copy, root)
            reports = load.end()
        finally:
            load.kill()
        assert not [line for report in reports for line in report.complaints]
        for name in ("synced", "churn0", "churn1"):
            _remove(root / name)
        for name in ("churn0", "churn1"):
            (root / name / "deep").mkdir(parents=True)
            for old in range(8):
                (root / name / f"old{old}").write_bytes(b"old")
        # The last one has seen no load, so that what it holds is what it was given.
        time.sleep(1.1)
        replace_daemon(mount_copy, root)
        seen.append(at_rest(mount_copy, root))
    print("keeper, daemon, ledger at rest:", *seen, sep="\n", file=sys.stderr)
    first_keeper, first_daemon, first_ledger = seen[0]
    for keeper, daemon, ledger in seen[1:]:
        # One can be left by a kill; the rest are notes of exchanges, of which so many are kept.
        assert keeper.descriptors <= KEPT_EXCHANGES + 16 + KILLS
        assert keeper.memory <= first_keeper.memory + 1024
        assert daemon.descriptors <= first_daemon.descriptors + 8
        assert daemon.memory <= first_daemon.memory + 4096
        assert ledger <= 2 * first_ledger


def _remove(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            _remove(entry)
        path.rmdir()
    else:
        path.unlink()
