"""The merged namespace of one copy: what a name means, and how it changes.

The template's tree is the lower layer and is never written; `upper/` holds what changed, as
overlayfs keeps it (Documentation/filesystems/overlayfs.rst): a whiteout hides a lower name, an
opaque directory hides all lower names of its own, a redirect says which lower directory a moved
directory is merged with.  Every change becomes visible by one rename or link, so that after a crash
either all of it is there or nothing.

This room knows nodes and layers.  It does not know the kernel's protocol, who asks, or what backs
an open file.  Each subject has a file, whose functions work on the `Namespace`; here they are
together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowfs import (
    overlay_attributes,
    overlay_create,
    overlay_lookup,
    overlay_parents,
    overlay_publish,
    overlay_remove,
    overlay_rename,
    overlay_replace,
    overlay_shared,
)
from cowfs.links import LinkGroups
from cowfs.overlay_namespace import Namespace
from cowfs.vault import NullVault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowfs.vault import Vault


class Overlay(Namespace):
    """One copy: its namespace, and what is asked of it and done to it.

    *hard_links* are the template's groups of paths that name one inode; the rest is as for
    `Namespace`.
    """

    def __init__(
        self,
        tree_fd: int,
        upper_fd: int,
        work_fd: int | None,
        hard_links: Sequence[Sequence[bytes]],
        vault: Vault | None = None,
    ) -> None:
        super().__init__(tree_fd, upper_fd, work_fd, vault or NullVault())
        self.links = LinkGroups(self, hard_links)

    # Functions of a namespace are its methods.

    lookup = overlay_lookup.lookup
    forget = overlay_lookup.forget
    prune = overlay_lookup.prune

    getattr = overlay_attributes.get_attributes
    birth_time = overlay_attributes.birth_time
    nlink = overlay_attributes.nlink
    lacks_count = overlay_attributes.lacks_count
    readlink = overlay_attributes.readlink
    set_mode = overlay_attributes.set_mode
    set_owner = overlay_attributes.set_owner
    set_times = overlay_attributes.set_times

    shared_path = overlay_shared.shared_path
    open_shared = overlay_shared.open_shared
    mark_written = overlay_shared.mark_written

    ensure_upper = overlay_parents.ensure_upper
    begin_copy_up = overlay_publish.begin_copy_up
    publish = overlay_publish.publish
    copy_up_special = overlay_publish.copy_up_special
    hand_over = overlay_replace.hand_over

    create_file = overlay_create.create_file
    create_unnamed = overlay_create.create_unnamed
    create_directory = overlay_create.create_directory
    create_special = overlay_create.create_special
    create_symlink = overlay_create.create_symlink
    link = overlay_create.link

    unlink = overlay_remove.unlink
    rmdir = overlay_remove.rmdir

    rename = overlay_rename.rename
    was_exchanged = overlay_rename.was_exchanged
