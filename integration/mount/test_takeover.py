"""A mount survives its daemon: nobody who uses it is told of what happens to the process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from integration import kernel
from integration.command import cowfs, run
from integration.effort import CHANCE, EFFORT
from integration.mounts import RECORDS, MountCopy, daemon_of
from integration.otherversion import OtherVersion
from integration.takeoverload import Load, Report, make_source
from integration.trees import differences, tree_state

#: Over both modes.
KILLS = 12 * EFFORT
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
    print("rounds:", {r.worker: r.rounds for r in reports}, "seed", CHANCE, file=sys.stderr)
    complaints = [line for report in reports for line in report.complaints]
    assert not complaints, "\n".join([*complaints, mounts.log(mountpoint)[-4000:]])
    assert all(report.rounds for report in reports)
    state = tree_state(mountpoint)
    store = mounts.record(mountpoint)["store"]
    mounts.unmount(mountpoint)
    checked = cowfs("check", "--store", store, name)
    assert "nothing is wrong" in checked.stdout or checked.returncode == 0, checked
    mounts(source, mountpoint, f"copy={name}")
    different = differences(state, tree_state(mountpoint))
    assert not different, different


#: A load for what takes long by itself.
FEW = ["sequential", "mapped", "small", "synced", "churn"]


@pytest.mark.timeout(120 + 6 * KILLS)
def test_daemon_that_is_killed_again_and_again_is_not_missed(
    mount_copy: MountCopy, xfs: Path, mode: str
) -> None:
    source = make_source(xfs / "source")
    root = mount_copy(source, None, "copy=killed")
    keeper = mount_copy.record(root)["keeper_pid"]
    chance = random.Random(CHANCE)
    load = Load(root, source, CHANCE)
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
    killed = 0

    def kill() -> None:
        nonlocal killed
        pid = mount_copy.wait_until_served(root, other_than=killed)
        time.sleep(1.1)  # one that ends sooner is replaced after a pause
        os.kill(pid, signal.SIGKILL)
        killed = pid

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


def test_daemon_that_is_stuck_is_replaced(mount_copy: MountCopy, xfs: Path, mode: str) -> None:
    source = make_source(xfs / "source")
    root = mount_copy(source, None, "copy=stuck", "watchdog=1")
    load = Load(root, source, CHANCE, FEW)
    stops = []
    try:
        for _ in range(2):
            stuck = mount_copy.wait_until_served(root)
            time.sleep(1)
            os.kill(stuck, signal.SIGSTOP)
            stops.append(time.monotonic())
            assert kernel.wait_for_end(stuck, 20)
            mount_copy.wait_until_served(root, other_than=stuck)
        reports = load.end()
    finally:
        load.kill()
    show_gaps(reports, stops, mode)
    said = mount_copy.log(root)
    assert said.count("has answered nothing for 1 s and is replaced; it was here:") == 2
    assert "state T" in said, "it says what each thread did"
    finish(mount_copy, source, root, "stuck", reports)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_daemon_of_which_a_thread_stays_in_the_kernel_is_not_waited_for(
    mount_plain: MountCopy, model: Path, tmp_path: Path, number: int
) -> None:
    # A thread that has told the kernel to drop a page waits until that page was read, and the
    # READ waits for the next daemon. Here it waits for a mount that never answers: likewise.
    silent = OtherVersion(tmp_path / "silent", "99.1")
    silent.patch(
        "overlay/operations.py",
        r"            node, st = self\._overlay\.lookup\(parent, name\)\n        except",
        '            if name == b"never": __import__("time").sleep(600)\n'
        "            node, st = self._overlay.lookup(parent, name)\n        except",
    )
    trap = mount_plain.mountpoint()
    run(*silent.command("mount", "-o", "watchdog=0", model, trap), cwd="/")
    held = OtherVersion(tmp_path / "held", "99.2")
    held.patch(
        "mount/daemon.py",
        r"        self\.was_ready = True\n",
        "        self.was_ready = True\n"
        "        import threading\n"
        f"        threading.Thread(target=os.access, args=({str(trap / 'never')!r}, 0)).start()\n",
    )
    root = mount_plain.mountpoint()
    run(*held.command("mount", "-o", "watchdog=4", model, root), cwd="/")
    (root / "new").write_text("before")
    killed = mount_plain.wait_until_served(root)
    try:
        _wait_until(lambda: "fuse_" in _stacks(killed))
        time.sleep(0.2)  # until the other daemon has read the request: before, SIGKILL ends it
        os.kill(killed, number)  # of one that is stopped the keeper makes an end
        (root / "new").write_text("after")
        _wait_until(lambda: mount_plain.daemon_pid(root) != killed)
        log = (RECORDS / f"{mount_plain.record(root)['device']}.log").read_text()
        assert f"a thread of the daemon {killed} waits in the kernel" in log
        assert not kernel.wait_for_end(killed, 0)
    finally:
        mount_plain.kill(trap)
    assert kernel.wait_for_end(killed, 10)


def test_a_daemon_that_dies_before_it_answers_leaves_nobody_waiting_for_its_output(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    # Such as out=$(cowfs mount ...); the next daemon is the one that answers.
    brief = OtherVersion(tmp_path / "brief", "99.1")
    brief.patch(
        "mount/daemon.py",
        r'then say that it answers\."""\n',
        'then say that it answers."""\n'
        "        if not self._resumed: os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    root = mount_plain.mountpoint()
    said = run(*brief.command("mount", model, root), cwd="/")
    assert "starting the next one" in said.stderr
    record = mount_plain.record(root)
    log = RECORDS / f"{record['device']}.log"
    for pid in (record["keeper_pid"], record["daemon_pid"]):
        assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)] == [str(log)] * 2
    os.kill(record["daemon_pid"], signal.SIGKILL)
    mount_plain.wait_until_served(root, other_than=record["daemon_pid"])
    _wait_until(lambda: log.read_text().count("is served by cowfs 99.1 from now on") == 2)


def test_an_error_of_the_device_is_no_unmount(
    mount_plain: MountCopy, model: Path, tmp_path: Path
) -> None:
    # One that is opened anew belongs to no mount, and says EPERM.
    astray = OtherVersion(tmp_path / "astray", "99.1")
    astray.patch(
        "mount/daemon.py",
        r"        self\.was_ready = True\n",
        "        self.was_ready = True\n"
        "        if not self._resumed:\n"
        "            os.dup2(os.open('/dev/fuse', os.O_RDWR), self._channel.dev_fd)\n",
    )
    root = mount_plain.mountpoint()
    run(*astray.command("mount", "-o", "ephemeral,copy=astray", model, root), cwd="/")
    (root / "new").write_text("still there")
    assert (root / "new").read_text() == "still there"
    log = (RECORDS / f"{mount_plain.record(root)['device']}.log").read_text()
    assert "Operation not permitted: '/dev/fuse'" in log
    assert "ended (exit code 4)" in log
    assert cowfs("umount", root).stdout == "discarded ephemeral copy astray\n"


def _wait_until(condition: Callable[[], bool], patience: float = 20) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _stacks(pid: int) -> str:
    stacks = Path(f"/proc/{pid}/task").glob("*/stack")
    return "".join(stack.read_text() for stack in stacks)


class MemoryGroup:
    """A control group of this test's own, with a limit; cgroups version 1 or 2."""

    def __init__(self, limit: int) -> None:
        top, name = Path("/sys/fs/cgroup"), f"cowfs-test-{os.getpid()}"
        first = (top / "memory").is_dir()
        if not first:
            (top / "cgroup.subtree_control").write_text("+memory")
        self.path = (top / "memory" if first else top) / name
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        for pid in (self.path / "cgroup.procs").read_text().split():
            (self.path.parent / "cgroup.procs").write_text(pid)
        self.path.rmdir()


def test_daemon_that_the_kernel_ends_for_its_memory_is_replaced(
    mount_copy: MountCopy, xfs: Path, mode: str
) -> None:
    source = make_source(xfs / "source")
    root = mount_copy(source, None, "copy=starved")
    keeper = mount_copy.record(root)["keeper_pid"]
    group = MemoryGroup(200 << 20)
    # The keeper is in no such danger: it protects itself where it may (CAP_SYS_RESOURCE).
    eat = (
        "import os, sys, time\n"
        "daemon, eaten = int(sys.argv[1]), []\n"
        "while os.path.exists(f'/proc/{daemon}/exe') and len(eaten) < 400:\n"
        "    eaten.append(b'x' * (1 << 20))\n"
        "    time.sleep(0.001)\n"
    )
    load = Load(root, source, CHANCE, FEW)
    kills = []
    try:
        for _ in range(2):
            starved = mount_copy.wait_until_served(root)
            group.add(starved)
            Path(f"/proc/{starved}/oom_score_adj").write_text("1000")
            eater = subprocess.Popen([sys.executable, "-c", eat, str(starved)])
            group.add(eater.pid)
            assert kernel.wait_for_end(starved, 30), "it was not ended for its memory"
            kills.append(time.monotonic())
            eater.kill()
            eater.wait()
            mount_copy.wait_until_served(root, other_than=starved)
            time.sleep(1)
        assert mount_copy.record(root)["keeper_pid"] == keeper
        reports = load.end()
    finally:
        load.kill()
        group.remove()
    show_gaps(reports, kills, mode)
    assert mount_copy.log(root).count("ended (killed by signal 9)") == 2
    finish(mount_copy, source, root, "starved", reports)


def test_daemon_that_cannot_write_its_record_serves_all_the_same(
    mount_copy: MountCopy, model: Path
) -> None:
    # As when /run is full.
    root = mount_copy(model)
    record = mount_copy.record(root)
    path = RECORDS / f"{record['device']}.json"
    aside = path.rename(path.with_suffix(".aside"))
    (path / "in the way").mkdir(parents=True)
    try:
        os.kill(record["daemon_pid"], signal.SIGKILL)
        (root / "new").write_text("served")
        deadline = time.monotonic() + 10
        while "has no record" not in mount_copy.log(root):
            assert time.monotonic() < deadline, mount_copy.log(root)
            time.sleep(0.01)
        assert (root / "new").read_text() == "served"
        assert os.path.ismount(root)
    finally:
        shutil.rmtree(path)
        aside.rename(path)
    os.kill(daemon_of(record["keeper_pid"]), signal.SIGKILL)
    mount_copy.wait_until_served(root, other_than=record["daemon_pid"])
