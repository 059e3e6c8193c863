"""What a copy has changed as a layer of an OCI image: a tar file that is applied to its template.

As the image specification has it (image-spec, layer.md, "Filesystem changeset"): what was added or
changed is there whole, `.wh.NAME` says that NAME is gone, `.wh..wh..opq` that nothing below shows
through. Holes are written as zeros, since the specification advises against sparse entries; the tar
file has holes in their place. Attributes are PAX records, times have nanoseconds.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from dataclasses import dataclass, field

from cowfs.changes import extents
from cowfs.changes.shown import Layered, Node, children
from cowfs.system.errors import CowfsError
from cowfs.trees.scan import SourceChanged

_GONE = b".wh."
_OPAQUE = b".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


@dataclass
class Written:
    """What is in a layer. bytes: of the tar file."""

    entries: int = 0
    removals: int = 0
    bytes: int = 0
    sockets: list[str] = field(default_factory=list)  # left out


def write(template: Layered, copy: Layered, fd: int) -> Written:
    """Write the changes of a copy into an empty file. CowfsError, SourceChanged, OSError."""
    return _Writer(template, copy, fd).run()


class _Writer:
    """One layer in progress."""

    def __init__(self, template: Layered, copy: Layered, fd: int) -> None:
        self._template = template
        self._copy = copy
        self._fd = fd
        self._at = 0
        self._written = Written()
        self._names: dict[tuple[int, int], bytes] = {}  # the first one of each file

    def run(self) -> Written:
        pending: list[tuple[Node | None, Node]] = [(self._template.root, self._copy.root)]
        while pending:
            old, new = pending.pop()
            pending += reversed(self._directory(old, new))
        self._end()
        self._written.bytes = self._at
        return self._written

    def _directory(self, old: Node | None, new: Node) -> list[tuple[Node | None, Node]]:
        """Write a directory; what is to follow. old: what of the template shows through."""
        self._entry(new)
        if old is None or old.lower != new.lower:
            if old is not None:
                self._mark(new, _OPAQUE)
            return self._inside(new)
        found: list[tuple[Node | None, Node]] = []
        for name in sorted(self._copy.private_names(new)):
            before, after = self._template.child(old, name), self._copy.child(new, name)
            if before is not None and (after is None or before.kind != after.kind):
                self._remove(new, name)
                before = None
            if after is None:
                continue
            if not after.is_directory:
                self._other(before, after)
            elif after.private:
                found.append((before, after))
        return found

    def _inside(self, node: Node) -> list[tuple[Node | None, Node]]:
        """All that is in a directory whose entries are new."""
        found: list[tuple[Node | None, Node]] = []
        for child in children(self._copy, node):
            if child.is_directory:
                found.append((None, child))
            else:
                self._other(None, child)
        return found

    def _other(self, before: Node | None, after: Node) -> None:
        if before is None or after.st.st_nlink > 1 or self._differs(before, after):
            self._entry(after)

    def _differs(self, before: Node, after: Node) -> bool:
        one, other = before.st, after.st
        attributes = ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns")
        if any(getattr(one, key) != getattr(other, key) for key in attributes):
            return True
        if self._template.xattrs(before) != self._copy.xattrs(after):
            return True
        if after.kind == stat.S_IFLNK:
            return self._template.target(before) != self._copy.target(after)
        if after.kind != stat.S_IFREG:
            return False
        return one.st_size != other.st_size or not self._is_cloned(before, after)

    def _is_cloned(self, before: Node, after: Node) -> bool:
        size = after.st.st_size
        one, other = self._template.open(before), self._copy.open(after)
        try:
            first = extents.pieces(one, size, sync=False)
            second = extents.pieces(other, size, sync=True)
            placed = not (extents.placeless(first) or extents.placeless(second))
            return placed and not extents.unlike(first, second)
        finally:
            os.close(one)
            os.close(other)

    # ------------------------------------------------------------------- what is written

    def _remove(self, directory: Node, name: bytes) -> None:
        self._mark(directory, _GONE + _plain(directory, name))
        self._written.removals += 1

    def _mark(self, directory: Node, name: bytes) -> None:
        path = directory.path
        info = tarfile.TarInfo(os.fsdecode(path + b"/" + name if path else name))
        info.mtime = int(directory.st.st_mtime)
        self._header(info)

    def _entry(self, node: Node) -> None:
        if node.parent is not None:
            _plain(node.parent, node.name)
        path = node.path or b"."
        if node.kind == stat.S_IFSOCK:
            self._written.sockets.append(os.fsdecode(path))
            return
        info = self._info(node, path)
        self._written.entries += 1
        file = node.st.st_dev, node.st.st_ino
        if not node.is_directory and node.st.st_nlink > 1:
            first = self._names.setdefault(file, path)
            if first != path:
                info.type = tarfile.LNKTYPE
                info.linkname = os.fsdecode(first)
                info.pax_headers = {}
                self._header(info)
                return
        if node.kind != stat.S_IFREG:
            self._header(info)
            return
        fd = self._copy.open(node)
        try:
            st = os.fstat(fd)
            info.size = st.st_size
            self._header(info)
            self._data(fd, st.st_size)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (st.st_size, st.st_mtime_ns):
                raise SourceChanged(os.fsdecode(path))
        finally:
            os.close(fd)

    def _info(self, node: Node, path: bytes) -> tarfile.TarInfo:
        st = node.st
        info = tarfile.TarInfo(os.fsdecode(path))
        info.type = _TYPES[node.kind]
        info.mode = stat.S_IMODE(st.st_mode)
        info.uid, info.gid = st.st_uid, st.st_gid
        seconds, nanoseconds = divmod(st.st_mtime_ns, 1_000_000_000)
        info.mtime = seconds
        records = {}
        if nanoseconds and seconds >= 0:
            records["mtime"] = f"{seconds}.{nanoseconds:09}"
        if node.kind == stat.S_IFLNK:
            info.linkname = os.fsdecode(self._copy.target(node))
        if node.kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.devmajor, info.devminor = os.major(st.st_rdev), os.minor(st.st_rdev)
        for name, value in self._copy.xattrs(node).items():
            records[_XATTR + os.fsdecode(name)] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = records
        return info

    def _header(self, info: tarfile.TarInfo) -> None:
        self._put(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _put(self, data: bytes) -> None:
        while data:
            written = os.pwrite(self._fd, data, self._at)
            self._at += written
            data = data[written:]

    def _data(self, fd: int, size: int) -> None:
        start = self._at
        for piece in extents.pieces(fd, size, sync=True):
            self._range(fd, piece.start, piece.end, start)
        self._at = start + -(-size // _BLOCK) * _BLOCK
        os.ftruncate(self._fd, self._at)

    def _range(self, fd: int, at: int, end: int, start: int) -> None:
        copies = True
        while at < end:
            count = 0
            if copies:
                try:
                    count = os.copy_file_range(fd, self._fd, end - at, at, start + at)
                except OSError as error:
                    if error.errno not in _NO_COPY_RANGE:
                        raise
                copies = count > 0
            if not count:
                data = os.pread(fd, min(_CHUNK, end - at), at)
                if not data:
                    return  # it has become shorter, which the caller sees
                count = os.pwrite(self._fd, data, start + at)
            at += count

    def _end(self) -> None:
        self._at += 2 * _BLOCK
        os.ftruncate(self._fd, self._at)


def _plain(directory: Node, name: bytes) -> bytes:
    """A name that a layer can have. CowfsError."""
    if name.startswith(_GONE):
        path = directory.path
        shown = os.fsdecode(path + b"/" + name if path else name)
        raise CowfsError(
            f"{shown!r} cannot be in a layer, where names that begin with .wh. say what was "
            "removed: rename it, or commit to a directory"
        )
    return name
