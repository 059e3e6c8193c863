"""Data that the disk has lost is told to everybody who has the file open, as XFS tells it.

Each scenario is played on plain XFS and in a copy on the same disk. XFS tells an error of writeback
once to every open file description that was there before it was first told (errseq_t, fsync(2));
close(2) says nothing.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.failingdisk import FailingDisk
from integration.mounts import MountCopy

BLOCK = 256 << 10
#: Where the next write goes: to blocks that nobody has written yet.
SIZE = 4 * BLOCK

LOST = "ENOSPC"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(tmp_path / "memory")
    yield disk
    disk.remove()


def say(call: Callable[..., object], *args: object) -> str:
    """What a call comes to: "done", or the name of its errno."""
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


class Play:
    """One scenario in one directory: what it opens is closed at its end."""

    def __init__(self, directory: Path, disk: FailingDisk) -> None:
        self.directory = directory
        self.path = directory / "file"
        self.disk = disk
        self._fds: list[int] = []

    def open(self, flags: int = os.O_RDWR, path: str | Path | None = None) -> int:
        fd = os.open(path or self.path, flags | os.O_CLOEXEC, 0o600)
        self._fds.append(fd)
        return fd

    def close(self, fd: int) -> str:
        self._fds.remove(fd)
        return say(os.close, fd)

    def lose(self, fd: int) -> None:
        """Write through *fd* what the disk will lose; nobody has been told when this returns."""
        self.disk.fail()
        end = os.fstat(fd).st_size
        assert os.pwrite(fd, b"x" * BLOCK, end) == BLOCK
        self.disk.write_back()
        self.disk.mend()

    def map(self, fd: int) -> mmap.mmap:
        return mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def end(self) -> None:
        self.disk.mend()
        for fd in self._fds:
            os.close(fd)


def sync(*fds: int) -> list[str]:
    return [say(os.fsync, fd) for fd in fds]


# --- the scenarios; each returns what users were told ---------------------------------------------


def two_descriptors(play: Play) -> list[str]:
    first, second = play.open(), play.open()
    play.lose(first)
    return sync(first, second, first, second)


def three_descriptors_and_the_disk_fails_as_they_sync(play: Play) -> list[str]:
    fds = [play.open() for _ in range(3)]
    play.disk.fail()
    for fd in fds:
        os.pwrite(fd, b"y" * BLOCK, SIZE + fd * BLOCK)
    return [say(os.fdatasync, fd) for fd in fds] + sync(*fds)


def one_error_after_the_other(play: Play) -> list[str]:
    first, second = play.open(), play.open()
    said = []
    for _ in range(3):
        play.lose(first)
        said += sync(first, first)
    return said + sync(second, second)


def opener_after_the_report(play: Play) -> list[str]:
    first, second = play.open(), play.open()
    play.lose(second)
    said = sync(first)
    late = play.open()
    said += sync(late, second, late)
    play.lose(late)
    return said + sync(first, second, late)


def opener_after_the_loss_and_before_the_report(play: Play) -> list[str]:
    first = play.open()
    play.lose(first)
    late = play.open(os.O_RDONLY)
    return sync(late, first, late, first)


def nobody_was_told_before_the_last_close(play: Play) -> list[str]:
    first = play.open()
    play.lose(first)
    said = play.close(first)
    second = play.open()
    return [said, *sync(second, second)]


def readers(play: Play) -> list[str]:
    writer = play.open(os.O_WRONLY)
    reader, another = play.open(os.O_RDONLY), play.open(os.O_RDONLY)
    play.lose(writer)
    return sync(reader, writer, another, reader, writer, another)


def readers_before_the_first_writer(play: Play) -> list[str]:
    """Of a small file, which is the copy's own for them too from then on."""
    small = play.directory / "small"
    readers = [play.open(os.O_RDONLY, small) for _ in range(2)]
    writer = play.open(path=small)
    play.lose(writer)
    return sync(writer, *readers) + sync(writer, *readers)


def descriptors_that_share_a_description(play: Play) -> list[str]:
    first = play.open()
    same, second = os.dup(first), play.open()
    try:
        play.lose(first)
        return sync(same, first, second)
    finally:
        os.close(same)


def synchronous(flag: int) -> Callable[[Play], list[str]]:
    def write(play: Play) -> list[str]:
        writer, other = play.open(os.O_RDWR | flag), play.open()
        play.disk.fail()
        said = [say(os.pwrite, writer, b"z" * BLOCK, SIZE)]
        play.disk.mend()
        said += [say(os.pwrite, writer, b"z" * BLOCK, 2 * SIZE)]
        return said + sync(other, other)

    return write


def one_synchronous_write(play: Play) -> list[str]:
    writer, other = play.open(), play.open()
    play.disk.fail()
    said = [say(os.pwritev, writer, [b"z" * BLOCK], SIZE, os.RWF_DSYNC)]
    play.disk.mend()
    return said + sync(other, other)


def mapping_that_is_synced(play: Play) -> list[str]:
    writer, other = play.open(), play.open()
    os.truncate(writer, 2 * SIZE)
    with play.map(writer) as shared:
        play.disk.fail()
        shared[:] = b"m" * SIZE
        said = [say(shared.flush)]
        play.disk.mend()
        return said + sync(other, other) + [say(shared.flush)]


def mapping_whose_descriptor_is_synced(play: Play) -> list[str]:
    writer, other = play.open(), play.open()
    with play.map(writer) as shared:
        play.disk.fail()
        shared[:] = b"m" * SIZE
        said = sync(writer, other)
        play.disk.mend()
        return said + sync(writer, other)


def copied_range(play: Play) -> list[str]:
    source, first, second = play.open(path=play.directory / "second name"), play.open(), play.open()
    play.disk.fail()
    os.copy_file_range(source, first, BLOCK, 1, SIZE + 3)  # no whole blocks: nothing to share
    said = sync(second, first, second, first)
    play.disk.mend()
    return said


def preallocated(play: Play) -> list[str]:
    first, second = play.open(), play.open()
    os.posix_fallocate(first, SIZE, SIZE)
    play.disk.fail()
    os.pwrite(first, b"p" * BLOCK, SIZE)
    said = sync(second, first, second, first)
    play.disk.mend()
    return said


def file_without_a_name(play: Play) -> list[str]:
    first = play.open(os.O_RDWR | os.O_TMPFILE, play.directory)
    second = play.open(path=f"/proc/self/fd/{first}")
    play.lose(first)
    return sync(second, first, second, first)


def file_that_loses_its_name(play: Play) -> list[str]:
    first, second = play.open(), play.open()
    play.lose(second)
    play.path.unlink()
    return sync(second, first, second, first)


def two_names(play: Play) -> list[str]:
    first, second = play.open(), play.open(path=play.directory / "linked")
    play.lose(second)
    return sync(first, second, first, second)


def new_file(play: Play) -> list[str]:
    new = play.directory / "new"
    first = play.open(os.O_RDWR | os.O_CREAT | os.O_EXCL, new)
    second = play.open(path=new)
    play.lose(first)
    return sync(second, first, second, first)


def two_at_once(play: Play) -> list[str]:
    fds = [play.open() for _ in range(4)]
    said: list[str] = []
    for _ in range(5):
        play.disk.fail()
        os.pwrite(fds[0], b"t" * BLOCK, os.fstat(fds[0]).st_size)
        threads = [threading.Thread(target=lambda fd=fd: said.extend(sync(fd))) for fd in fds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        play.disk.mend()
    return said


def closed(play: Play) -> list[str]:
    first, second = play.open(), play.open()
    play.lose(first)
    return [play.close(first), *sync(second)]


SCENARIOS = [
    two_descriptors,
    three_descriptors_and_the_disk_fails_as_they_sync,
    one_error_after_the_other,
    opener_after_the_report,
    opener_after_the_loss_and_before_the_report,
    nobody_was_told_before_the_last_close,
    readers,
    readers_before_the_first_writer,
    descriptors_that_share_a_description,
    pytest.param(synchronous(os.O_SYNC), id="O_SYNC"),
    pytest.param(synchronous(os.O_DSYNC), id="O_DSYNC"),
    one_synchronous_write,
    mapping_that_is_synced,
    mapping_whose_descriptor_is_synced,
    copied_range,
    preallocated,
    file_without_a_name,
    file_that_loses_its_name,
    two_names,
    new_file,
    two_at_once,
    closed,
]


def make_source(disk: FailingDisk) -> Path:
    source = disk.mountpoint / "source"
    source.mkdir()
    for name in ("file", "second name"):
        (source / name).write_bytes(os.urandom(SIZE))
    (source / "small").write_bytes(b"small")
    (source / "linked").hardlink_to(source / "file")
    return source


@contextlib.contextmanager
def played(directory: Path, disk: FailingDisk) -> Iterator[Play]:
    play = Play(directory, disk)
    try:
        yield play
    finally:
        play.end()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lost_data_is_told_to_everybody_who_is_told_on_xfs(
    disk: FailingDisk, mount_copy: MountCopy, scenario: Callable[[Play], list[str]]
) -> None:
    source = make_source(disk)
    native = disk.mountpoint / "native"
    subprocess.run(["cp", "-a", "--reflink=always", source, native], check=True)
    root = mount_copy(source)
    with played(native, disk) as play:
        expected = scenario(play)
    assert LOST in expected, "the disk has lost nothing"
    with played(root, disk) as play:
        assert scenario(play) == expected


def test_mount_with_sync_tells_the_writer_at_once(disk: FailingDisk, mount_copy: MountCopy) -> None:
    root = mount_copy(make_source(disk), None, "sync")
    with played(root, disk) as play:
        writer, other = play.open(), play.open()
        play.disk.fail()
        assert say(os.pwrite, writer, b"s" * BLOCK, SIZE) == LOST
        play.disk.mend()
        assert sync(other, other, writer) == [LOST, "done", "done"]


# --- over a kill ----------------------------------------------------------------------------------


def kill(mounts: MountCopy, root: Path) -> None:
    """End the daemon; the next one serves when this returns."""
    pid = mounts.wait_until_served(root)
    os.kill(pid, signal.SIGKILL)
    mounts.wait_until_served(root, other_than=pid)


def test_error_that_one_was_told_is_told_to_the_others_after_a_kill(
    disk: FailingDisk, mount_copy: MountCopy
) -> None:
    root = mount_copy(make_source(disk))
    with played(root, disk) as play:
        first, second, reader = play.open(), play.open(), play.open(os.O_RDONLY)
        play.lose(first)
        assert sync(first, first) == [LOST, "done"]
        kill(mount_copy, root)
        assert sync(second, reader) == [LOST, LOST]
        sync(first)  # may be told again
        kill(mount_copy, root)
        play.lose(second)
        late = play.open()
        assert sync(first, second, reader, late) == [LOST] * 4
        assert sync(first, second, reader, late) == ["done"] * 4


def test_error_that_nobody_was_told_survives_a_kill(
    disk: FailingDisk, mount_copy: MountCopy
) -> None:
    root = mount_copy(make_source(disk))
    with played(root, disk) as play:
        first, second, bare = play.open(), play.open(), play.open(os.O_TMPFILE | os.O_RDWR, root)
        play.lose(first)
        play.lose(bare)
        kill(mount_copy, root)
        assert sync(second, first, bare) == [LOST] * 3
        assert sync(second, first, bare) == ["done"] * 3


def test_error_that_the_killed_daemon_had_heard_of_and_not_told_is_told(
    disk: FailingDisk, mount_copy: MountCopy
) -> None:
    """Its fsync(2) has taken the error from the kernel, and it never came to saying so."""
    root = mount_copy(make_source(disk))
    pid = mount_copy.wait_until_served(root)
    with played(root, disk) as play:
        first, second = play.open(), play.open()
        play.lose(first)
        hold = "inject=fsync:delay_exit=20s"
        strace = subprocess.Popen(
            ["strace", "-f", "-p", str(pid), "-e", "trace=fsync", "-e", hold],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.extend(sync(first)))
        thread.start()
        try:
            while "DELAYED" not in (line := strace.stderr.readline()) and line:
                pass
            os.kill(pid, signal.SIGKILL)
            mount_copy.wait_until_served(root, other_than=pid)
        finally:
            strace.kill()
            strace.communicate()
            thread.join()
        assert said == [LOST]
        assert sync(second) == [LOST]


@pytest.mark.parametrize("how", ["msync", "O_SYNC"])
def test_error_that_the_kernel_itself_told_one_is_told_to_the_others_after_a_kill(
    disk: FailingDisk, mount_copy: MountCopy, how: str
) -> None:
    """With passthrough the daemon has not heard of it."""
    root = mount_copy(make_source(disk))
    with played(root, disk) as play:
        first, second = play.open(os.O_RDWR | (os.O_SYNC if how == "O_SYNC" else 0)), play.open()
        if how == "O_SYNC":
            play.disk.fail()
            assert say(os.pwrite, first, b"z" * BLOCK, SIZE) == LOST
        else:
            with play.map(first) as shared:
                play.disk.fail()
                shared[:] = b"m" * SIZE
                assert say(shared.flush) == LOST
        play.disk.mend()
        kill(mount_copy, root)
        assert sync(second) == [LOST]
        assert sync(second) == ["done"]


def test_kill_alone_makes_no_error(disk: FailingDisk, mount_copy: MountCopy) -> None:
    root = mount_copy(make_source(disk))
    with played(root, disk) as play:
        fds = [play.open(), play.open(os.O_RDONLY)]
        for _ in range(3):
            os.pwrite(fds[0], b"k" * BLOCK, os.fstat(fds[0]).st_size)
            kill(mount_copy, root)
            assert sync(*fds) == ["done"] * 2
            time.sleep(1)  # one that ends sooner is replaced after a pause
