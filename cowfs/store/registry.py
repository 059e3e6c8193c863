"""Stores that lie elsewhere than volumes have theirs (`store=`): remembered over reboots.

    /var/lib/cowfs/stores/<hash>.json   one for each, named after its path

A mount notes the store that it uses, if `discover` would not find it at the top of a volume. The
path alone proves nothing later: whoever owns a directory above could have exchanged it, and the
store of another volume may be there. So inode number and birth time are noted, too, and what is
found must have them.

A store that is not there is forgotten at once when the volume that it was on is mounted at the same
place as then: it was removed, or moved. While that volume is not mounted nobody can know, and the
entry stays, until nobody has seen the store for `FORGET_AFTER`. Whoever mounts a copy from it again
has it remembered again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cowfs.store import directory
from cowfs.system import directories, jsonfile, ondisk, syscalls

if TYPE_CHECKING:
    from cowfs.store.directory import StoreDirectory

STATE_DIR = "/var/lib/cowfs"
FORGET_AFTER = 90 * 86400.0  # seconds

_STORES = "stores"
_SEEN_EVERY = 86400.0  # seconds between two notes that a store is there
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """A store as it was when it was last seen.

    Inode number and birth time (nanoseconds; None where the filesystem does not say) of the store's
    directory; mountpoint of its volume, and birth time of the directory there. seen: seconds since
    the epoch.
    """

    path: str
    inode: int
    born: int | None
    volume: str
    volume_born: int | None
    seen: float = 0.0


def remember(store: StoreDirectory) -> None:
    """Note a store that is in use, unless it is where its volume has its own. OSError."""
    path = os.path.realpath(store.path)
    volume = directory.volume_of(path)
    if path == os.path.join(volume, directory.STORE_NAME):
        return
    entry = Entry(path, *_identity(store.fd), volume, _birth_time(os.fsencode(volume)))
    with _opened(create=True) as fd:
        known = _read(fd, _name(path))
        if known is None or known._replace(seen=0.0) != entry or _is_old(known):
            jsonfile.write(fd, _name(path), {**entry._asdict(), "seen": time.time()})


def entries() -> list[Entry]:
    """All that are remembered; those that are gone for good are forgotten."""
    found = []
    with contextlib.suppress(OSError), _opened(create=False) as fd:
        for name in sorted(directories.names(fd)):
            entry = _read(fd, name)
            if entry is None or name != _name(entry.path):
                continue
            if _is_gone(entry):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=fd)
            else:
                found.append(entry)
    return found


def opened(entry: Entry) -> int | None:
    """The directory of a store that is where it was, open; None when it is not.

    CowfsError: it is there, and not to be trusted.
    """
    try:
        if _identity_at(entry.path) != (entry.inode, entry.born):
            return None
    except OSError:
        return None
    fd, _ = directory.open_directory(entry.path, create=False, known=True)
    if _identity(fd) == (entry.inode, entry.born):
        return fd
    os.close(fd)
    return None


def forget(path: str) -> bool:
    """Remember it no more; whether it was remembered. OSError."""
    try:
        with _opened(create=False) as fd:
            os.unlink(_name(path), dir_fd=fd)
    except FileNotFoundError:
        return False
    return True


def _is_gone(entry: Entry) -> bool:
    try:
        if _identity_at(entry.path) == (entry.inode, entry.born):
            return False
        volume = directory.volume_of(entry.path)
        if (volume, _birth_time(os.fsencode(volume))) == (entry.volume, entry.volume_born):
            return True
    except OSError:  # nobody can tell at this moment
        return False
    return time.time() - entry.seen > FORGET_AFTER


def _is_old(entry: Entry) -> bool:
    return not 0 <= time.time() - entry.seen < _SEEN_EVERY


def _identity(fd: int) -> tuple[int, int | None]:
    return os.fstat(fd).st_ino, _birth_time(ondisk.proc_path(fd), follow=True)


def _identity_at(path: str) -> tuple[int, int | None] | None:
    try:
        inode = os.stat(path, follow_symlinks=False).st_ino
        return inode, _birth_time(os.fsencode(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _birth_time(path: bytes, *, follow: bool = False) -> int | None:
    return syscalls.birth_time(path, follow=follow)


def _name(path: str) -> str:
    return hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest() + ".json"


def _read(fd: int, name: str) -> Entry | None:
    """None for what is not an entry, or not whole."""
    try:
        value = jsonfile.read(fd, name)
        entry = Entry(**{field: value[field] for field in Entry._fields if field in value})
    except (OSError, ValueError, TypeError):
        return None
    return entry if isinstance(entry.path, str) and isinstance(entry.seen, float) else None


@contextlib.contextmanager
def _opened(*, create: bool) -> Iterator[int]:
    """The directory of the entries, which is root's. OSError."""
    path = os.path.join(STATE_DIR, _STORES)
    if create:
        os.makedirs(STATE_DIR, 0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(path, _DIRECTORY)
    try:
        if os.fstat(fd).st_uid != directory.OWNER:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        yield fd
    finally:
        os.close(fd)
