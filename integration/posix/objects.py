"""The directory that each case starts from: one of every kind of object."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from integration.posix.notes import OWNER, TEAM

LARGE = 2 << 20  # bytes: above the size from which a file is passed through


def make(path: Path) -> None:
    """Fill the new directory *path*."""
    path.mkdir(parents=True)
    path.chmod(0o777)
    (path / "file").write_bytes(b"content of file\n")
    (path / "large").write_bytes(bytes(range(256)) * (LARGE // 256))
    (path / "empty").touch()
    (path / "script").write_text("#!/bin/sh\necho ran\n")
    (path / "script").chmod(0o755)
    (path / "linked").write_text("two names\n")
    os.link(path / "linked", path / "linked2")
    (path / "void").mkdir()
    (path / "dir" / "inner").mkdir(parents=True)
    (path / "dir" / "leaf").write_text("leaf\n")
    (path / "dir" / "inner" / "deep").write_text("deep\n")
    (path / "to-file").symlink_to("file")
    (path / "to-dir").symlink_to("dir")
    (path / "dangling").symlink_to("nowhere")
    (path / "loop").symlink_to("loop")
    os.mkfifo(path / "fifo")
    os.mknod(path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for name in ("file", "empty", "large", "void", "fifo"):
        os.chown(path / name, OWNER, TEAM)
    (path / "owned").mkdir()
    (path / "owned" / "mine").write_text("mine\n")
    os.chown(path / "owned", OWNER, OWNER)
    os.chown(path / "owned" / "mine", OWNER, OWNER)
    (path / "closed").mkdir(0o700)
    (path / "closed" / "secret").write_text("secret\n")
    (path / "sticky").mkdir()
    (path / "sticky").chmod(0o1777)
    for uid in (OWNER, 0):
        (path / "sticky" / f"of{uid}").write_text("sticky\n")
        os.chown(path / "sticky" / f"of{uid}", uid, uid)
        (path / "sticky" / f"dir-of{uid}").mkdir()
        os.chown(path / "sticky" / f"dir-of{uid}", uid, uid)
    (path / "setgid").mkdir()
    os.chown(path / "setgid", 0, TEAM)
    (path / "setgid").chmod(0o2777)
