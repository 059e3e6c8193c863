"""Walks that change mode or owner of every file: answered in the channel, and as XFS would have it.

effort.py goes on longer, with other walks.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cowfs.system import ondisk
from integration.command import cowfs, run
from integration.effort import EFFORT, SEED
from integration.mounts import MountCopy
from integration.oracle import Oracle
from integration.overlay.test_touched import drop_pages, pages
from integration.trees import MIB, differences, make_model, tree_state

SECONDS = 4.0 * EFFORT

SETATTR = 4
DIRECTORIES, FILES = 4, 60

# Where the ledger of layout 3 has the counters, and the size of one (`struct counter`).
_COUNTERS_AT, _COUNTER = 8992, struct.Struct("=QQQQQ")

# CLOCK_REALTIME_COARSE, from which file systems take their times.
_COARSE = 5


def make_files(path: Path) -> Path:
    path.mkdir()
    for directory in range(DIRECTORIES):
        (path / f"d{directory}").mkdir()
        for number in range(FILES):
            (path / f"d{directory}" / f"f{number}").write_text(f"{directory} {number}\n" * 10)
    return path


@pytest.fixture
def source(xfs: Path) -> Path:
    return make_files(xfs / "source")


def answered(mounts: MountCopy, copy: Path, opcode: int = SETATTR) -> tuple[int, int]:
    """How many requests of a kind came, and how many of them the channel answered by itself."""
    descriptors = Path("/proc") / str(mounts.daemon_pid(copy)) / "fd"
    [ledger] = [fd for fd in descriptors.iterdir() if "cowfs-ledger" in os.readlink(fd)]
    with ledger.open("rb") as file:
        words = os.pread(file.fileno(), _COUNTER.size, _COUNTERS_AT + opcode * _COUNTER.size)
    count, _errors, here, _total, _longest = _COUNTER.unpack(words)
    return count, here


def below(root: Path) -> Iterator[Path]:
    """Every path in the order of names, a directory after what is in it."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from below(path)
        yield path


def fs_group(root: Path) -> None:
    """What the kubelet does to a volume for fsGroup."""
    for path in (*below(root), root):
        st = path.lstat()
        os.lchown(path, -1, 100)
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(st.st_mode) | (0o2070 if path.is_dir() else 0o060))


def numbers(root: Path) -> dict[Path, int]:
    return {path.relative_to(root): path.lstat().st_ino for path in below(root)}


@pytest.mark.parametrize("make", [make_files, make_model])
def test_a_walk_comes_out_as_on_xfs(
    mount_copy: MountCopy, xfs: Path, make: Callable[[Path], Path]
) -> None:
    source = make(xfs / "source")
    copy = mount_copy(source)
    oracle = Oracle.beside(copy, source, xfs / "native")
    before = numbers(copy)
    for _ in range(2):
        for root in (copy, oracle.native):
            fs_group(root)
        oracle.assert_same_trees(times=True)
        assert numbers(copy) == before
    count, here = answered(mount_copy, copy)
    assert here > 0.8 * count
    mount_copy.unmount(copy)
    mount_copy(source, copy)
    oracle.assert_same_trees(times=True)
    assert numbers(copy) == before
    fs_group(copy)
    oracle.assert_same_trees(times=True)


def test_the_tools_of_everybody_are_answered_in_the_channel(
    mount_copy: MountCopy, source: Path
) -> None:
    copy = mount_copy(source)
    run("chgrp", "-R", "100", copy)
    run("chmod", "-R", "g+w", copy)
    count, here = answered(mount_copy, copy)
    # Of each directory itself two, and its first file's, and of the first directory's second.
    assert count == 2 * (DIRECTORIES * (FILES + 1) + 1)
    assert count - here <= 3 * DIRECTORIES + 2 + 1
    assert "killed by" not in mount_copy.log(copy)
    for path in below(copy):
        assert (path.stat().st_gid, path.stat().st_mode & 0o020) == (100, 0o020)
    assert numbers(copy) == numbers(copy)


def test_one_file_by_itself_is_no_walk(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source)
    (copy / "d0" / "f0").chmod(0o600)
    assert answered(mount_copy, copy) == (1, 0)
    record = mount_copy.record(copy)
    upper = Path(record["store"]) / "copies" / record["copy"] / "upper"
    for name in ("f1", "f2", "f3"):
        (copy / "d0" / name).chmod(0o600)
    assert answered(mount_copy, copy) == (4, 2)
    assert sorted(os.listdir(upper / "d0")) == ["f0", "f1", "f2", "f3"]  # and nothing else


def unnamed(mounts: MountCopy, copy: Path) -> int:
    """How many files the daemon has open that were made without a name."""
    found = 0
    for fd in (Path("/proc") / str(mounts.daemon_pid(copy)) / "fd").iterdir():
        with suppress(FileNotFoundError):
            found += Path(os.readlink(fd)).name.startswith("#")
    return found


@pytest.mark.parametrize("order", [list, sorted])
def test_clones_are_made_ahead_of_a_walk(
    mount_copy: MountCopy, source: Path, order: Callable[[list[str]], list[str]]
) -> None:
    copy = mount_copy(source)
    names = order(os.listdir(copy / "d0"))
    for name in names[:4]:
        (copy / "d0" / name).chmod(0o600)
    deadline = time.monotonic() + 10
    while unnamed(mount_copy, copy) != 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    record = mount_copy.record(copy)
    upper = Path(record["store"]) / "copies" / record["copy"] / "upper"
    assert sorted(os.listdir(upper / "d0")) == sorted(names[:4])
    for name in names[4:]:
        (copy / "d0" / name).chmod(0o600)
    assert unnamed(mount_copy, copy) == 0


def test_data_stay_shared_and_writes_stay_apart(mount_copy: MountCopy, xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir()
    weights = b"weights!" * (4 * MIB // 8)
    for number in range(4):
        (source / f"w{number}").write_bytes(weights)
    copy = mount_copy(source)
    for path in sorted(copy.iterdir()):
        os.chown(path, -1, 100)
        path.chmod(0o664)
    assert answered(mount_copy, copy) == (8, 6)
    record = mount_copy.record(copy)
    store = Path(record["store"])
    upper = store / "copies" / record["copy"] / "upper"
    lower = store / "templates" / record["template"] / "tree"
    for name in ("w1", "w3"):
        mark = ondisk.get_shared_data(os.fsencode(upper / name))
        assert mark == ((lower / name).stat().st_mtime_ns, os.fsencode(name))
        for file in (upper / name, lower / name):
            drop_pages(file)
        assert (copy / name).read_bytes() == weights
        assert pages(upper / name) == 0
    with (copy / "w3").open("r+b") as file:
        file.write(b"trained!")
        (copy / "w3").chmod(0o600)
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    assert (copy / "w3").read_bytes() == b"trained!" + weights[8:]
    assert (lower / "w3").read_bytes() == weights
    (copy / "w3").chmod(0o640)
    (copy / "w3").write_bytes(b"short")
    assert (copy / "w3").stat().st_size == 5
    assert (copy / "w3").stat().st_mode & 0o777 == 0o640


def test_who_has_a_file_open_goes_on(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source)
    for number in range(FILES):
        path = copy / "d0" / f"f{number}"
        with path.open("rb") as before:
            path.chmod(0o640)
            with path.open("rb") as after:
                assert before.read() == after.read() == (source / "d0" / path.name).read_bytes()
                assert os.path.sameopenfile(before.fileno(), after.fileno())
                path.chmod(0o600)
                assert os.fstat(before.fileno()).st_mode & 0o777 == 0o600
                path.unlink()
                os.fchmod(before.fileno(), 0o644)
                assert os.fstat(after.fileno()).st_mode & 0o777 == 0o644
                assert os.fstat(after.fileno()).st_nlink == 0
    assert list((copy / "d0").iterdir()) == []


def as_user(*command: object) -> None:
    """By an ordinary user; what it is refused does not matter here."""
    subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--groups=1000,2000", "--", *map(str, command)],
        check=False,
        capture_output=True,
        timeout=60,
    )


def test_setuid_and_setgid_go_and_stay_as_on_xfs(mount_copy: MountCopy, xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir()
    for mode in (0o4755, 0o2755, 0o6755, 0o2644, 0o6644, 0o4711, 0o644):
        for number in range(4):
            path = source / f"{mode:o}-{number}"
            path.write_text("x")
            os.chown(path, 1000, 1000)
            path.chmod(mode)
    copy = mount_copy(source, None, "suid")
    oracle = Oracle.beside(copy, source, xfs / "native")

    def change(root: Path) -> None:
        root.chmod(0o777)
        for path in sorted(root.iterdir()):
            number = int(path.name[-1])
            if number == 0:
                os.chown(path, -1, 100)
            elif number == 1:
                path.chmod(stat.S_IMODE(path.stat().st_mode) ^ 0o6010)
            elif number == 2:
                as_user("chgrp", "2000", path)
                as_user("chmod", "6751", path)
            else:
                os.chown(path, 0, -1)
                as_user("chmod", "600", path)
                os.chown(path, 1000, -1)
                as_user("chmod", "g+s", path)

    for _ in range(2):
        oracle.same(change)
        oracle.assert_same_trees(times=True)
    assert answered(mount_copy, copy)[1] > 20


def test_what_is_no_plain_file_is_changed_too(mount_copy: MountCopy, xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir()
    for number in range(12):
        (source / f"{number}plain").write_text("plain")
        (source / f"{number}tagged").write_text("tagged")
        os.setxattr(source / f"{number}tagged", "user.tag", b"value")
        (source / f"{number}linked").write_text("linked")
        (source / f"{number}second").hardlink_to(source / f"{number}linked")
        (source / f"{number}symlink").symlink_to(f"{number}plain")
        os.mkfifo(source / f"{number}fifo")
        (source / f"{number}directory").mkdir()
    copy = mount_copy(source)
    oracle = Oracle.beside(copy, source, xfs / "native")

    def change(root: Path) -> None:
        fs_group(root)
        for number in range(0, 12, 3):
            (root / f"{number}plain").rename(root / f"{number}tagged")
            (root / f"{number + 1}third").hardlink_to(root / f"{number + 1}plain")
            (root / f"{number + 2}plain").unlink()
            (root / f"{number + 2}plain").write_text("another")
        for path in sorted(root.iterdir()):
            if not path.is_symlink():
                path.chmod(0o700)

    oracle.same(change)
    assert answered(mount_copy, copy)[1] > 0


def test_names_that_move_take_their_changes_along(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source)
    oracle = Oracle.beside(copy, source, source.parent / "native")

    def change(root: Path) -> None:
        fs_group(root)
        (root / "d0").rename(root / "moved")
        for number in range(FILES):
            (root / "moved" / f"f{number}").chmod(0o604)
        for number in range(0, FILES, 2):
            one, other = root / "moved" / f"f{number}", root / "moved" / f"f{number + 1}"
            one.rename(other)
            other.chmod(0o640)
            one.write_text("in its old place")
            one.chmod(0o600)
        for number in range(FILES):
            (root / "d1" / f"f{number}").unlink()
        (root / "d1").rmdir()
        (root / "d1").mkdir()
        for number in range(FILES):
            (root / "d1" / f"f{number}").write_text("new")
            (root / "d1" / f"f{number}").chmod(0o620)

    oracle.same(change)


def test_a_killed_daemon_is_not_noticed_by_a_walk(mount_plain: MountCopy, source: Path) -> None:
    copy = mount_plain(source)
    oracle = Oracle.beside(copy, source, source.parent / "native")
    fs_group(oracle.native)
    before = numbers(copy)
    walk = subprocess.Popen(
        [sys.executable, "-c", _WALK, str(copy)], cwd=Path(__file__).parent.parent.parent
    )
    try:
        pid = mount_plain.daemon_pid(copy)
        for number in range(3):
            time.sleep(0.05 + 0.03 * number)
            os.kill(pid, signal.SIGKILL)
            pid = mount_plain.wait_until_served(copy, other_than=pid)
        assert walk.wait(60) == 0
    finally:
        walk.kill()
        walk.wait()
    oracle.assert_same_trees()
    paths = [path.relative_to(copy) for path in copy.rglob("*")]
    assert paths
    for path in paths:
        assert (copy / path).lstat().st_mtime_ns == (oracle.native / path).lstat().st_mtime_ns, path
    assert numbers(copy) == before


# Some rounds of the same, so that a kill meets one.
_WALK = """
import sys
from pathlib import Path
from integration.overlay.test_touching import fs_group
for _ in range(5):
    fs_group(Path(sys.argv[1]))
"""


def own_files(root: Path, number: int, rounds: int, rng: random.Random) -> list[str]:
    """Change files that no other process changes, in directories where all of them do."""
    complaints = []
    paths = [
        root / f"d{directory}" / f"f{file}"
        for directory in range(DIRECTORIES)
        for file in range(number, FILES, 3)
    ]
    spare = 0
    for _ in range(rounds):
        at = rng.randrange(len(paths))
        path = paths[at]
        action = rng.choice(["chmod"] * 4 + ["chown"] * 4 + ["rename", "unlink", "write", "tag"])
        before = path.stat()
        mode, gid = stat.S_IMODE(before.st_mode), before.st_gid
        if action == "chmod":
            mode = rng.choice((0o600, 0o640, 0o664, 0o755))
            path.chmod(mode)
        elif action == "chown":
            gid = rng.choice((0, 100, 200))
            os.chown(path, -1, gid)
        elif action == "rename":
            spare += 1
            paths[at] = path.rename(path.with_name(f"own{number}-{spare}"))
        elif action == "unlink":
            path.unlink()
            path.write_text("new")
            mode, gid = stat.S_IMODE(path.stat().st_mode), path.stat().st_gid
        elif action == "write":
            with path.open("ab") as file:
                file.write(b"more")
        else:
            os.setxattr(path, "user.tag", b"%d" % rng.randrange(100))
        now = paths[at].stat()
        if (stat.S_IMODE(now.st_mode), now.st_gid) != (mode, gid):
            complaints.append(f"{action} {path}: {now}, not {mode:o} {gid}")
        if action != "unlink" and now.st_ino != before.st_ino:
            complaints.append(f"{action} {path}: another st_ino")
    return complaints


def looked_at(root: Path, ends: float, rng: random.Random) -> list[str]:
    """Look at everything; who is looked at need not be there."""
    while time.monotonic() < ends:
        directory = root / f"d{rng.randrange(DIRECTORIES)}"
        for name in os.listdir(directory):
            try:
                (directory / name).stat()
                if rng.random() < 0.2:
                    (directory / name).read_bytes()
            except FileNotFoundError:
                pass
        if rng.random() < 0.1:
            Path("/proc/sys/vm/drop_caches").write_text("2")
    return []


def at_once(*jobs: Callable[[], list[str]]) -> list[str]:
    """Each in a process of its own; gives what they complain of."""
    processes = []
    for job in jobs:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                complaints = job()
            except BaseException:
                complaints = [traceback.format_exc()]
            os.write(writing, "\n".join(complaints)[:60000].encode())
            os._exit(0)
        os.close(writing)
        processes.append((pid, reading))
    complaints = []
    for pid, reading in processes:
        with open(reading, "rb") as pipe:
            complaints += pipe.read().decode().splitlines()
        os.waitpid(pid, 0)
    return complaints


def test_many_change_the_files_of_a_directory_at_once(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source)
    oracle = Oracle.beside(copy, source, source.parent / "native")
    ends, rounds = time.monotonic() + SECONDS, int(100 * SECONDS)

    def changing(root: Path, number: int) -> Callable[[], list[str]]:
        return lambda: own_files(root, number, rounds, random.Random(f"{SEED} {number}"))

    looking = [lambda n=n: looked_at(copy, ends, random.Random(f"{SEED} {n}")) for n in (8, 9)]
    complaints = at_once(*(changing(copy, number) for number in range(3)), *looking)
    assert not complaints, "\n".join(complaints)
    assert at_once(*(changing(oracle.native, number) for number in range(3))) == []
    oracle.assert_same_trees()
    count, here = answered(mount_copy, copy)
    assert 0 < here < count
    assert "killed by" not in mount_copy.log(copy)
    state, record = tree_state(copy), mount_copy.record(copy)
    mount_copy.unmount(copy)
    cowfs("check", "--store", record["store"], record["copy"])  # it exits with 0
    mount_copy(source, copy)
    assert not differences(state, tree_state(copy))


def test_a_copy_up_beside_a_change_does_not_turn_the_time_back(
    mount_copy: MountCopy, xfs: Path
) -> None:
    source = xfs / "source"
    source.mkdir()
    for number in range(2000):
        (source / f"f{number}").touch()
    os.utime(source, (1_000_000_000, 1_000_000_000))
    copy = mount_copy(source)

    def touch() -> list[str]:
        for number in range(2000):
            (copy / f"f{number}").chmod(0o600)
        return []

    def create() -> list[str]:
        complaints = []
        for number in range(500):
            began = time.clock_gettime_ns(_COARSE)
            (copy / "new").touch()
            if copy.stat().st_mtime_ns < began:
                complaints.append(f"after {number} files: {copy.stat()}")
            (copy / "new").unlink()
            os.utime(copy, (1_000_000_000, 1_000_000_000))
            if copy.stat().st_mtime != 1_000_000_000:
                complaints.append(f"after {number} times: {copy.stat()}")
        return complaints

    complaints = at_once(touch, create)
    assert not complaints, "\n".join(complaints)
    assert answered(mount_copy, copy)[1] > 1500


def test_a_mount_for_reading_alone_stays_as_it_is(mount_copy: MountCopy, source: Path) -> None:
    copy = mount_copy(source, None, "ro")
    for number in range(4):
        with pytest.raises(OSError, match="Read-only"):
            (copy / "d0" / f"f{number}").chmod(0o600)
    assert answered(mount_copy, copy) == (0, 0)
