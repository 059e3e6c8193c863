"""Commands that a message about a copy or a store suggests: with --store where they would not find
it by themselves."""

from __future__ import annotations

import contextlib
import os

from cowfs.store import directory
from cowfs.system import remedy
from cowfs.system.errors import CowfsError


def of_copy(words: str, store: str, name: str, *operands: str) -> str:
    """The command that these words begin, such as "cowfs rm", for a copy of the store there."""
    return remedy.command(words, name, *operands, store=_option(store, name))


def of_store(words: str, store: str) -> str:
    """The command that these words begin, such as "cowfs gc", for the store there."""
    return remedy.command(words, store=_option(store, None))


def room(store: str) -> str:
    """How to make some on the volume of a store."""
    shown, swept = of_store("cowfs list", store), of_store("cowfs gc", store)
    return f"discard copies that {shown} shows, or what no copy needs with: {swept}"


def _option(store: str, name: str | None) -> str | None:
    """The value of --store; None where it is not needed.

    That is the store of a mounted volume, while no other one has a copy of this name. Those that
    are only found while something of them is mounted do not count.
    """
    store = os.path.realpath(store)
    is_found = is_ambiguous = False
    for path in directory.of_volumes():
        try:
            fd, _ = directory.open_directory(path, create=False)
        except CowfsError:  # there is none, or none that anybody would use
            continue
        try:
            if _leads_to(store, fd):
                is_found = True
            elif name is not None:
                with contextlib.suppress(OSError):
                    os.stat(os.path.join("copies", name), dir_fd=fd, follow_symlinks=False)
                    is_ambiguous = True
        finally:
            os.close(fd)
    return None if is_found and not is_ambiguous else store


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False
