"""A large file is written beside a reader that keeps its bytes: who sees what, and by which number.

The file that the reader has and the one that was written are two files from then on, as after an
atomic replace. Here is what must hold for names, numbers, bind mounts, links of /proc, watches and
locks; docs/semantics.md lists what differs from XFS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.command import cowfs, run
from integration.mounts import MountCopy
from integration.trees import MIB
from integration.volumes import unmount

SIZE = 2 * MIB
OLD, NEW = b"old!" * (SIZE // 4), b"new!" * (SIZE // 4)


@pytest.fixture
def source(xfs: Path) -> Path:
    path = xfs / "source"
    path.mkdir()
    (path / "weights.bin").write_bytes(OLD)
    return path


@pytest.fixture
def weights(mount_copy: MountCopy, source: Path) -> Path:
    return mount_copy(source) / "weights.bin"


@pytest.fixture
def passed(mount_plain: MountCopy, source: Path) -> Path:
    """The same in a copy in which it is passed through, and so replaced."""
    return mount_plain(source, None, "passthrough=on") / "weights.bin"


def write(path: Path, data: bytes = NEW) -> None:
    with path.open("r+b", buffering=0) as file:
        assert file.write(data) == len(data)


@contextlib.contextmanager
def bound(path: Path, at: Path) -> Iterator[Path]:
    """A bind mount of one file, as a container gets it."""
    at.touch()
    run("mount", "--bind", path, at)
    try:
        yield at
    finally:
        unmount(at)


# --- numbers --------------------------------------------------------------------------------------


def test_both_files_are_told_apart_as_long_as_they_live(passed: Path) -> None:
    number = passed.stat().st_ino
    with passed.open("rb") as reader:
        write(passed)
        with passed.open("rb") as later:
            assert not os.path.sameopenfile(reader.fileno(), later.fileno())
            assert os.fstat(later.fileno()).st_ino == passed.stat().st_ino != number
        assert os.fstat(reader.fileno()).st_ino == number
        listed = {entry.name: entry.inode() for entry in os.scandir(passed.parent)}
        assert listed["weights.bin"] == passed.stat().st_ino
        assert reader.read() == OLD


def test_the_new_number_stays(mount_plain: MountCopy, source: Path) -> None:
    copy = mount_plain(source, None, "passthrough=on")
    path = copy / "weights.bin"
    with path.open("rb") as reader:
        write(path)
        number = path.stat().st_ino
        pid = mount_plain.daemon_pid(copy)
        os.kill(pid, signal.SIGKILL)
        mount_plain.wait_until_served(copy, other_than=pid)
        assert path.stat().st_ino == number
        assert reader.read() == OLD
    write(path, b"again")
    path.chmod(0o600)
    assert path.stat().st_ino == number
    record = mount_plain.record(copy)
    mount_plain.unmount(copy)
    cowfs("check", "--store", record["store"], record["copy"])
    mount_plain(source, copy)
    assert path.stat().st_ino == number
    assert path.read_bytes() == b"again" + NEW[5:]


def test_a_file_without_readers_keeps_its_number(weights: Path) -> None:
    number = weights.stat().st_ino
    write(weights)
    assert weights.stat().st_ino == number


def test_every_name_leads_to_the_file_that_was_written(passed: Path) -> None:
    second, third = passed.with_name("second"), passed.with_name("third")
    with passed.open("rb") as reader:
        second.hardlink_to(passed)
        write(second)
        third.hardlink_to(passed)
        assert {path.stat().st_ino for path in (passed, second, third)} == {third.stat().st_ino}
        assert [path.stat().st_nlink for path in (passed, second, third)] == [3, 3, 3]
        assert [path.read_bytes() for path in (passed, second, third)] == [NEW] * 3
        assert reader.read() == OLD


def test_tail_follows_by_name_over_the_replacement(passed: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with (
        output.open("wb") as out,
        subprocess.Popen(["tail", "-c", "4", "-F", passed], stdout=out, stderr=out) as tail,
    ):
        try:
            _wait_for(output, "old!")
            write(passed, NEW + b"the end")
            _wait_for(output, "the end")
        finally:
            tail.kill()


def _wait_for(path: Path, text: str, patience: float = 30) -> None:
    run(
        "timeout",
        str(patience),
        "sh",
        "-c",
        'until grep -q "$0" "$1"; do sleep 0.1; done',
        text,
        path,
    )


# --- who has no name to look up -------------------------------------------------------------------


def test_a_bind_mount_of_the_file_is_served(weights: Path, tmp_path: Path) -> None:
    with bound(weights, tmp_path / "bound") as at:
        with at.open("rb") as reader:
            assert reader.read(4) == b"old!"
            write(weights)
            with at.open("rb") as later:
                assert later.read() in (OLD, NEW)  # what the reader has, as long as it has it
        assert at.read_bytes() == NEW
        assert at.stat().st_size == SIZE
        write(at, b"more")
        assert weights.read_bytes()[:4] == b"more"
        os.truncate(at, 100)
        assert weights.stat().st_size == at.stat().st_size == 100
        write(weights, b"most")
        assert at.read_bytes()[:4] == b"most"


def test_a_writer_at_a_bind_mount_waits_for_its_readers(passed: Path, tmp_path: Path) -> None:
    with bound(passed, tmp_path / "bound") as at:
        with at.open("rb") as reader:
            for _ in range(3):
                with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
                    at.open("r+b")
            os.truncate(at, SIZE // 2)
            at.chmod(0o600)
            assert passed.stat().st_size == SIZE // 2
            assert passed.stat().st_mode & 0o777 == at.stat().st_mode & 0o777 == 0o600
            assert reader.read() == OLD
        write(at, b"more")
        assert passed.read_bytes() == at.read_bytes() == b"more" + OLD[4 : SIZE // 2]


def test_a_bind_mount_of_the_file_outlives_a_daemon(
    mount_plain: MountCopy, source: Path, tmp_path: Path
) -> None:
    copy = mount_plain(source, None, "passthrough=on")
    path = copy / "weights.bin"
    with bound(path, tmp_path / "bound") as at:
        with at.open("rb") as reader:
            write(path)
            for _ in range(2):
                pid = mount_plain.daemon_pid(copy)
                os.kill(pid, signal.SIGKILL)
                mount_plain.wait_until_served(copy, other_than=pid)
                assert reader.read(4) == at.read_bytes()[:4] == b"old!"
                reader.seek(0)
        with at.open("r+b", buffering=0) as writer:
            writer.write(b"more")
            pid = mount_plain.daemon_pid(copy)
            os.kill(pid, signal.SIGKILL)
            mount_plain.wait_until_served(copy, other_than=pid)
            writer.write(b"most")
            assert os.fstat(writer.fileno()).st_size == SIZE
        assert at.read_bytes() == path.read_bytes() == b"moremost" + NEW[8:]


def test_a_link_of_proc_leads_to_the_same_bytes(weights: Path) -> None:
    with weights.open("rb") as reader:
        write(weights)
        with open(f"/proc/self/fd/{reader.fileno()}", "rb") as again:
            assert again.read() == reader.read()


def test_a_file_handle_is_served(weights: Path) -> None:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()
    named = _LIBC.name_to_handle_at(
        _AT_FDCWD, os.fsencode(weights), handle, ctypes.byref(mount_id), 0
    )
    assert named == 0, os.strerror(ctypes.get_errno())
    directory = os.open(weights.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with weights.open("rb") as reader:
            write(weights)
            fd = _LIBC.open_by_handle_at(directory, handle, os.O_RDONLY)
            assert fd >= 0, os.strerror(ctypes.get_errno())
            assert os.pread(fd, SIZE, 0) == reader.read()
            os.close(fd)
    finally:
        os.close(directory)


_AT_FDCWD = -100
_LIBC = ctypes.CDLL(None, use_errno=True)


def test_a_removed_file_keeps_its_bytes_and_number_for_its_readers(passed: Path) -> None:
    number = passed.stat().st_ino
    with passed.open("rb") as reader:
        passed.unlink()
        link = f"/proc/self/fd/{reader.fileno()}"
        with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
            os.open(link, os.O_RDWR)
        assert reader.read() == OLD
        assert os.fstat(reader.fileno()).st_ino == number


# --- who watches, locks and leases ----------------------------------------------------------------

MODIFY, CLOSE_WRITE = 0x2, 0x8  # the same bits in inotify(7) and fanotify(7)
_FAN_ON_CHILD = 0x08000000
_FAN_EVENT = struct.Struct("IBBHQii")


class Inotify:
    """Watches one file, or directory."""

    def __init__(self, path: Path) -> None:
        self.fd = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = MODIFY | CLOSE_WRITE
        assert _LIBC.inotify_add_watch(self.fd, os.fsencode(path), mask) > 0

    def events(self) -> int:
        """The bits of all events that wait to be read."""
        found = 0
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, 65536)
            while data:
                _watch, mask, _cookie, length = struct.unpack_from("iIII", data)
                found |= mask
                data = data[16 + length :]
        return found


class Fanotify:
    """The same, with a descriptor of the file in each event."""

    _WHAT = 0x1  # FAN_MARK_ADD

    def __init__(self, path: Path) -> None:
        self.fd = _LIBC.fanotify_init(0x3, os.O_RDONLY | os.O_LARGEFILE)  # CLOEXEC, NONBLOCK
        mask = ctypes.c_uint64(MODIFY | CLOSE_WRITE | (_FAN_ON_CHILD if path.is_dir() else 0))
        what = ctypes.c_uint(self._WHAT)
        assert _LIBC.fanotify_mark(self.fd, what, mask, -100, os.fsencode(path)) == 0

    def events(self) -> int:
        found = 0
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, 65536)
            while data:
                length, _, _, _, mask, file, _pid = _FAN_EVENT.unpack_from(data)
                assert os.pread(file, 4, 0) == NEW[:4]
                os.close(file)
                found |= mask
                data = data[length:]
        return found


class FanotifyMount(Fanotify):
    """Of the whole mount."""

    _WHAT = 0x1 | 0x10  # FAN_MARK_MOUNT


Watch = type[Inotify] | type[Fanotify]


@contextlib.contextmanager
def watch(kind: Watch, path: Path) -> Iterator[Inotify | Fanotify]:
    watching = kind(path)
    try:
        yield watching
    finally:
        os.close(watching.fd)


@pytest.mark.parametrize("kind", [Inotify, Fanotify, FanotifyMount])
def test_a_watch_of_the_directory_tells_of_every_write(weights: Path, kind: Watch) -> None:
    with weights.open("rb"), watch(kind, weights.parent) as watching:
        write(weights)
        assert watching.events() == MODIFY | CLOSE_WRITE


@pytest.mark.parametrize("kind", [Inotify, Fanotify, FanotifyMount])
def test_a_watch_of_a_file_without_readers_tells_of_every_write(weights: Path, kind: Watch) -> None:
    with watch(kind, weights) as watching:
        write(weights)
        assert watching.events() == MODIFY | CLOSE_WRITE


@pytest.mark.parametrize("kind", ["flock", "posix", "ofd"])
def test_a_lock_is_kept_for_whoever_opened_before_it(weights: Path, kind: str) -> None:
    def lock(fd: int, how: int) -> None:
        if kind == "flock":
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        else:
            # struct flock; F_OFD_SETLK has no name in Python
            request = struct.pack("hhqqi4x", _TYPES[how], os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(fd, fcntl.F_SETLK if kind == "posix" else 37, request)

    with weights.open("r+b") as holder:
        lock(holder.fileno(), fcntl.LOCK_EX)
        pid = os.fork()
        if pid == 0:
            with weights.open("r+b") as other:
                try:
                    lock(other.fileno(), fcntl.LOCK_EX)
                except BlockingIOError:
                    os._exit(7)
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


_TYPES = {fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_SH: fcntl.F_RDLCK}


def test_a_read_lease_is_what_the_kernel_says_of_fuse(weights: Path) -> None:
    """FUSE has no leases of its own, and the kernel keeps them for the inode that is open."""
    with weights.open("rb") as reader:
        fcntl.fcntl(reader.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert fcntl.fcntl(reader.fileno(), fcntl.F_GETLEASE) == fcntl.F_RDLCK
