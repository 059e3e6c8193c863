"""What one user may do to all others: it costs them no file, no descriptor and no turn."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.command import COWFS, run
from integration.mounts import RECORDS, MountCopy

USER = 1000
PR_SET_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)


def as_user(work: Callable[[], object], *, groups: tuple[int, ...] = ()) -> int:
    """Run `work` in a process of an ordinary user; its errno, or 0."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.setgroups(groups)
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            work()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("groups", [(), (4711,)])
def test_the_name_of_a_thread_is_nobodys_business(
    mount_copy: MountCopy, xfs: Path, groups: tuple[int, ...]
) -> None:
    """Who is in the group keeps setgid, as on XFS, whatever the name of the thread is."""
    source = xfs / "source"
    source.mkdir()
    copy = mount_copy(source)
    files = [root / "file" for root in (copy, source)]
    for file in files:
        file.write_bytes(b"x")
        os.chown(file, 0, 4711)

    def truncate() -> None:
        _libc.prctl(PR_SET_NAME, b"\xff\nGroups:")
        for file in files:
            os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))

    before = descriptors(mount_copy.daemon_pid(copy))
    for _ in range(3):
        for file in files:
            file.chmod(0o2666)
        assert as_user(truncate, groups=groups) == 0
        assert files[0].stat().st_mode == files[1].stat().st_mode
    assert descriptors(mount_copy.daemon_pid(copy)) <= before + 1


def test_pyfuse3_does_not_write_its_stacks_into_the_log(mount_plain: MountCopy, xfs: Path) -> None:
    source = xfs / "source"
    source.mkdir(mode=0o777)
    source.chmod(0o777)
    copy = mount_plain(source)
    said = len(mount_plain.log(copy))
    for root in (source, copy):
        set_it = lambda root=root: os.setxattr(root, "fuse_stacktrace", b"")  # noqa: E731
        assert as_user(set_it) == errno.EOPNOTSUPP
    assert len(mount_plain.log(copy)) == said


DIRECTORIES = 40
#: Few, and no right to raise that.
FEW = 256
CRAMPED = ("setpriv", "--bounding-set=-sys_resource", "prlimit", f"--nofile={FEW}:{FEW}")


@pytest.fixture
def cramped(mount_plain: MountCopy, xfs: Path) -> Path:
    """A copy with files and directories of everybody, whose daemon has few descriptors."""
    source = xfs / "source"
    for directory in range(DIRECTORIES):
        (source / f"d{directory}").mkdir(parents=True)
        (source / f"d{directory}/file").write_bytes(b"file")
        (source / f"d{directory}").chmod(0o777)
    for number in range(FEW):
        (source / f"f{number}").write_bytes(b"f")
    source.chmod(0o777)
    mountpoint = mount_plain.mountpoint()
    run(*CRAMPED, COWFS, "mount", "-o", "engine=fuse", source, mountpoint)
    return mountpoint


def assert_others_are_served(copy: Path) -> None:
    for directory in range(DIRECTORIES):
        assert os.listdir(copy / f"d{directory}") == ["file"]
        assert (copy / f"d{directory}/file").read_bytes() == b"file"
    (copy / "new").write_bytes(b"new")
    (copy / "new").rename(copy / "d0/new")
    (copy / "d0/new").unlink()


@contextmanager
def taken_by_a_user(take: Callable[[int], int]) -> Iterator[int]:
    """While a user holds all that `take(number)` gives him, until ENFILE: how many that were."""
    told, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:

        def take_all() -> None:
            for number in range(FEW):
                try:
                    take(number)
                except OSError as error:
                    os.write(told[1], b"%d %d" % (number, error.errno or 0))
                    break
            os.close(go[1])
            os.read(go[0], 1)

        os._exit(as_user(take_all))
    os.close(told[1])
    try:
        count, _, number = os.read(told[0], 100).partition(b" ")
        assert int(number) == errno.ENFILE
        yield int(count)
    finally:
        os.write(go[1], b"x")
        for fd in (told[0], *go):
            os.close(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0


def test_who_has_too_many_files_open_is_told_and_nobody_else(
    cramped: Path, mount_plain: MountCopy
) -> None:
    log = RECORDS / f"{mount_plain.record(cramped)['device']}.log"
    assert f"only {FEW} descriptors" in log.read_text()
    with taken_by_a_user(lambda number: os.open(cramped / f"f{number}", os.O_RDONLY)) as count:
        assert count >= FEW // 8
        assert_others_are_served(cramped)
    with taken_by_a_user(lambda number: os.open(cramped / f"f{number}", os.O_RDONLY)) as again:
        assert again == count


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_PATH])
def test_who_removes_too_many_files_in_use_is_told_and_nobody_else(
    cramped: Path, flags: int
) -> None:
    """Also those that are only held by O_PATH, which no open file says anything about."""

    def take(number: int) -> int:
        path = cramped / f"d1/{number}"
        path.touch()
        fd = os.open(path, flags)
        path.unlink()
        return fd

    with taken_by_a_user(take) as count:
        assert count >= FEW // 16
        for name in os.listdir(cramped / "d1"):
            if name != "file":
                (cramped / "d1" / name).unlink()
        assert_others_are_served(cramped)
    with taken_by_a_user(take) as again:
        assert again == count
