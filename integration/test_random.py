"""Random operations: in a copy and on XFS beside it, and by several processes in one copy.

COWFS_RANDOM_SEED=N repeats with another seed, COWFS_RANDOM_STEPS=N takes more steps.
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
import traceback
from collections import deque
from pathlib import Path

import pytest

from integration.command import run
from integration.mounts import MountCopy
from integration.randomops import LARGE, USER, Hand, Operation, Plan, make_source
from integration.trees import Entry, tree_state
from integration.volumes import unmount

SEED = int(os.environ.get("COWFS_RANDOM_SEED", "1"))
STEPS = int(os.environ.get("COWFS_RANDOM_STEPS", "4000"))
SECONDS = float(os.environ.get("COWFS_RANDOM_SECONDS", "8"))
PROCESSES = 5
SHARE_MIN = f"share_min={LARGE}"

# No program expects these of a file system that works.
FORBIDDEN = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ECONNABORTED, errno.EFAULT}

# Operations on a descriptor that only read, and what of them may be as it was at the open.
_READING = {"pread", "read", "lseek", "fstat", "map_read"}
# What says more than one descriptor about a file that a reader has open as it was.
_SHOWS_ATTRIBUTES = {"fchmod", "fchown", "futimens", "fxattr", "link_fd"}


def _template(mounts: MountCopy, copy: Path) -> Path:
    record = mounts.record(copy)
    return Path(record["store"], "templates", record["template"], "tree")


def _with_ctimes(root: Path) -> dict[str, tuple[Entry, int]]:
    """Everything about a tree that nobody may change, and the time that no change goes without."""
    return {path: (e, os.lstat(root / path).st_ctime_ns) for path, e in tree_state(root).items()}


def _differences(expected: dict[str, Entry], got: dict[str, Entry]) -> str:
    return "\n".join(
        f"{path}:\n  expected: {expected.get(path)}\n  got:      {got.get(path)}"
        for path in sorted(expected.keys() | got.keys())
        if expected.get(path) != got.get(path)
    )


class _Pair:
    """A copy and a reflink copy of its source, changed in the same way."""

    def __init__(self, mounts: MountCopy, xfs: Path, options: tuple[str, ...], snapshots: bool):
        self._mounts = mounts
        self._options = (*options, SHARE_MIN, "copy=random", "dev")
        self._source = make_source(xfs / "source")
        run("cp", "-a", "--reflink=always", self._source, xfs / "native")
        self._mountpoint = mounts(self._source, None, *self._options)
        self._template = _template(mounts, self._mountpoint)
        self._before = [_with_ctimes(self._source), _with_ctimes(self._template)]
        self.native = Hand(xfs / "native", keeps_snapshots=snapshots)
        self.copy = Hand(self._mountpoint)

    def remount(self) -> None:
        self.native.close_all()
        self.copy.close_all()
        self._mounts.unmount(self._mountpoint)
        self._mounts(self._source, self._mountpoint, *self._options)
        self.compare_trees()

    def compare_trees(self) -> None:
        different = _differences(self.native.tree(), self.copy.tree())
        assert not different, different

    def check_nothing_else_changed(self) -> None:
        assert [_with_ctimes(self._source), _with_ctimes(self._template)] == self._before

    def do(self, operation: Operation) -> None:
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
        if operation.name == "read" or operation.args[-1] == os.SEEK_CUR:
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


@pytest.mark.parametrize("clone", ["write", "open"])
@pytest.mark.timeout(300)
def test_random_operations_come_out_as_on_xfs(
    mount_copy: MountCopy, xfs: Path, mode: str, clone: str
) -> None:
    snapshots = mode == "passthrough" and clone == "write"
    pair = _Pair(mount_copy, xfs, (f"clone={clone}",), snapshots)
    plan = Plan(f"{SEED} {mode} {clone}", pair.native.root)
    history: deque[str] = deque(maxlen=60)
    step = 0
    try:
        pair.compare_trees()
        for step in range(STEPS):
            operation = plan.draw()
            history.append(f"{step}: {operation}"[:200])
            pair.do(operation)
            if plan.chance(0.01):
                history.append("compare")
                pair.compare_trees()
            if plan.chance(0.003):
                history.append("drop caches")
                Path("/proc/sys/vm/drop_caches").write_text("2")
            if plan.chance(0.003):
                history.append("remount")
                pair.remount()
        pair.compare_trees()
        pair.remount()
        pair.check_nothing_else_changed()
    except BaseException as error:
        told = "\n".join(history)
        raise AssertionError(f"seed {SEED}, step {step}: {error}\n{told}") from error
    finally:
        pair.native.close_all()
        pair.copy.close_all()


# --- several processes at once --------------------------------------------------------------------


def _one_of_many(root: Path, number: int, seed: int, seconds: float) -> list[str]:
    """Random operations for some seconds; gives what should not have happened."""
    hand = Hand(root)
    plan = Plan(f"{seed} {number}", root)
    complaints: list[str] = []
    ends = time.monotonic() + seconds
    forbidden = {errno.errorcode[n] for n in FORBIDDEN}
    rounds = 0
    mine = root / f"mine{number}"
    while time.monotonic() < ends:
        rounds += 1
        operation = plan.draw()
        if operation.name.startswith("map") or operation.name in ("rmtree", "close_all"):
            continue  # what somebody else cuts off meanwhile ends in SIGBUS
        fills = operation.name[0] == "f" or operation.name in ("pread", "pwrite", "read", "write")
        if fills and operation.args[0] not in hand.fds:
            continue
        result = hand.do(operation)
        if isinstance(result, str) and result in forbidden:
            complaints.append(f"process {number}, {rounds}: {operation} {result}"[:300])
        if number == 0 and rounds % 1000 == 0:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        if rounds % 50 == 0:
            complaints += _map_and_read_back(mine, rounds)
    hand.close_all()
    complaints.append(f"rounds {rounds}")
    return complaints


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


def _start(root: Path, number: int, seed: int, seconds: float) -> tuple[int, int]:
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
            complaints = _one_of_many(root, number, seed, seconds)
        except BaseException:
            complaints = [traceback.format_exc()]
        with os.fdopen(writing, "w") as file:
            file.write("\n".join(complaints))
        code = 0
    finally:
        os._exit(code)


def _as_overlayfs_shows_it(
    mounts: MountCopy, template: Path, copy: Path, at: Path
) -> dict[str, Entry]:
    at.mkdir()
    options = f"ro,lowerdir={template},upperdir={copy}/upper,workdir={copy}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(at)], check=True)
    try:
        return tree_state(at)
    finally:
        unmount(at)


def _comparable(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Without what overlayfs cannot express: docs/on-disk-format.md."""
    return {
        path: entry._replace(
            nlink=0 if entry.mode & 0o170000 == 0o040000 else entry.nlink,
            xattrs=tuple(x for x in entry.xattrs if not x[0].startswith("trusted.cowfs.")),
        )
        for path, entry in tree.items()
    }


@pytest.mark.parametrize("clone", ["write", "open"])
def test_processes_change_one_copy_at_once(
    mount_copy: MountCopy, xfs: Path, tmp_path: Path, clone: str
) -> None:
    source = make_source(xfs / "source")
    before = _with_ctimes(source)
    options = (f"clone={clone}", SHARE_MIN, "copy=random", "dev")
    copy = mount_copy(source, None, *options)
    template = _template(mount_copy, copy)
    sealed = _with_ctimes(template)
    upper = Path(mount_copy.record(copy)["store"], "copies", "random")
    children = [_start(copy, number, SEED, SECONDS) for number in range(PROCESSES)]
    said = []
    for pid, reading in children:
        with os.fdopen(reading) as file:
            said += file.read().splitlines()
        assert os.waitpid(pid, 0)[1] == 0
    rounds = [int(line.split()[1]) for line in said if line.startswith("rounds ")]
    complaints = [line for line in said if not line.startswith("rounds ")]
    print("rounds:", rounds, file=sys.stderr)
    assert not complaints, "\n".join(complaints[:40])
    assert len(rounds) == PROCESSES
    state = tree_state(copy)
    mount_copy.unmount(copy)  # looks into the daemon's log
    shown = _as_overlayfs_shows_it(mount_copy, template, upper, tmp_path / "overlay")
    mount_copy(source, copy, *options)
    different = _differences(state, tree_state(copy))
    assert not different, f"after the remount:\n{different}"
    different = _differences(_comparable(state), _comparable(shown))
    assert not different, f"as overlayfs shows it:\n{different}"
    assert _with_ctimes(source) == before
    assert _with_ctimes(template) == sealed


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


def test_acl_that_is_not_there_can_be_removed(mount_copy: MountCopy, xfs: Path) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.removexattr(copy / "small", name)
        os.removexattr(copy / "a", name)


def test_chown_to_nobody_takes_setuid_away(mount_copy: MountCopy, xfs: Path) -> None:
    copy = mount_copy(make_source(xfs / "source"), None, SHARE_MIN)
    (copy / "small").chmod(0o6755)
    os.chown(copy / "small", -1, -1)
    assert (copy / "small").stat().st_mode & 0o7777 == 0o755


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
    before = _with_ctimes(template)
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
    assert _with_ctimes(template) == before
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
