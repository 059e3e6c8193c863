"""What a plain copy is made of: a source that was named, looked at and opened once.

Knows the kinds of sources, a tree or a single entry, and how an error in one is told.
"""

from __future__ import annotations

import errno
import os
import stat

from cowfs.system import mountinfo, nearby
from cowfs.system.errors import CowfsError, UsageError
from cowfs.trees.links import Policy
from cowfs.trees.scan import Scanner


def canonical(source: str, *, follow: bool) -> str:
    """The path of a source without links; the last name is followed with `follow` only.

    UsageError when there is nothing.
    """
    if follow or source.endswith("/") or os.path.basename(source) in ("", ".", ".."):
        path = os.path.realpath(source)
    else:
        parent, name = os.path.split(os.path.join(os.getcwd(), source))
        path = os.path.join(os.path.realpath(parent), name)
    try:
        os.lstat(path)
    except OSError as error:
        raise unreadable(source, error) from None
    return path


def is_directory(path: str) -> bool:
    """Whether a canonical path is one."""
    return stat.S_ISDIR(os.lstat(path).st_mode)


def given(links: Policy) -> list[str]:
    """The option that says so, where it is not the default."""
    return [] if links == "auto" else [f"--links={links}"]


def open_tree(path: str, links: Policy, *, volumes: bool) -> Scanner:
    """A scanner of a canonical directory, in which whiteouts are nothing special. CowfsError.

    `volumes`: whether links may be followed to other volumes.
    """
    try:
        return Scanner(path, None, whiteouts=True, links=links, volumes=volumes)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(source: str, error: OSError) -> CowfsError:
    """What it means that a source cannot be opened."""
    if error.errno == errno.ENOENT:
        meant = nearby.directory(os.path.realpath(source))
        way = "name what is to be copied" if meant is None else f"did you mean {meant}?"
        return UsageError(f"source {source} does not exist: {way}")
    if error.errno == errno.ENOTDIR:
        return UsageError(f"source {source} is not a directory: name an existing directory")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"no permission to read source {source}: run cowfs as root")
    return CowfsError(f"source {source} cannot be opened: {error.strerror}")


def failure(source: str, destination: str, error: OSError) -> CowfsError:
    """What an error while copying means to the user. Its filename is relative to the source."""
    place = os.path.join(source, os.fsdecode(error.filename)) if error.filename else source
    volume = mountinfo.holding(os.path.realpath(os.path.dirname(destination))).mountpoint
    if error.errno == errno.ENOSPC:
        return CowfsError(f"no space left on the volume {volume} while copying {place}")
    if error.errno == errno.EDQUOT:
        return CowfsError(f"disk quota exceeded on the volume {volume} while copying {place}")
    if error.errno == errno.EIO:
        return CowfsError(
            f"I/O error while copying {place}: see dmesg, and check the disk and the filesystem"
        )
    if error.errno == errno.EBADMSG:
        return CowfsError(
            f"{place} reads back differently from its source: check the disks and the memory"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return UsageError(f"no permission to copy {place}: run cowfs as root")
    if error.errno == errno.EFBIG:
        return CowfsError(f"{place} is too large for a file on the volume {volume}")
    return CowfsError(f"cannot copy {place}: {error.strerror}")
