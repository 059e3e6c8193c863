"""Removing trees for good, whatever is in them.

A tree is first renamed into a directory of its own kind, the trash, and then taken apart there.
Nothing is followed, and no path longer than one name is used: a directory that is not empty moves
up into the trash and has its turn later. So depth costs neither descriptors nor stack, and what a
crash leaves is rubbish in the trash again. Several removers of one tree do not disturb each other.
"""

from __future__ import annotations

import errno
import os
import stat

from cowfs.system import directories, syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def trash(dir_fd: int, name: str, trash_fd: int) -> str:
    """Move an entry of a directory into the trash in one step; returns its name there. OSError."""
    while True:
        new = f"{os.urandom(8).hex()}"
        try:
            syscalls.renameat2(
                dir_fd, os.fsencode(name), trash_fd, os.fsencode(new), syscalls.RENAME_NOREPLACE
            )
        except FileExistsError:
            continue
        except PermissionError:
            if not _let_in(dir_fd, name):
                raise
            continue
        return new


def remove(trash_fd: int, name: str) -> None:
    """Remove an entry of the trash and all below it; no error when it is gone already. OSError."""
    _let_in(trash_fd, name)
    pending = [name]
    while pending:
        pending += _take_apart(trash_fd, pending.pop())


def clear(dir_fd: int, trash_fd: int) -> None:
    """Move everything in a directory into the trash. OSError."""
    for name in directories.names(dir_fd):
        trash(dir_fd, name, trash_fd)


def empty(dir_fd: int, trash_fd: int) -> None:
    """Remove everything in a directory, by way of the trash. OSError."""
    for name in directories.names(dir_fd):
        remove(trash_fd, trash(dir_fd, name, trash_fd))


def _take_apart(trash_fd: int, name: str) -> list[str]:
    """Remove an entry; returns the directories that were in it, now in the trash themselves."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=trash_fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        _unlink(trash_fd, name)
        return []
    moved = []
    try:
        with directories.entries(fd) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    _unlink(fd, entry.name)
                elif not _rmdir(fd, entry.name):
                    moved += _move_up(fd, entry.name, trash_fd)
    finally:
        os.close(fd)
    if not _rmdir(trash_fd, name):
        moved.append(name)
    return moved


def _let_in(dir_fd: int, name: str) -> bool:
    """Let an ordinary user write in a directory of his own; whether that was forbidden before.

    Without that it can be neither emptied nor moved. What is removed lies where nobody else can
    go, so the name stays that of a directory.
    """
    try:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(st.st_mode) or st.st_mode & stat.S_IWUSR or st.st_uid != os.geteuid():
        return False
    os.chmod(name, 0o700, dir_fd=dir_fd)
    return True


def _move_up(dir_fd: int, name: str, trash_fd: int) -> list[str]:
    try:
        return [trash(dir_fd, name, trash_fd)]
    except FileNotFoundError:
        return []


def _rmdir(dir_fd: int, name: str) -> bool:
    """Whether the directory is gone; False when it is not empty."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _unlink(dir_fd: int, name: str) -> None:
    try:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except PermissionError:
            fd = os.open(name, _FILE, dir_fd=dir_fd)
            try:
                syscalls.set_immutable(fd, False)
            finally:
                os.close(fd)
            os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
