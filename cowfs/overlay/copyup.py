"""Copy-up: giving the copy its own file in place of one that it shares with the template.

A regular file is cloned (FICLONE) into an unnamed file, gets every attribute of the original, and
is then linked into the upper layer by `Overlay.publish`, in one step: no reader and no crash sees
half of it.  XFS writes its log in order, so a link that is durable has a durable clone behind it.

`RegularCopyUp.clone` may run in any thread: it touches nothing but its own descriptors.
"""

from __future__ import annotations

import os
import stat
import time

from cowfs.copying import clone_file
from cowfs.system import ondisk, syscalls

# Up to this size the clone is made right away; a larger one may have so many extents that other
# requests should not wait for it.
QUICK_BYTES = 16 << 20


def set_attributes(
    where: bytes, st: os.stat_result, source: bytes, *, source_follows: bool
) -> None:
    """Give the file at *where* the owner, mode, xattrs and times of *source* (*st* its lstat).

    *source_follows* tells whether *source* is a link of /proc that leads to the file.  The order
    matters: chown clears setuid, setgid and capabilities, an ACL sets bits of the mode, and
    everything changes the times.
    """
    os.chown(where, st.st_uid, st.st_gid, follow_symlinks=False)
    ondisk.copy_xattrs(source, where)
    ondisk.set_birth_time(where, syscalls.birth_time(source, follow=source_follows))
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(where, stat.S_IMODE(st.st_mode))
    os.utime(where, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


class RegularCopyUp:
    """One regular file on its way up.

    *source_fd* is the template's file (its owner closes it), *work_fd* a directory of the copy's
    volume, *ino* the st_ino that users keep seeing.  With *keep_data* false the new file is empty:
    the caller is about to truncate it.  *shared_path*: where the template has the file, if nobody
    is about to change the data, so that it is read there as before; else None.
    """

    def __init__(
        self,
        source_fd: int,
        work_fd: int,
        ino: int,
        *,
        keep_data: bool,
        shared_path: bytes | None,
    ) -> None:
        self._source_fd = source_fd
        self._work_fd = work_fd
        self._ino = ino
        # What the template's file looks like, for descriptors that keep it open.
        self.origin = os.fstat(source_fd)
        # Else the file counts as written.
        self.shared_path = shared_path if ondisk.can_note(self.origin.st_mtime_ns) else None
        self._keep_data = keep_data and self.origin.st_size > 0
        self.fd = -1
        # How long the clone has taken.
        self.took_ns = 0

    @property
    def is_quick(self) -> bool:
        return not self._keep_data or self.origin.st_blocks * 512 <= QUICK_BYTES

    def clone(self) -> None:
        """Make the unnamed file; OSError (ENOSPC, EIO, ...) leaves nothing behind."""
        started = time.monotonic_ns()
        marks = [(ondisk.INO, ondisk.ino_value(self._ino))]
        if self.shared_path is not None:
            value = ondisk.shared_data_value(self.origin.st_mtime_ns, self.shared_path)
            marks.append((ondisk.DATA, value))
        self.fd = clone_file(
            self._source_fd, self._work_fd, self._keep_data, tuple(marks), ondisk.BTIME
        )
        try:
            if ondisk.list_xattrs(self._source_fd):
                ondisk.copy_xattrs(self._source_fd, self.fd)
                # An access ACL sets bits of the mode, and everything the ctime.
                os.chmod(self.fd, stat.S_IMODE(self.origin.st_mode))
            self.took_ns = time.monotonic_ns() - started
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def copy_up_special(
    source_fd: int, name: bytes | None, work_fd: int, temporary: bytes, ino: int
) -> None:
    """Make a symbolic link, fifo, socket or device again in work/ as *temporary*.

    It is *name* in the directory *source_fd*, or, without a name, what *source_fd* is open on.
    """
    if name is None:
        st = os.fstat(source_fd)
    else:
        st = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
    if stat.S_ISLNK(st.st_mode):
        target = os.readlink(name or b"", dir_fd=source_fd)
        os.symlink(target, temporary, dir_fd=work_fd)
    else:
        os.mknod(temporary, stat.S_IFMT(st.st_mode) | 0o600, st.st_rdev, dir_fd=work_fd)
    where = ondisk.proc_path(work_fd, temporary)
    ondisk.set_ino(where, ino)
    source = ondisk.proc_path(source_fd, name)
    set_attributes(where, st, source, source_follows=name is None)


def copy_up_directory(source_fd: int, work_fd: int, temporary: bytes) -> None:
    """Make an empty directory in work/ as *temporary*, with every attribute of *source_fd*."""
    os.mkdir(temporary, 0o700, dir_fd=work_fd)
    st = os.fstat(source_fd)
    where = ondisk.proc_path(work_fd, temporary)
    source = ondisk.proc_path(source_fd)
    set_attributes(where, st, source, source_follows=True)
