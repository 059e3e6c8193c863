"""What a read-only mount refuses, and what it does not."""

from __future__ import annotations

import os

from integration.conformance import calls
from integration.conformance.cases import equal, fails, get, put
from integration.conformance.furniture import BIG, DIGITS


def refuse_every_change() -> None:
    """To be called in a furnished directory of a read-only mount."""
    for path in ("file", "big", "hard1", "dir/file"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_CREAT):
            fails("EROFS", os.open, path, flags)
        fails("EROFS", os.truncate, path, 0)
        fails("EROFS", os.unlink, path)
        fails("EROFS", os.link, path, "new")
        fails("EROFS", calls.faccessat2, path, os.W_OK, 0)
    for path in ("file", "big", "dir", "fifo", "null"):
        fails("EROFS", os.chmod, path, 0o600)
        fails("EROFS", os.chown, path, 1, 1)
        fails("EROFS", os.utime, path, ns=(1, 1))
        fails("EROFS", os.setxattr, path, "trusted.a", b"")
        fails("EROFS", os.removexattr, path, "trusted.a")
        fails("EROFS", os.rename, path, "new")
    fails("EROFS", put, "new")
    fails("EROFS", os.mkdir, "new")
    fails("EROFS", os.mkfifo, "new")
    fails("EROFS", os.symlink, "x", "new")
    fails("EROFS", os.rmdir, "void")
    fails("EROFS", os.lchown, "link", 1, 1)
    fails("EROFS", os.open, ".", os.O_TMPFILE | os.O_RDWR)
    fails("EROFS", calls.renameat2, "file", "other", calls.RENAME_EXCHANGE)


def allow_what_changes_nothing() -> None:
    """The same."""
    equal(get("file"), DIGITS)
    equal(get("big"), BIG)
    fails("EEXIST", os.mkdir, "dir")
    fails("EEXIST", os.open, "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open("file", os.O_RDONLY | os.O_CREAT))
    os.close(os.open("null", os.O_RDWR))  # a device is not on the mount
    reader = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
    os.write(reader, b"through")
    equal(os.read(reader, 10), b"through")
    os.close(reader)
    calls.faccessat2("file", os.R_OK, 0)
