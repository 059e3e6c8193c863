"""The marks that an upper directory carries, and extended attributes in general.

This file knows how a whiteout, an opaque directory, a redirect and a kept inode number look on
disk. The first three are overlayfs's own (Documentation/filesystems/overlayfs.rst: "whiteouts and
opaque directories", "redirect_dir"), so the kernel's overlay reads them too; the others are
`trusted.cowfs.*` attributes, because overlayfs has no mark for them. It does not know when a mark
is due.

`where` is an open descriptor, or a path as `proc_path` makes it: O_PATH descriptors refuse
f*xattr(2), and an entry of a directory has no *at() form of these calls before kernel 6.13. A
symlink is never followed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

import xattr

from cowfs.system import syscalls

OPAQUE = b"trusted.overlay.opaque"
REDIRECT = b"trusted.overlay.redirect"
INO = b"trusted.cowfs.ino"
BTIME = b"trusted.cowfs.btime"
DATA = b"trusted.cowfs.data"

ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")

# How the name in work/ begins of a file that is being given all names of a group of hard links.
UNFINISHED_GROUP = b"#group"

# In place of a file type.
WHITEOUT = 0

INTERNAL = (b"trusted.overlay.", b"trusted.cowfs.")
_FD_DIRECTORY = b"/proc/self/fd"
LEAST_INO = 2  # 1 is the node id of the root, whatever number that has
_INO_VALUE = struct.Struct("<Q")
_BTIME_VALUE = struct.Struct("<q")
_DATA_HEAD = struct.Struct("<q")


class DamagedMark(OSError):  # noqa: N818 -- an OSError that says what is damaged
    """A mark whose value means nothing."""

    def __init__(self, name: bytes) -> None:
        super().__init__(errno.EIO, "damaged attribute " + os.fsdecode(name))


def proc_path(dir_fd: int, name: bytes | None = None) -> bytes:
    """A path to what a descriptor (O_PATH too) is open on, or to an entry of that directory."""
    if name is None:
        return b"%b/%d" % (_FD_DIRECTORY, dir_fd)
    return b"%b/%d/%b" % (_FD_DIRECTORY, dir_fd, name)


def _nofollow(where: int | bytes) -> bool:
    # The link /proc/self/fd/N is the way to the file and must be followed; what it leads to is not
    # followed any further, even when it is a symlink itself.
    return not (isinstance(where, int) or os.path.dirname(where) == _FD_DIRECTORY)


def list_xattrs(where: int | bytes) -> list[bytes]:
    """The names of all extended attributes; none where the filesystem has no such thing."""
    try:
        # Not xattr.listxattr: it decodes names strictly as UTF-8, and a name may be any bytes.
        if isinstance(where, int):
            names = os.listxattr(where)
        else:
            names = os.listxattr(where, follow_symlinks=not _nofollow(where))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise
    return [os.fsencode(name) for name in names]


def get_xattr(where: int | bytes, name: bytes) -> bytes:
    """The value of an attribute. OSError: ENODATA when there is none, EOPNOTSUPP."""
    while True:
        try:
            value: bytes = xattr.getxattr(where, name, symlink=_nofollow(where))
        except OSError as error:
            # The package asks for the size first; the value grew in between.
            if error.errno != errno.ERANGE:
                raise
        else:
            return value


def set_xattr(where: int | bytes, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an attribute; `flags` as in setxattr(2): XATTR_CREATE is 1, XATTR_REPLACE 2."""
    # The package has bits of its own for the same two flags.
    options = (xattr.XATTR_CREATE if flags & os.XATTR_CREATE else 0) | (
        xattr.XATTR_REPLACE if flags & os.XATTR_REPLACE else 0
    )
    xattr.setxattr(where, name, value, options, symlink=_nofollow(where))


def remove_xattr(where: int | bytes, name: bytes) -> None:
    """Remove an attribute. OSError: ENODATA when there is none."""
    xattr.removexattr(where, name, symlink=_nofollow(where))


def is_internal(name: bytes | str) -> bool:
    """Whether an attribute is a mark of cowfs or overlayfs: no user may see or write it."""
    return os.fsencode(name).startswith(INTERNAL)


def copy_xattrs(src: int | bytes, dst: int | bytes, skip_internal: bool = True) -> None:
    """Copy all attributes, POSIX ACLs and security.* included; those that only `dst` has stay.

    What else is in system.* (NFS and CIFS list their own ACLs there) belongs to one filesystem.

    Change the owner before and the mode after: chown(2) drops security.capability, and an access
    ACL sets the mode's group bits.
    """
    for name in list_xattrs(src):
        if name.startswith(b"system.") and name not in ACLS:
            continue
        if not (skip_internal and is_internal(name)):
            set_xattr(dst, name, get_xattr(src, name))


def is_whiteout(st: os.stat_result) -> bool:
    """Whether this upper entry says that a lower entry of its name is gone."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def kind_of(st: os.stat_result) -> int:
    """The file type of an upper entry: S_IFMT of its mode, or `WHITEOUT`."""
    kind = stat.S_IFMT(st.st_mode)
    return WHITEOUT if kind == stat.S_IFCHR and st.st_rdev == 0 else kind


def kind_of_listed(entry: os.DirEntry[str]) -> int:
    """The same as far as a listing tells it, which spares most entries the stat: S_IFDIR,
    `WHITEOUT`, or S_IFREG for anything else.  OSError."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink() or entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return WHITEOUT if is_whiteout(entry.stat(follow_symlinks=False)) else stat.S_IFREG


def make_whiteout(dir_fd: int, name: bytes) -> None:
    """Make a whiteout. OSError: EEXIST when the name is taken."""
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)


def _get_mark(where: int | bytes, name: bytes) -> bytes | None:
    try:
        return get_xattr(where, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def is_opaque(where: int | bytes) -> bool:
    """Whether this upper directory hides the lower directory of its name."""
    return _get_mark(where, OPAQUE) == b"y"


def set_opaque(where: int | bytes) -> None:
    """Mark a directory as opaque."""
    set_xattr(where, OPAQUE, b"y")


def get_redirect(where: int | bytes) -> bytes | None:
    """Which lower directory this upper directory is merged with, when not the one of its own name.

    As overlayfs writes it: an absolute path inside the lower tree (b"/a/b"), or the bare name of a
    sibling.
    """
    return _get_mark(where, REDIRECT)


def template_path(where: int | bytes, name: bytes, parent: bytes | None) -> bytes | None:
    """Where in the template the directory would be that shows through the upper directory *name*.

    *parent* is the same of the directory that *name* is in. None: nothing can show through.
    """
    if is_opaque(where):
        return None
    redirect = get_redirect(where)
    if redirect is not None and redirect.startswith(b"/"):
        return redirect.lstrip(b"/")
    if not parent:
        return None if parent is None else redirect or name
    return parent + b"/" + (redirect or name)


def set_redirect(where: int | bytes, path: bytes) -> None:
    """Merge this directory with the lower directory `path`, absolute inside the lower tree."""
    set_xattr(where, REDIRECT, path)


def get_ino(where: int | bytes) -> int | None:
    """The st_ino presented for this upper file, when not its own. OSError; DamagedMark."""
    value = _get_mark(where, INO)
    if value is None:
        return None
    if len(value) != _INO_VALUE.size or _INO_VALUE.unpack(value)[0] < LEAST_INO:
        raise DamagedMark(INO)
    return int(_INO_VALUE.unpack(value)[0])


def shown_ino(where: int | bytes, own: int) -> int:
    """The st_ino of this upper file that users see, its own being *own*: a damaged mark counts as
    none. OSError."""
    try:
        return get_ino(where) or own
    except DamagedMark:
        return own


def set_ino(where: int | bytes, ino: int) -> None:
    """Keep `ino` as the presented st_ino: that of the template's file that it came from."""
    set_xattr(where, INO, ino_value(ino))


def ino_value(ino: int) -> bytes:
    """What the attribute `INO` says then."""
    return _INO_VALUE.pack(ino)


def remove_ino(where: int | bytes) -> None:
    """Show the file's own st_ino from now on."""
    _remove_mark(where, INO)


def get_shared_data(where: int | bytes) -> tuple[int, bytes] | None:
    """Of an upper file that has the data of a template's file still: the mtime in nanoseconds that
    it had when that was noted, and the path of that file in the template.  None: not noted.

    A file with another mtime was written by somebody who does not know the mark, such as the
    kernel's overlay: its data are its own.
    """
    value = _get_mark(where, DATA)
    if value is None or len(value) <= _DATA_HEAD.size:
        return None
    return int(_DATA_HEAD.unpack_from(value)[0]), value[_DATA_HEAD.size :]


def set_shared_data(where: int | bytes, mtime_ns: int, path: bytes) -> None:
    """Note that the upper file has the data of the template's file *path*."""
    set_xattr(where, DATA, shared_data_value(mtime_ns, path))


def shared_data_value(mtime_ns: int, path: bytes) -> bytes:
    """What the attribute `DATA` says then."""
    return _DATA_HEAD.pack(mtime_ns) + path


def can_note(mtime_ns: int) -> bool:
    """Whether `DATA` has room for such a time: XFS knows some later than the year 2262."""
    return -(1 << 63) <= mtime_ns < 1 << 63


def remove_shared_data(where: int | bytes) -> None:
    """Before the first change of data.  XFS and btrfs log this change before those of the blocks
    that follow, so that no crash leaves new data under the mark."""
    _remove_mark(where, DATA)


def _remove_mark(where: int | bytes, name: bytes) -> None:
    try:
        remove_xattr(where, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def birth_time(where: bytes, *, follow: bool) -> int | None:
    """When the file was made that this one stands for, in nanoseconds since the epoch.

    *where* is a path as `proc_path` gives it; *follow* tells whether it ends in a link of /proc.
    None where the filesystem does not say. OSError; DamagedMark.
    """
    value = _get_mark(where, BTIME)
    if value is None:
        return syscalls.birth_time(where, follow=follow)
    if len(value) != _BTIME_VALUE.size:
        raise DamagedMark(BTIME)
    return int(_BTIME_VALUE.unpack(value)[0])


def set_birth_time(where: int | bytes, nanoseconds: int | None) -> None:
    """Keep when the template's file was made, if that is known."""
    if nanoseconds is not None:
        set_xattr(where, BTIME, _BTIME_VALUE.pack(nanoseconds))
