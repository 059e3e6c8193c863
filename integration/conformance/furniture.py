"""What a directory holds before a case is done in it: one of everything, small."""

from __future__ import annotations

import os
import socket
import stat

from integration.conformance.processes import ALICE, CAROL

#: Bytes of a file from which on the mounts of these tests pass it through.
SHARE_MIN = 64 << 10

DIGITS = b"0123456789"
BIG = DIGITS * 20_000


#: Names of one file.
LINKED = ("hard1", "dir/hard2")


def furnish() -> None:
    """Fill the current directory. Everything belongs to root, but what is named after a user."""
    _file("file", DIGITS)
    _file("other", b"another file\n")
    _file("empty", b"")
    _file("big", BIG)
    os.mkdir("dir")
    _file("dir/file", b"inside\n")
    os.mkdir("dir/sub")
    os.mkdir("void")
    os.symlink("file", "link")
    os.symlink("dir", "dirlink")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    _file("hard1", b"two names\n")
    os.link("hard1", "dir/hard2")
    os.mkfifo("fifo")
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod("null", 0o666)


def furnish_for_users() -> None:
    """The same, and what belongs to ordinary users: the directory itself is open to all."""
    furnish()
    os.chmod(".", 0o777)
    for user, name in ((ALICE, "alice"), (CAROL, "carol")):
        _file(f"{name}.file", DIGITS)
        _file(f"{name}.big", BIG)
        os.mkdir(f"{name}.dir")
        _file(f"{name}.dir/file", b"inside\n")
        os.symlink("file", f"{name}.link")
        for made in (f"{name}.file", f"{name}.big", f"{name}.dir", f"{name}.dir/file"):
            os.chown(made, user.uid, user.gid)
        os.lchown(f"{name}.link", user.uid, user.gid)
    _file("closed", DIGITS)
    os.chmod("closed", 0o600)
    os.mkdir("closed.dir", 0o700)
    _file("closed.dir/file", DIGITS)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    _file("sticky/root", b"root's\n")
    _file("sticky/alice", b"alice's\n")
    os.chown("sticky/alice", ALICE.uid, ALICE.gid)
    os.mkdir("sticky/alice.dir")
    os.chown("sticky/alice.dir", ALICE.uid, ALICE.gid)


def _file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, data)
    os.close(fd)


def listening(path: str) -> socket.socket:
    """A UNIX socket that is bound to a path."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    made.listen()
    return made
