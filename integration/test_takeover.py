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
from integration.mounts import MountCopy, daemon_of
from integration.takeoverload import Load, Report, make_source
from integration.trees import differences, tree_state

#: Over both modes.
KILLS = int(os.environ.get("COWFS_TAKEOVER_KILLS", "20"))
SEED = int(os.environ.get("COWFS_RANDOM_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
#: No call waits longer, however busy the machine is: seconds.
LONGEST = 10.0


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
            mount_copy.wait_until_served(root)
            time.sleep(chance.uniform(1.0, 2.0))
            os.kill(daemon_of(keeper), signal.SIGKILL)
            kills.append(time.monotonic())
        mount_copy.wait_until_served(root)
        reports = load.end()
    finally:
        load.kill()
    show_gaps(reports, kills, mode)
    finish(mount_copy, source, root, "killed", reports)


def test_calls_in_the_very_moment_of_a_kill_only_wait(mount_copy: MountCopy, model: Path) -> None:
    # A thread that is being killed takes a request all the same, and it must not be lost with it.
    root = mount_copy(model)
    block = os.urandom(1 << 20)

    def kill() -> None:
        pid = mount_copy.wait_until_served(root)
        time.sleep(1.1)  # one that ends sooner is replaced after a pause
        os.kill(pid, signal.SIGKILL)

    for number in range(4):
        with (root / f"written{number}").open("wb", buffering=0) as file:
            kill()
            (root / f"made{number}").write_text("made")
            kill()
            assert file.write(block) == len(block)
            os.fsync(file.fileno())
    for number in range(4):
        assert (root / f"written{number}").read_bytes() == block
        assert (root / f"made{number}").read_text() == "made"
