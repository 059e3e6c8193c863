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
from cowfs.system import directories, mountinfo, syscalls
from cowfs.system.errors import CowfsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowfs.store.directory import StoreDirectory
    from cowfs.store.templates import Template
    from cowfs.system.mountinfo import Mount

State = Literal["", "moved on", "gone", "hidden"]

_LOOKED_AT = 256  # entries at the top
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def lacking(store: StoreDirectory, source: str) -> State:
    """Why a source is not to be seen; "": it is, or nobody can tell."""
    try:
        os.close(sources.opened(store, source, mountinfo.read()))
    except sources.Hidden:
        return "hidden"
    except FileNotFoundError:
        return "gone"
    except OSError:
        pass
    return ""


def state(
    store: StoreDirectory,
    source: str,
    template_id: str,
    mounts: Sequence[Mount],
    *,
    walk: bool = False,
) -> State:
    """What became of the source of a template; "": it is as it was, as far as one can see.

    hidden: another filesystem is mounted over it. walk: look at every entry of it.
    """
    try:
        source_fd = sources.opened(store, source, mounts)
    except sources.Hidden:
        return "hidden"
    except FileNotFoundError:
        return "gone"
    except OSError:
        return ""
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
        # A source that was moved here by set-source may have been copied, and have another.
        before, now = os.fstat(tree_fd).st_mtime_ns, os.fstat(source_fd).st_mtime_ns
        if source == template.source and before != now:
            return True
        entries = stack.enter_context(directories.entries(tree_fd))
        return any(_is_another(entry, source_fd) for entry in islice(entries, _LOOKED_AT))


def _is_another(entry: os.DirEntry[str], source_fd: int) -> bool:
    """Whether a file at the top of the source has another size or time than the template's.

    Links and special files say nothing: a template may have a file where its source has a link.
    """
    try:
        ours = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(ours.st_mode):
            return False
        name = os.fsencode(entry.name)
        fd = syscalls.open_below(source_fd, name, os.O_PATH, syscalls.RESOLVE_NO_XDEV)
    except OSError:  # of another filesystem, too, that is mounted there
        return False
    try:
        theirs = os.fstat(fd)
    finally:
        os.close(fd)
    return stat.S_ISREG(theirs.st_mode) and (ours.st_size, ours.st_mtime_ns) != (
        theirs.st_size,
        theirs.st_mtime_ns,
    )
