"""What a mount must be allowed to do on the volume, tried on a file without a name.

`cowfs mount` and `cowfs doctor` ask the same list, and it is one list for both engines. Sealing is
the same for both; later overlayfs acts for every user with the capabilities of the process that
mounted it: without CAP_CHOWN, say, nobody can change an owner. What FUSE alone needs is its device.
Nothing is looked up: what counts is whether the call works, whatever gives or takes the right to it
(capabilities(7), a seccomp filter, a security module).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable

from cowfs.system import ondisk, syscalls
from cowfs.system.errors import UsageError

_NOBODY = 65534
# A struct vfs_cap_data of <linux/capability.h>, revision 2, that permits CAP_CHOWN.
_FILE_CAPABILITY = struct.pack("<5I", 0x02000000, 1, 0, 0, 0)


def _mark(fd: int, _dir_fd: int) -> None:
    os.setxattr(fd, "trusted.cowfs.probe", b"")


def _give_away(fd: int, _dir_fd: int) -> None:
    os.fchown(fd, _NOBODY, _NOBODY)


def _change_mode(fd: int, _dir_fd: int) -> None:
    os.fchmod(fd, 0)


def _keep_setgid(fd: int, _dir_fd: int) -> None:
    os.fchmod(fd, stat.S_ISGID)
    if not os.fstat(fd).st_mode & stat.S_ISGID:
        raise PermissionError


def _open_again(fd: int, _dir_fd: int) -> None:
    os.close(os.open(ondisk.proc_path(fd), os.O_RDWR | os.O_CLOEXEC))


def _let_run(fd: int, _dir_fd: int) -> None:
    os.setxattr(fd, "security.capability", _FILE_CAPABILITY)


def _find_again(fd: int, dir_fd: int) -> None:
    os.close(syscalls.open_by_handle(fd, dir_fd, os.O_RDONLY))


def _seal(fd: int, _dir_fd: int) -> None:
    syscalls.set_immutable(fd, True)
    syscalls.set_immutable(fd, False)


# Each capability of capabilities(7) with what needs it. From CAP_CHOWN's on the file is somebody
# else's; where that or CAP_FOWNER is missing some of the others may seem to be.
_TRIALS: tuple[tuple[str, Callable[[int, int], None]], ...] = (
    ("SYS_ADMIN", _mark),
    ("LINUX_IMMUTABLE", _seal),
    ("SETFCAP", _let_run),
    ("DAC_READ_SEARCH", _find_again),
    ("CHOWN", _give_away),
    ("FOWNER", _change_mode),
    ("FSETID", _keep_setgid),
    ("DAC_OVERRIDE", _open_again),
)

CAPABILITIES = tuple(name for name, _trial in _TRIALS)


def missing(dir_fd: int) -> list[str]:
    """Which capabilities (without CAP_) a mount lacks on the volume of this directory.

    OSError when there can be no file at all: ENOSPC, EROFS, EACCES, EOPNOTSUPP.
    """
    fd = syscalls.open_tmpfile(dir_fd, 0o600)
    try:
        return [name for name, trial in _TRIALS if not _works(trial, fd, dir_fd)]
    finally:
        os.close(fd)


def refusal(lacking: list[str]) -> UsageError:
    """What to tell who lacks these."""
    return UsageError(
        f"no permission to mount: what needs CAP_{', CAP_'.join(lacking)} is refused; run it as "
        f"root (sudo), in a container with --privileged, or with --device /dev/fuse (but for "
        f"engine=overlay) and {' '.join(f'--cap-add {name}' for name in CAPABILITIES)}"
    )


def _works(trial: Callable[[int, int], None], fd: int, dir_fd: int) -> bool:
    try:
        trial(fd, dir_fd)
    except PermissionError:
        return False
    except OSError:
        pass  # of the filesystem, which is asked elsewhere
    return True
