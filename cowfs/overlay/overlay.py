"""The merged namespace of one copy: what a name means, and how it changes.

The template's tree is the lower layer and is never written; `upper/` holds what changed, as
overlayfs keeps it (Documentation/filesystems/overlayfs.rst): a whiteout hides a lower name, an
opaque directory hides all lower names of its own, a redirect says which lower directory a moved
directory is merged with.  Every change becomes visible by one rename or link, so that after a crash
either all of it is there or nothing.

It knows nodes and layers.  It does not know the kernel's protocol, who asks, or what backs an open
file.  Each subject has a file, whose functions work on the `Namespace`; here they are together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowfs.overlay import (
    attributes,
    creating,
    looking,
    parents,
    publishing,
    removing,
    renaming,
    replacing,
    shared,
)
from cowfs.overlay.links import LinkGroups
from cowfs.overlay.namespace import Namespace
from cowfs.overlay.vault import NullVault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowfs.overlay.vault import Vault


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

    lookup = looking.lookup
    forget = looking.forget
    prune = looking.prune

    getattr = attributes.get_attributes
    birth_time = attributes.birth_time
    nlink = attributes.nlink
    lacks_count = attributes.lacks_count
    readlink = attributes.readlink
    set_mode = attributes.set_mode
    set_owner = attributes.set_owner
    set_times = attributes.set_times

    shared_path = shared.shared_path
    open_shared = shared.open_shared
    mark_written = shared.mark_written

    ensure_upper = parents.ensure_upper
    begin_copy_up = publishing.begin_copy_up
    publish = publishing.publish
    copy_up_special = publishing.copy_up_special
    hand_over = replacing.hand_over

    create_file = creating.create_file
    create_unnamed = creating.create_unnamed
    create_directory = creating.create_directory
    create_special = creating.create_special
    create_symlink = creating.create_symlink
    link = creating.link

    unlink = removing.unlink
    rmdir = removing.rmdir

    rename = renaming.rename
    was_exchanged = renaming.was_exchanged
