"""Which templates may go: the one rule that keeps a template while a copy needs it.

A template is needed when some copy.json names it, or when a process holds a shared lock on its
directory because it is about to write one. So it is removed only under an exclusive lock that is
free at once, and after a look at every copy; when one copy cannot be read, nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable

from cowfs.store import copies, lowers
from cowfs.store.directory import StoreDirectory, lock_directory


def trash_unused(store: StoreDirectory, template_ids: Iterable[str]) -> list[str]:
    """Move those of the templates that nobody needs into the trash; returns which. OSError."""
    trashed = []
    for template_id in template_ids:
        fd = lock_directory(store.templates_fd, template_id, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fd is None:
            continue
        try:
            needed = copies.references(store)
            if (
                needed is not None
                and template_id not in needed
                and lowers.trash(store, template_id)
            ):
                store.trash(store.templates_fd, template_id)
                trashed.append(template_id)
        finally:
            os.close(fd)
    return trashed
