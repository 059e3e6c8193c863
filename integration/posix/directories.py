"""readdir, telldir and seekdir, working directories, inotify, paths that are too long."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from pathlib import Path

from integration.posix.notes import Notes, opened

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = _libc.readdir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = _libc.readdir.argtypes = _libc.closedir.argtypes = (ctypes.c_void_p,)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_IN_ALL = 0xFFF


class _Stream:
    """readdir(3)."""

    def __init__(self, path: Path) -> None:
        self.dir = _libc.opendir(os.fsencode(path))
        assert self.dir

    def next(self) -> str | None:
        entry = _libc.readdir(self.dir)
        return ctypes.string_at(entry + 19).decode() if entry else None

    def rest(self) -> list[str]:
        return list(iter(self.next, None))


def seeking(notes: Notes, root: Path) -> None:
    for name in ("dir", "many", "void"):
        where = root / name
        if name == "many":
            where.mkdir()
            for number in range(500):
                (where / f"entry{number}").touch()
        stream = _Stream(where)
        seen: list[tuple[int, str]] = []
        while True:
            at = _libc.telldir(stream.dir)
            entry = stream.next()
            if entry is None:
                break
            seen.append((at, entry))
        assert sorted(e for _, e in seen) == sorted([*os.listdir(where), ".", ".."])
        for at, entry in seen[:: max(1, len(seen) // 20)]:
            _libc.seekdir(stream.dir, at)
            assert stream.next() == entry
        _libc.rewinddir(stream.dir)
        assert len(stream.rest()) == len(seen)
        _libc.closedir(stream.dir)
        notes.note(name, sorted(e for _, e in seen))


def entries_that_come_and_go(notes: Notes, root: Path) -> None:
    where = root / "many"
    where.mkdir()
    for number in range(300):
        (where / f"entry{number}").touch()
    stream = _Stream(where)
    first = [stream.next() for _ in range(50)]
    gone = [f"entry{n}" for n in range(0, 300, 7)]
    for name in gone:
        (where / name).unlink()
    (where / "entry1").rename(where / "renamed")
    (where / "new").touch()
    seen = [name for name in first if name] + stream.rest()
    stayed = {f"entry{n}" for n in range(300)} - set(gone) - {"entry1"}
    assert stayed <= set(seen), "an entry that was there all the time was not listed"
    assert len(seen) == len(set(seen)), "an entry was listed twice"
    _libc.rewinddir(stream.dir)
    again = stream.rest()
    notes.note("after a rewind", sorted(again))
    _libc.closedir(stream.dir)


def working_directories(notes: Notes, root: Path) -> None:
    before = os.getcwd()
    try:
        os.chdir(root / "dir/inner")
        notes.note("here", os.path.relpath(os.getcwd(), root))
        (root / "dir").rename(root / "moved")
        notes.note("moved", os.path.relpath(os.getcwd(), root))
        notes.call("relative", opened, "deep", os.O_RDWR)
        notes.call("up", lambda: sorted(os.listdir("..")))
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir(root / "moved/inner/gone")
        notes.call("removed", os.getcwd)
        notes.call("create", opened, "x", os.O_CREAT)
        notes.call("list", os.listdir, ".")
        notes.call("up", lambda: sorted(os.listdir("..")))
    finally:
        os.chdir(before)


def long_paths(notes: Notes, root: Path) -> None:
    fd = os.open(root / "void", os.O_RDONLY)
    depth = 40
    try:
        for _ in range(depth):  # twice as long as a path may be
            os.mkdir("d" * 200, dir_fd=fd)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        notes.call("leaf", os.stat, "leaf", dir_fd=fd)
        os.rename("leaf", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
        notes.note("listed", os.listdir(fd))
        notes.call("as a path", os.stat, f"{root}/void/" + "/".join(["d" * 200] * 21))
        os.unlink("renamed", dir_fd=fd)
    finally:
        os.close(fd)
    subprocess.run(["rm", "-r", root / "void"], check=True)
    notes.expect("ELOOP", "a loop", os.stat, root / "loop")
    for number in range(45):
        (root / f"chain{number}").symlink_to(f"chain{number + 1}" if number < 44 else "file")
    notes.call("a chain of 40", opened, root / "chain5", os.O_RDONLY)
    notes.expect("ELOOP", "a chain of 45", opened, root / "chain0", os.O_RDONLY)


def events(notes: Notes, root: Path) -> None:
    """inotify(7) of what happens through this mount."""
    watcher = _libc.inotify_init1(os.O_NONBLOCK)
    for name in (".", "file", "void", "large"):
        assert _libc.inotify_add_watch(watcher, os.fsencode(root / name), _IN_ALL) > 0
    (root / "new").write_bytes(b"x")
    (root / "file").write_bytes(b"y")
    (root / "file").chmod(0o600)
    (root / "new").rename(root / "void/new")
    os.truncate(root / "large", 10)
    os.link(root / "large", root / "hard")
    os.unlink(root / "void/new")
    os.rmdir(root / "void")
    raw = os.read(watcher, 1 << 16)
    os.close(watcher)
    seen = []
    while raw:
        _wd, mask, _cookie, length = struct.unpack_from("iIII", raw)
        seen.append((hex(mask), raw[16 : 16 + length].rstrip(b"\0").decode()))
        raw = raw[16 + length :]
    notes.note("events", seen)


def big(notes: Notes, root: Path) -> None:
    where = root / "void"
    for number in range(3000):
        os.mkdir(where / f"d{number}")
    notes.call("links", os.stat, where)
    assert where.stat().st_nlink == 3002
    assert len(os.listdir(where)) == 3000
    for number in range(0, 3000, 2):
        os.rmdir(where / f"d{number}")
    assert sorted(os.listdir(where)) == sorted(f"d{n}" for n in range(1, 3000, 2))
    notes.call("links", os.stat, where)


CASES = (seeking, entries_that_come_and_go, working_directories, long_paths, events, big)
