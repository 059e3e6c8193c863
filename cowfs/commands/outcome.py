"""What users are told about a copy that was unmounted."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cowfs.commands import report
from cowfs.system import remedy
from cowfs.system.errors import CowfsError

if TYPE_CHECKING:
    from cowfs.mount.unmount import Taken
    from cowfs.store.runtime import Record


def line(taken: Taken) -> str:
    """What has gone, and what was kept, in one line."""
    mountpoint, record = taken.mount.mountpoint, taken.record
    if taken.lazy:
        released = (
            ""
            if record is None
            else f"; copy {record.copy} is released when its last open file is closed"
        )
        return f"detached {mountpoint}{released}"
    if taken.elsewhere is not None:
        return f"unmounted {mountpoint}; the copy is still mounted {taken.elsewhere}"
    if record is None:
        return (
            f"unmounted {mountpoint}; its daemon had died. A kept copy of it is listed by: "
            f"{remedy.command('cowfs list')}"
        )
    return _of_copy(record)


def _of_copy(record: Record) -> str:
    from cowfs.store import copies, remedies
    from cowfs.store.store import Store

    name = record.copy
    try:
        with contextlib.closing(Store.open(record.store)) as store:
            files, deleted = copies.changes(store, name)
            size = copies.private_bytes(store, name)
    except FileNotFoundError:
        return f"discarded ephemeral copy {name}"
    except (OSError, CowfsError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        return f"unmounted; what became of the copy {name} cannot be seen: {problem}"
    if not record.persistent:
        swept = remedies.of_store("cowfs gc", record.store)
        return f"ephemeral copy {name} is not discarded yet: the next mount or {swept} does that"
    discard = remedies.of_copy("cowfs rm", record.store, name)
    if not files and not deleted:
        return f"kept copy {name} (no changed files); discard it with: {discard}"
    counts = report.count(files, "file")
    if deleted:
        counts += f", {report.count(deleted, 'deletion')}"
    counts += f", {report.human_size(size)} private"
    return f"kept copy {name} ({counts}); discard it with: {discard}"
