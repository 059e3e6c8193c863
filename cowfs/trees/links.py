"""Links that lead out of a source: which of them become files of the copy, and which stay links.

A copy of such a link is a way out of the copy: what is written through it is written to the source,
or to something else. So the caller chooses:

keep    every link stays a link.
auto    in a cache of huggingface_hub a link to a blob becomes the file (hub.py); others stay.
follow  a link to any regular file becomes that file, on conditions.

The conditions are there because root makes copies of what others own. Who may make a link in the
source must not be able to have root copy a file that he cannot reach: so every link on the way
belongs to root, to who runs this, or to the owner of the file. The way is gone one name at a time,
with descriptors that follow nothing by themselves, and what is at its end is the very inode that
was judged. Owner, mode and ACL of the file go with it. Directories, and what is neither file nor
directory, stay links; so does what leads nowhere.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Literal, get_args

from cowfs.system import ondisk, syscalls
from cowfs.trees import hub

Policy = Literal["auto", "follow", "keep"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

_MOST_LINKS = 40  # on one way, as in the kernel (path_resolution(7))
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_INSIDE = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS


class Links:
    """The links of one source, none of which is followed.

    A link is named by a descriptor of its directory, its name there, and how many directories that
    one lies below the source.
    """

    #: Whether `target` has to be asked.
    follows = False

    def close(self) -> None:
        """Close what is open."""

    def target(self, dir_fd: int, name: str, depth: int) -> int | None:  # noqa: ARG002
        """A descriptor (O_PATH) of the regular file that the link becomes; None: it stays one.

        OSError.
        """
        return None

    def why_kept(self, dir_fd: int, name: str, depth: int) -> str | None:
        """Why a link that leads out is not followed, perhaps ""; None: it stays inside.

        Nothing outside of the source is looked at for that.
        """
        way = _Way(dir_fd, name, depth, beyond=False)
        way.close()
        return "" if way.out else None

    def open(self, dir_fd: int, name: str, depth: int) -> int | None:
        """The same file as of `target`, open for reading. OSError."""
        found = self.target(dir_fd, name, depth)
        if found is None:
            return None
        try:
            return os.open(ondisk.proc_path(found), _READ)
        finally:
            os.close(found)


def links_of(source: str, policy: Policy, device: int | None) -> Links:
    """What the policy makes of the links of a canonical source.

    `device`: st_dev of the only volume whose files may be followed to; None: any.
    """
    if policy == "follow":
        return _Following(device)
    if policy == "auto" and (place := hub.below_repository(source)) is not None:
        return _InCache(hub.Repository(*place), device)
    return Links()


class _InCache(Links):
    """Those of a cache of huggingface_hub."""

    follows = True

    def __init__(self, repository: hub.Repository, device: int | None) -> None:
        self._repository = repository
        self._device = device

    def close(self) -> None:
        self._repository.close()

    def target(self, dir_fd: int, name: str, depth: int) -> int | None:
        try:
            text = os.readlink(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno == errno.EINVAL:  # no link any more
                return None
            raise
        found = self._repository.open(text, depth)
        if found is None or self._device in (None, os.fstat(found).st_dev):
            return found
        os.close(found)
        return None


class _Following(Links):
    """Those that lead to files which whoever made the links may hand on."""

    follows = True

    def __init__(self, device: int | None) -> None:
        self._device = device
        self._trusted = {0, os.geteuid()}

    def target(self, dir_fd: int, name: str, depth: int) -> int | None:
        way = _Way(dir_fd, name, depth, beyond=True)
        if way.out and not self._objection(way):
            return way.fd
        way.close()
        return None

    def why_kept(self, dir_fd: int, name: str, depth: int) -> str | None:
        way = _Way(dir_fd, name, depth, beyond=True)
        try:
            return self._objection(way) if way.out else None
        finally:
            way.close()

    def _objection(self, way: _Way) -> str:
        if way.error is not None:
            return f"which cannot be followed: {os.strerror(way.error)}"
        st = os.fstat(way.fd)
        if stat.S_ISDIR(st.st_mode):
            return "a directory"
        if not stat.S_ISREG(st.st_mode):
            return "no regular file"
        if self._device not in (None, st.st_dev):
            return "on another volume"
        if not way.owners <= self._trusted | {st.st_uid}:
            return "a file that the owner of the link does not own"
        if any(not _may_enter(st, way.owners - self._trusted) for st in way.passed):
            return "below a directory that the owner of the link may not enter"
        return ""


def _may_enter(directory: os.stat_result, users: set[int]) -> bool:
    """Whether the mode lets each of them look up names there. Groups and ACLs are not asked."""
    mode = directory.st_mode
    return all(mode & (0o100 if user == directory.st_uid else 0o001) for user in users)


class _Way:
    """Where a link leads, gone name by name. Owns `fd`.

    out: whether it leaves the source, if only to come back: in the copy it would not. Without
    `beyond` it is not gone any further then.
    owners: user ids of all links on it. passed: the directories outside that names were looked up
    in. error: errno of what it ends at too early.
    """

    def __init__(self, dir_fd: int, name: str, depth: int, *, beyond: bool) -> None:
        self.out = False
        self.owners: set[int] = set()
        self.passed: list[os.stat_result] = []
        self.error: int | None = None
        self.fd = os.dup(dir_fd)
        self._depth = depth
        try:
            self._go([name], beyond)
        except OSError as error:
            self.error = error.errno
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.fd)

    def _go(self, names: list[str], beyond: bool) -> None:
        links = 0
        while names:
            name = names.pop()
            if name in ("", "."):
                if not stat.S_ISDIR(os.fstat(self.fd).st_mode):
                    raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                continue
            self._depth += -1 if name == ".." else 1
            self.out = self.out or self._depth < 0
            if self.out and not beyond:
                return
            fd = self._step(name)
            st = os.fstat(fd)
            if not stat.S_ISLNK(st.st_mode):
                self._stand_on(fd)
                continue
            try:
                text = os.readlink("", dir_fd=fd)
            finally:
                os.close(fd)
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            self._depth -= 1
            self.owners.add(st.st_uid)
            names += reversed(text.split("/"))
            if text.startswith("/"):
                self.out = True
                self._stand_on(os.open("/", _LOOK))

    def _step(self, name: str) -> int:
        if self.out:
            self.passed.append(os.fstat(self.fd))
            return os.open(name, _LOOK, dir_fd=self.fd)
        # What is mounted in the source is no part of it, and may hang.
        return syscalls.openat2(self.fd, os.fsencode(name), _LOOK, 0, _INSIDE)

    def _stand_on(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd
