"""work/: where what is not finished yet is made, and where what was removed is taken to pieces.

Nobody is shown what is in it.  A copy that is opened for writing begins with none of it, so what a
daemon left that was killed is gone by then.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from cowfs.system import directories, ondisk, syscalls


class WorkDirectory:
    """The directory, whose descriptor *fd* is taken over; None on a read-only mount."""

    def __init__(self, fd: int | None) -> None:
        self._fd = -1 if fd is None else fd
        self._serial = 0
        # Directories that are nobody's any more, and may be full of whiteouts.
        self.left: list[bytes] = []
        if fd is not None:
            _empty(fd)

    @property
    def fd(self) -> int:
        """Its descriptor; OSError(EROFS) on a read-only mount."""
        if self._fd < 0:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def new_name(self, prefix: bytes = b"#") -> bytes:
        """A name that is not in use: nobody else makes any."""
        self._serial += 1
        return b"%b%x" % (prefix, self._serial)

    def temporary(self, dir_fd: int | None = None) -> Temporary:
        """For `with`: a name for something that is on its way.

        It is in work/ itself, or in *dir_fd*, a directory in it.  OSError(EROFS).
        """
        return Temporary(self.fd if dir_fd is None else dir_fd, self.new_name())

    def take_apart(self, name: bytes) -> None:
        """Remove a directory that is nobody's any more; if it is not empty, somebody else is to."""
        try:
            os.rmdir(name, dir_fd=self.fd)
        except OSError:
            self.left.append(name)

    def clear_away(self, names: list[bytes]) -> None:
        """Remove what was `left`; may be called in any thread.

        What cannot be removed is there until the copy is mounted again.
        """
        for name in names:
            self.discard(name)

    def discard(self, name: bytes) -> None:
        """Remove what is of no use any more, if that can be done: nothing depends on it."""
        with suppress(OSError):
            _remove(self.fd, name)


class Temporary:
    """A name in a directory that nobody is shown.  What has it at the end of the `with` is
    discarded, whatever it is by then, and whatever happened."""

    __slots__ = ("_in_use", "dir_fd", "name")

    def __init__(self, dir_fd: int, name: bytes) -> None:
        self.dir_fd = dir_fd
        self.name = name
        self._in_use = True

    def __enter__(self) -> Temporary:
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_use:
            with suppress(OSError):
                _remove(self.dir_fd, self.name)

    @property
    def path(self) -> bytes:
        """A path in /proc that leads there."""
        return ondisk.proc_path(self.dir_fd, self.name)

    def stat(self) -> os.stat_result:
        """lstat of what has the name."""
        return os.stat(self.name, dir_fd=self.dir_fd, follow_symlinks=False)

    def open(self, flags: int = 0) -> int:
        """Open what has the name as a place alone (O_PATH); no link is followed."""
        flags |= os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.name, flags, dir_fd=self.dir_fd)

    def move_to(self, dir_fd: int, name: bytes) -> None:
        """rename(2) over what is there: then it is not in work/ any more."""
        os.rename(self.name, name, src_dir_fd=self.dir_fd, dst_dir_fd=dir_fd)
        self._in_use = False

    def exchange(self, dir_fd: int, name: bytes) -> None:
        """Let it and what is there change places: what was there is discarded at the end."""
        syscalls.renameat2(self.dir_fd, self.name, dir_fd, name, syscalls.RENAME_EXCHANGE)

    def take(self, dir_fd: int, name: bytes) -> None:
        """Let it be what is there now, which is gone from there."""
        syscalls.renameat2(dir_fd, name, self.dir_fd, self.name, syscalls.RENAME_NOREPLACE)

    def keep(self) -> bytes:
        """It is not discarded after all; gives the name."""
        self._in_use = False
        return self.name


def _remove(dir_fd: int, name: bytes) -> None:
    """Remove an entry with all that is in it; one that is not there is fine."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=dir_fd)
        try:
            _empty(fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dir_fd)


def _empty(fd: int) -> None:
    """Remove every entry of a directory."""
    for name in directories.names(fd):
        _remove(fd, os.fsencode(name))
