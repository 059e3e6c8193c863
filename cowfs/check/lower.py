"""Examining the tree that overlayfs reads in the place of a template's: is it the same still?

It was cloned from the template, entry by entry (lowers.py), so all that lstat and listxattr tell is
the same in both, but for the flags, the inode numbers and the ctimes. Nothing in it has a ctime
later than that of its own directory in the store, which got it with its name. Bytes are not
compared, as with the template.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from cowfs.store import lowers, templates
from cowfs.system import ondisk
from cowfs.trees.treewalk import Place, Tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def differences(template_fd: int, lower_fd: int) -> Iterator[bytes]:
    """Paths of what is not as in the template, b"" for the root. OSError.

    Of the directories `templates/<id>` and `lowers/<id>`.
    """
    made_ns = os.fstat(lower_fd).st_ctime_ns
    try:
        lower_tree = os.open(lowers.TREE, _DIRECTORY, dir_fd=lower_fd)
    except (FileNotFoundError, NotADirectoryError):
        yield b""
        return
    try:
        template_tree = os.open(templates.TREE, _DIRECTORY, dir_fd=template_fd)
        try:
            with Tree(template_tree) as template, Tree(lower_tree) as lower:
                yield from _compared(template, lower, made_ns)
        finally:
            os.close(template_tree)
    finally:
        os.close(lower_tree)


def _compared(template: Tree, lower: Tree, made_ns: int) -> Iterator[bytes]:
    pending = [Place(b"", None)]
    while pending:
        place = pending.pop()
        sealed, found = template.entries(place), lower.entries(place)
        if [name for name, _ in sealed] != [name for name, _ in found]:
            yield place.path()
            continue
        one, other = template.open(place), lower.open(place)
        if place.parent is None and not _same(one, other, made_ns):
            yield b""
        for (name, _), (_, st) in zip(sealed, found, strict=True):
            if not _same(ondisk.proc_path(one, name), ondisk.proc_path(other, name), made_ns):
                yield place.path(name)
            elif stat.S_ISDIR(st.st_mode):
                pending.append(Place(name, place))


def _same(one: int | bytes, other: int | bytes, made_ns: int) -> bool:
    """Whether two entries are alike, and the other was not changed since."""
    return (
        _stat(other).st_ctime_ns <= made_ns
        and _attributes(one) == _attributes(other)
        and _xattrs(one) == _xattrs(other)
    )


def _stat(where: int | bytes) -> os.stat_result:
    return os.fstat(where) if isinstance(where, int) else os.lstat(where)


def _attributes(where: int | bytes) -> tuple[object, ...]:
    st = _stat(where)
    is_directory = stat.S_ISDIR(st.st_mode)
    is_link = stat.S_ISLNK(st.st_mode)
    return (
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_rdev,
        st.st_nlink,
        0 if is_directory else st.st_size,
        st.st_mtime_ns,
        os.readlink(where) if is_link and isinstance(where, bytes) else b"",
    )


def _xattrs(where: int | bytes) -> dict[bytes, bytes]:
    return {name: ondisk.get_xattr(where, name) for name in ondisk.list_xattrs(where)}
