"""`cowfs set-source`: a copy's source was moved, renamed, or is mounted elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cowfs.mount import preflight

if TYPE_CHECKING:
    from cowfs.store.store import Store


def set_source(store: Store, name: str, source: str, *, force: bool) -> str:
    """Let a copy be one of another directory; what was done, in one line. CowfsError."""
    path = preflight.check_source(source)
    before = store.set_source(name, path, force=force)
    if before == path:
        return f"copy {name} is one of {path}, as before"
    return f"copy {name} is one of {path} from now on, not of {before}"
