"""A mount survives its daemon: nobody who uses it is told of what happens to the process."""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path

import pytest

from integration.command import cowfs
from integration.mounts import MountCopy
from integration.takeoverload import Load, Report, make_source
from integration.trees import differences, tree_state

#: Over both modes.
KILLS = int(os.environ.get("COWFS_TAKEOVER_KILLS", "20"))
SEED = int(os.environ.get("COWFS_RANDOM_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
#: No call waits longer, however busy the machine is: seconds.
LONGEST = 10.0


def daemon_of(keeper: int, patience: float = 10) -> int:
    """The process that the keeper runs just now."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.002)
    raise AssertionError(f"the keeper {keeper} has started no daemon")


def wait_until_served(mounts: MountCopy, mountpoint: Path, patience: float = 30) -> int:
    """The pid of the daemon that serves, once it is another than before."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        record = mounts.record(mountpoint)
        if record["daemon_pid"] == daemon_of(record["keeper_pid"]):
            return int(record["daemon_pid"])
        time.sleep(0.01)
    raise AssertionError(f"nobody serves {mountpoint} after {patience:g} s")


def show_gaps(reports: list[Report], kills: list[float], mode: str) -> None:
    """Print how long callers waited for each of the kills; no call may have waited for long."""
    for what in ("reads", "calls"):
        waits: list[tuple[float, float]] = [
            (start, took) for report in reports for start, took in getattr(report, what)
        ]
        worst = [
            max((took for start, took in waits if start <= at + 1 and at < start + took), default=0)
            for at in kills
        ]
        print(
            f"{mode}, {what}: median {statistics.median(worst) * 1000:.0f} ms, "
            f"worst {max(worst) * 1000:.0f} ms over {len(kills)} kills",
            file=sys.stderr,
        )
        assert max((took for _start, took in waits), default=0) < LONGEST


def finish(
    mounts: MountCopy, source: Path, mountpoint: Path, name: str, reports: list[Report]
) -> None:
    """Nobody has complained; the copy is sound, and shows the same when it is mounted again."""
    print("rounds:", {r.worker: r.rounds for r in reports}, "seed", SEED, file=sys.stderr)
    complaints = [line for report in reports for line in report.complaints]
    assert not complaints, "\n".join([*complaints, mounts.log(mountpoint)[-4000:]])
    assert all(report.rounds for report in reports)
    state = tree_state(mountpoint)
    mounts.unmount(mountpoint)
    checked = cowfs("check", name)
    assert "nothing is wrong" in checked.stdout or checked.returncode == 0, checked
    mounts(source, mountpoint, f"copy={name}")
    different = differences(state, tree_state(mountpoint))
    assert not different, different


@pytest.mark.timeout(120 + 6 * KILLS)
def test_daemon_that_is_killed_again_and_again_is_not_missed(
    mount_copy: MountCopy, xfs: Path, mode: str
) -> None:
    source = make_source(xfs / "source")
    root = mount_copy(source, None, "copy=killed")
    keeper = mount_copy.record(root)["keeper_pid"]
    chance = random.Random(SEED)
    load = Load(root, source, SEED)
    kills = []
    try:
        time.sleep(2)
        for _ in range(KILLS // 2):
            wait_until_served(mount_copy, root)
            time.sleep(chance.uniform(1.0, 2.0))
            os.kill(daemon_of(keeper), signal.SIGKILL)
            kills.append(time.monotonic())
        wait_until_served(mount_copy, root)
        reports = load.end()
    finally:
        load.kill()
    show_gaps(reports, kills, mode)
    finish(mount_copy, source, root, "killed", reports)
