"""One long run of random operations, in a copy and on XFS beside it, and what such runs have found.

test_stateful.py does the same in short programs. This one goes on with one copy for thousands of
steps: nodes are forgotten and made again, listings dropped, files replaced many times.
effort.py takes more and other steps.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from pathlib import Path

import pytest

from integration.command import run
from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.pair import Origin, Pair, drop_caches
from integration.randomops import LARGE, USER, WEIGHTS, Plan, make_source
from integration.trees import with_ctimes

STEPS = 1500 * EFFORT
SHARE_MIN = f"share_min={LARGE}"


def _template(mounts: MountCopy, copy: Path) -> Path:
    record = mounts.record(copy)
    return Path(record["store"], "templates", record["template"], "tree")


@pytest.mark.parametrize("clone", ["write", "open"])
@pytest.mark.timeout(300 * EFFORT)
def test_random_operations_come_out_as_on_xfs(
    mount_copy: MountCopy, xfs: Path, mode: str, clone: str
) -> None:
    origin = Origin(mount_copy, make_source(xfs / "source"), (f"clone={clone}",))
    snapshots = mode == "passthrough" and clone == "write"
    pair = Pair(origin, "random", xfs / "native", snapshots=snapshots)
    hand = pair.native
    plan = Plan(random.Random(f"{SEED} {mode} {clone}"), hand.root, lambda: list(hand.fds))
    history: deque[str] = deque(maxlen=60)
    drawn: set[str] = set()
    step = 0
    try:
        pair.compare_trees()
        for step in range(STEPS):
            operation = plan.draw()
            drawn.add(operation.name)
            history.append(f"{step}: {operation}"[:200])
            pair.do(operation)
            for act, every in (
                (pair.compare_trees, 100),
                (drop_caches, 300),
                (pair.remount, 300),
                (pair.kill_and_mount, 700),
            ):
                if plan.chance(1 / every) or step == every:
                    history.append(act.__name__)
                    act()
        assert drawn == WEIGHTS.keys(), "not enough steps to meet each operation"
        pair.check_at_rest()
    except BaseException as error:
        told = "\n".join(history)
        raise AssertionError(f"seed {SEED}, step {step}: {error}\n{told}") from error
    finally:
        pair.close_all()


# --- what random operations do not hit often enough -----------------------------------------------


def test_every_name_of_a_file_shows_what_was_written_under_its_readers(
    mount_copy: MountCopy, xfs: Path
) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    names = ("n1", "d/biggroup", "a/b/c/biggroup")
    for name in names[1:]:
        (copy / name).stat()
    with (copy / "biggroup").open("rb"):
        (copy / "biggroup").chmod(0o600)
        (copy / "biggroup").rename(copy / "n1")
        with (copy / "n1").open("ab") as file:
            file.write(b"tail")
        deadline = time.monotonic() + 2  # the kernel is told to forget the other names by and by
        while {(copy / name).stat().st_size for name in names} != {2 * LARGE + 4}:
            assert time.monotonic() < deadline, "another name shows the old size"
            time.sleep(0.01)


def test_listing_goes_on_while_it_is_forgotten_and_made_again(
    mount_copy: MountCopy, xfs: Path
) -> None:
    source = xfs / "source"
    for number in range(1000):
        (source / f"many/directory{number:04}").mkdir(parents=True)
    for number in range(200):
        (source / f"others/{number}").mkdir(parents=True)
    copy = mount_copy(source)
    seen = []
    with os.scandir(copy / "many") as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) == 1:
                for number in range(500, 800):
                    (copy / f"many/directory{number:04}").chmod(0o700)
                for number in range(200):
                    os.listdir(copy / f"others/{number}")
    assert len(seen) == len(set(seen)) == 1000


def test_walk_that_removes_files_meets_every_name(mount_copy: MountCopy, xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir()
    top = mount_copy(source) / "new"
    for number in range(300):
        for inner in range(25):
            (top / f"directory{number:03}/{inner}").mkdir(parents=True)
        (top / f"file{number:03}").touch()
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.is_dir():
                for inner in range(25):
                    os.listdir(top / entry.name / str(inner))
            else:
                (top / entry.name).unlink()
    assert [name for name in os.listdir(top) if name.startswith("file")] == []


def test_truncate_to_the_same_size_leaves_the_times(mount_copy: MountCopy, xfs: Path) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    before = (copy / "small").stat().st_mtime_ns
    os.truncate(copy / "small", 10)
    assert (copy / "small").stat().st_mtime_ns == before


def test_truncate_to_nothing_sets_the_time(mount_copy: MountCopy, xfs: Path) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    before = (copy / "small").stat().st_mtime_ns
    os.truncate(copy / "small", 0)
    assert (copy / "small").stat().st_mtime_ns > before


def test_reader_of_old_bytes_keeps_their_size_over_fchmod(mount_copy: MountCopy, xfs: Path) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    with (copy / "large").open("rb", buffering=0) as reader:
        with (copy / "large").open("ab") as file:
            file.write(b"tail")
        os.fchmod(reader.fileno(), 0o640)
        assert os.fstat(reader.fileno()).st_size == len(reader.read())


def test_what_was_removed_can_be_changed_and_does_not_reach_the_template(
    mount_copy: MountCopy, xfs: Path
) -> None:
    source = make_source(xfs / "source")
    copy = mount_copy(source, None, SHARE_MIN)
    template = _template(mount_copy, copy)
    before = with_ctimes(template)
    for name in ("fifo", "link", "void", "a/b/c"):
        fd = os.open(copy / name, os.O_PATH | os.O_NOFOLLOW)
        try:
            run("rm", "-r", copy / name)
            os.chown(f"/proc/self/fd/{fd}", USER, USER)
            if name != "link":
                os.chmod(f"/proc/self/fd/{fd}", 0o711)
            st = os.fstat(fd)
            assert (st.st_uid, st.st_gid) == (USER, USER)
        finally:
            os.close(fd)
    assert with_ctimes(template) == before
    (copy / "new").mkdir()
    fd = os.open(copy / "new", os.O_RDONLY)
    (copy / "new").rmdir()
    os.fsync(fd)
    os.close(fd)


def test_reader_of_old_bytes_outlives_the_kernels_memory_of_the_new_ones(
    mount_copy: MountCopy, xfs: Path
) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    with (copy / "large").open("rb") as reader:
        with (copy / "large").open("ab") as file:
            file.write(b"tail")
        for _ in range(3):
            Path("/proc/sys/vm/drop_caches").write_text("2")
            time.sleep(0.05)
        os.fchmod(reader.fileno(), 0o640)
        os.setxattr(reader.fileno(), "user.a", b"b")
        assert (copy / "large").stat().st_mode & 0o7777 == 0o640


def test_hard_links_are_found_beside_a_very_deep_tree(mount_copy: MountCopy, xfs: Path) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    step = os.open(copy, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("deep", dir_fd=step)
        deeper = os.open("deep", os.O_RDONLY, dir_fd=step)
        os.close(step)
        step = deeper
    os.close(step)
    (copy / "a").rename(copy / "n1")  # now the names have to be looked for
    with (copy / "group").open("ab") as file:
        file.write(b"tail")
    assert (copy / "n1/group").read_bytes()[-4:] == b"tail"
    run("rm", "-rf", copy / "deep")
