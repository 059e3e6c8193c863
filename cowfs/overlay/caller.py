"""Who made a request, for the few decisions that the kernel leaves to the server.

A kernel that allows idmapped mounts (FUSE_ALLOW_IDMAP, Linux 6.12) says in a request who the caller
is only where something is created, as the owner that it is to have.  For everything else the caller
is looked up in /proc, as it waits for us; one that cannot be seen has no privileges.  Ids there are
the host's.  So a caller through an idmapped mount is neither root here nor in a file's group: where
the two numberings differ it gets less, never more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyfuse3 import RequestContext

# FUSE_INVALID_UIDGID of <linux/fuse.h>: the request does not say.
UNSAID = 0xFFFFFFFF


class Caller(NamedTuple):
    """A thread, and the user for whom descriptors are held; `UNSAID` if that is not known."""

    pid: int
    uid: int


def uid_of(ctx: RequestContext) -> int:
    """The caller's filesystem uid; `UNSAID` when it cannot be seen."""
    if ctx.uid != UNSAID:
        return ctx.uid
    ids = _status(ctx.pid, b"Uid:")
    return ids[3] if len(ids) == 4 else UNSAID


def is_in_group(ctx: RequestContext, gid: int) -> bool:
    """Whether the caller's filesystem gid, or one of its supplementary groups, is this one."""
    if ctx.gid == UNSAID:
        ids = _status(ctx.pid, b"Gid:")
        own = ids[3] if len(ids) == 4 else UNSAID
    else:
        own = ctx.gid
    return gid == own or gid in _status(ctx.pid, b"Groups:")


def _status(pid: int, field: bytes) -> list[int]:
    """The numbers of one line of /proc/PID/status (proc_pid_status(5)); [] when there is none.

    Read as bytes: the name of a thread is whatever its user likes.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            for line in lines:
                if line.startswith(field):
                    return [int(number) for number in line.split()[1:]]
    except OSError:
        pass
    return []
