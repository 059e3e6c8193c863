"""What an entry of the upper layer means for the name that it has.

============  ==================================================================================
a whiteout    nothing has the name: the template's entry, if there is one, was removed
upper only    the copy's own: made in it or copied up, or a directory that hides the template's
merged        a directory through which one of the template shows, under this name or another
============  ==================================================================================

The marks that say so are overlayfs's, but for the number of what was copied up (`ondisk.py`).
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, TypeAlias

from cowfs.system import ondisk

if TYPE_CHECKING:
    from cowfs.overlay.layers import Layers


# Of an entry that shows something: the inode number that users see; where in the template the
# directory is that it is merged with (None: upper only); whether the mark that says the number is
# damaged, so that it is its own.  A plain tuple, because one is made for each lookup.
UpperEntry: TypeAlias = "tuple[int, bytes | None, bool]"


def classify_upper(
    layers: Layers, where: bytes, name: bytes, kind: int, ino: int, parent_path: bytes | None
) -> UpperEntry | None:
    """What an entry means; None: it is a whiteout.  OSError when its marks cannot be read.

    *where* leads to it (`ondisk.proc_path`); *kind* is as `ondisk.kind_of` has it, *ino* the inode
    number of its own.  *parent_path*: of a directory, what the one is merged with that it is in.
    """
    if kind == ondisk.WHITEOUT:
        return None
    if kind == stat.S_IFDIR:
        return _classify_directory(layers, where, name, ino, parent_path)
    try:
        return ondisk.get_ino(where) or ino, None, False
    except ondisk.DamagedMark:
        return ino, None, True


def _classify_directory(
    layers: Layers, where: bytes, name: bytes, ino: int, parent_path: bytes | None
) -> UpperEntry:
    path = ondisk.template_path(where, name, parent_path)
    if path and b"\0" not in path:  # a redirect to the root is none, nor is what is no path
        lower_st = layers.lower_stat(path)
        if lower_st is not None and stat.S_ISDIR(lower_st.st_mode):
            return lower_st.st_ino, path, False
    return ino, None, False
