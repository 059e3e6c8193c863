"""Whether a source is still what a template was made of, without walking all of it.

The fingerprint of a source takes a walk of every entry: a mount does that, a list does not. What a
glance sees is certain; what it does not see may have happened all the same: it compares the times
of the source's directory, and size and time of files at its top, with those of the template, which
has them from the source.
"""

from __future__ import annotations

import contextlib
import os
import stat
from itertools import islice
from typing import TYPE_CHECKING, Literal

from cowfs.store import sources, templates
from cowfs.system import directories
from cowfs.system.errors import CowfsError

if TYPE_CHECKING:
    from cowfs.store.directory import StoreDirectory
    from cowfs.store.templates import Template

State = Literal["", "moved on", "gone"]

_LOOKED_AT = 256  # entries at the top
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def state(store: StoreDirectory, source: str, template_id: str, *, walk: bool = False) -> State:
    """What became of the source of a template; "": it is as it was, as far as one can see.

    walk: look at every entry of it.
    """
    try:
        source_fd = os.open(source, _DIRECTORY)
    except OSError:
        return "" if os.path.isdir(source) else "gone"
    try:
        try:
            template = templates.read(store, template_id)
            if template is None:
                return ""
            if not walk:
                return "moved on" if _differs(template, source, source_fd) else ""
            return "moved on" if sources.has_moved_on(store, template, source) else ""
        except (CowfsError, OSError):  # it is being changed, or cannot be read
            return ""
    finally:
        os.close(source_fd)


def _differs(template: Template, source: str, source_fd: int) -> bool:
    with contextlib.ExitStack() as stack:
        try:
            tree_fd = os.open(template.tree, _DIRECTORY)
        except OSError:
            return False
        stack.callback(os.close, tree_fd)
        top = os.fstat(source_fd)
        # A source that was moved here by set-source may have been copied, and have another.
        if source == template.source and top.st_mtime_ns != os.fstat(tree_fd).st_mtime_ns:
            return True
        entries = stack.enter_context(directories.entries(tree_fd))
        return any(
            _is_another(entry, source_fd, top.st_dev) for entry in islice(entries, _LOOKED_AT)
        )


def _is_another(entry: os.DirEntry[str], source_fd: int, device: int) -> bool:
    """Whether a file at the top of the source has another size or time than the template's.

    Links and special files say nothing: a template may have a file where its source has a link.
    """
    try:
        theirs = os.stat(entry.name, dir_fd=source_fd, follow_symlinks=False)
        ours = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return (
        stat.S_ISREG(ours.st_mode)
        and stat.S_ISREG(theirs.st_mode)
        and theirs.st_dev == device
        and (ours.st_size, ours.st_mtime_ns) != (theirs.st_size, theirs.st_mtime_ns)
    )
