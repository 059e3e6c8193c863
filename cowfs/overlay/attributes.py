"""The attributes of a node, asked for and changed.

What is changed is in the upper layer already.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, TypeGuard

from cowfs.overlay.inodes import Directory
from cowfs.overlay.namespace import alone, failure
from cowfs.overlay.shared import mark_written
from cowfs.system import ondisk, syscalls

if TYPE_CHECKING:
    from cowfs.overlay.inodes import Node
    from cowfs.overlay.namespace import Namespace


def get_attributes(namespace: Namespace, node: Node) -> os.stat_result:
    """lstat of a node, in the layer that has it; of a replaced one: of its successor.

    Of a directory it is never the moment in between, when a copy-up has changed its times and
    not set them back yet: the kernel would keep that.
    """
    node = namespace.current(node)
    if isinstance(node, Directory) and node.upper:
        with namespace.alone:
            return namespace.layers.stat(node)
    return namespace.layers.stat(node)


def birth_time(namespace: Namespace, node: Node) -> int | None:
    """When the file was made, in nanoseconds since the epoch; None: not known."""
    node, layers = namespace.current(node), namespace.layers
    where, follow = layers.path(node), layers.follows(node)
    try:
        return ondisk.birth_time(where, follow=follow)
    except ondisk.DamagedMark:
        namespace.tell_damaged(ondisk.BTIME, node.parent, node.name)
        return syscalls.birth_time(where, follow=follow)


def nlink(namespace: Namespace, node: Node, st: os.stat_result) -> int:
    """The link count to show for a node with lstat *st*."""
    if node.is_unlinked:
        # Its last known name is gone.  A file of the upper layer counts its other names itself.
        return st.st_nlink if node.upper and not isinstance(node, Directory) else 0
    if isinstance(node, Directory) and _is_merged(node, st):
        return 2 + namespace.listings.of(node).subdirectories
    return st.st_nlink


def lacks_count(namespace: Namespace, node: Node, st: os.stat_result) -> TypeGuard[Directory]:
    """Whether a listing, which takes long if it is large, has to be made before `nlink`."""
    if not isinstance(node, Directory) or namespace.listings.kept(node) is not None:
        return False
    return _is_merged(node, st) and not node.is_unlinked


def _is_merged(directory: Directory, st: os.stat_result) -> bool:
    """Whether the link count is that of both layers together."""
    merged = directory.upper and directory.lower_path is not None
    return merged and st.st_nlink > 1  # btrfs counts no subdirectories: 1


def readlink(namespace: Namespace, node: Node) -> bytes:
    """The target of a symbolic link."""
    return namespace.layers.readlink(node)


def set_mode(namespace: Namespace, node: Node, mode: int) -> None:
    """chmod(2).  The kernel refuses it for symbolic links before it asks; so do we, since
    os.chmod would follow one out of the tree."""
    if stat.S_ISLNK(namespace.layers.stat(node).st_mode):
        raise failure(errno.EOPNOTSUPP)
    os.chmod(namespace.layers.path(node), stat.S_IMODE(mode))


def set_owner(namespace: Namespace, node: Node, uid: int, gid: int) -> None:
    """chown(2): -1 leaves an id as it is; setuid, setgid and capabilities go as there."""
    layers = namespace.layers
    os.chown(layers.path(node), uid, gid, follow_symlinks=layers.follows(node))


@alone
def set_times(namespace: Namespace, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2) in nanoseconds; None leaves a time as it is."""
    layers = namespace.layers
    if mtime_ns is not None and node.upper and not node.written:
        # Killed in between, the file counts as written, which costs pages and no data.
        noted = ondisk.get_shared_data(layers.path(node))
        if not ondisk.can_note(mtime_ns):
            mark_written(namespace, node)
        elif noted is not None and noted[0] == layers.stat(node).st_mtime_ns:
            ondisk.set_shared_data(layers.path(node), mtime_ns, noted[1])
    if atime_ns is None or mtime_ns is None:
        st = layers.stat(node)
        atime_ns = st.st_atime_ns if atime_ns is None else atime_ns
        mtime_ns = st.st_mtime_ns if mtime_ns is None else mtime_ns
    os.utime(layers.path(node), ns=(atime_ns, mtime_ns), follow_symlinks=layers.follows(node))
