"""What one user may do to all others: it costs them no file, no descriptor and no turn."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.mounts import MountCopy

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
