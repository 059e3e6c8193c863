"""Which copy of a store is a mountpoint's, when none was named.

copy.json says which mountpoint a copy has its name from (`named_after`), so two mountpoints whose
paths give the same name never share a copy: the second one's gets a name that ends in a hash.
Earlier versions did not write that down; their names tell, since `former_name` gives no two paths
the same. Such a copy goes on under its old name.
"""

from __future__ import annotations

import os

from cowfs.store import copies
from cowfs.store.copies import CopyRecord
from cowfs.store.directory import StoreDirectory
from cowfs.store.names import default_names, former_name
from cowfs.system.errors import MountFailure


def possible(mountpoint: str) -> list[str]:
    """What the copy of this canonical path may be called, in the order in which it is looked for.

    The old name first: who has gone back to an earlier version for a while was there last.
    """
    return list(dict.fromkeys([former_name(mountpoint), *default_names(mountpoint)]))


def belongs(record: CopyRecord, mountpoint: str) -> bool:
    """Whether this copy is the one that is mounted at this canonical path when none is named."""
    if record.named_after is None:
        return record.name == former_name(mountpoint)
    return record.named_after == mountpoint


def find(store: StoreDirectory, mountpoint: str) -> str | None:
    """The name of the copy that belongs to a mountpoint; None when there is none.

    OSError. MountFailure: there is a damaged one, and nobody can tell whose it is.
    """
    damage = None
    for name in possible(mountpoint):
        try:
            if belongs(copies.read(store, name), mountpoint):
                return name
        except (FileNotFoundError, NotADirectoryError):
            continue
        except MountFailure as error:
            damage = error
    if damage is not None:
        raise damage
    return None


def choose(store: StoreDirectory, mountpoint: str) -> str:
    """The name of the copy that belongs to a mountpoint, which may have to be made. See `find`."""
    found = find(store, mountpoint)
    if found is not None:
        return found
    for name in default_names(mountpoint):
        if not os.path.lexists(copies.path_of(store, name)):
            return name
    raise MountFailure(
        f"all names that {mountpoint} could give its copy are taken by others: choose one with "
        "-o copy=NAME"
    )
