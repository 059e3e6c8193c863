"""The mount table of this process, as /proc/self/mountinfo tells it.

Knows the format (proc_pid_mountinfo(5)) and which of the lines are ours; asks the kernel nothing
else, so reading it never blocks on a mount whose daemon hangs.

A copy that the kernel's overlayfs serves has the type `overlay` like every other one, and is known
by its layers, which are told to the kernel in a way of our own (overlayfs.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

FSTYPE = "fuse.cowfs"
OVERLAY = "overlay"

# The layers as seen from the copy's directory; the id is that of its template.
LAYERS = "lowerdir=../../lowers/{}/tree,upperdir=upper,workdir=work"
_LAYERS = re.compile(re.escape(LAYERS).replace(r"\{\}", "([0-9a-f]{32})") + "(?:,|$)")

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line. Paths are os.fsdecode'd; device is "major:minor"; options are this mount's own.

    template: its id where overlayfs serves a copy, else empty. read_only: this mount, or all of its
    filesystem. root: what of the filesystem is there, not "/" if a directory of it was bound.
    parent_id: the mount that it is mounted on.
    """

    mount_id: int
    device: str
    mountpoint: str
    fstype: str
    source: str
    options: str = ""
    template: str = ""
    read_only: bool = False
    root: str = "/"
    parent_id: int = 0

    @property
    def is_cowfs(self) -> bool:
        """Whether it is a copy, whoever serves (or served) it."""
        return self.fstype == FSTYPE or bool(self.template)


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """All mounts, in the order in which they were made."""
    with open(path, "rb") as lines:
        return [_parse(line.rstrip(b"\n")) for line in lines]


def mounted_at(path: str, mounts: Iterable[Mount] | None = None) -> Mount | None:
    """The topmost mount exactly at this canonical path, None when nothing is mounted there."""
    found = None
    for mount in read() if mounts is None else mounts:
        if mount.mountpoint == path:
            found = mount
    return found


def holding(path: str, mounts: Iterable[Mount] | None = None) -> Mount:
    """The mount that a canonical path lies on. LookupError when the table has no root."""
    found = None
    for mount in read() if mounts is None else mounts:
        if is_within(path, mount.mountpoint) and (
            found is None or len(mount.mountpoint) >= len(found.mountpoint)
        ):
            found = mount
    if found is None:
        raise LookupError(f"no mount holds {path!r}")
    return found


def reached(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that a canonical path leads to, also where one was mounted over others, and that
    the kernel is not asked for: it might ask a server that does not answer. None: by no mount."""
    candidates = [mount for mount in mounts if is_within(path, mount.mountpoint)]
    known = {mount.mount_id for mount in candidates}
    found = None
    above = [mount for mount in candidates if mount.parent_id not in known]
    while above:
        found = min(above, key=lambda mount: len(mount.mountpoint))
        candidates.remove(found)
        above = [mount for mount in candidates if mount.parent_id == found.mount_id]
    return found


def is_within(path: str, directory: str) -> bool:
    """Whether a canonical path is the directory or lies below it, by name alone."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _parse(line: bytes) -> Mount:
    fields = line.split(b" ")
    # optional fields end at "-"; a mountpoint cannot be taken for it, it starts with "/"
    separator = fields.index(b"-", 6)
    fstype = _unescape(fields[separator + 1])
    of_filesystem = _unescape(fields[separator + 3])
    layers = _LAYERS.search(of_filesystem) if fstype == OVERLAY else None
    options = _unescape(fields[5])
    return Mount(
        mount_id=int(fields[0]),
        device=fields[2].decode("ascii"),
        mountpoint=_unescape(fields[4]),
        fstype=fstype,
        source=_unescape(fields[separator + 2]),
        options=options,
        template="" if layers is None else layers[1],
        read_only=any("ro" in words.split(",") for words in (options, of_filesystem)),
        root=_unescape(fields[3]),
        parent_id=int(fields[1]),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
