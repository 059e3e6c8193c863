"""rename and renameat2."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from integration.posix.notes import OTHER, OWNER, Notes, acting_as

NOREPLACE, EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_KINDS = ("file", "linked", "void", "dir", "to-file", "to-dir", "dangling", "fifo", "nothing")


def rename(old: Path | str, new: Path | str, flags: int = 0) -> None:
    """renameat2(2)."""
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _combinations(notes: Notes, root: Path, flags: int) -> None:
    """Every kind over every kind; what went is put back from where it is."""
    for old in _KINDS:
        for new in (*_KINDS, "new"):
            here = root / f"{old}-{new}"
            here.mkdir()
            for name in {old, new} - {"nothing", "new"}:
                if (root / name).is_dir() and not (root / name).is_symlink():
                    (here / name).mkdir()
                    if name == "dir":
                        (here / name / "leaf").touch()
                else:
                    os.link(root / name, here / name, follow_symlinks=False)
            notes.call(f"{old} to {new}", rename, here / old, here / new, flags)
            notes.note("left", sorted(os.listdir(here)))
            for name in sorted(os.listdir(here)):
                notes.call(name, os.lstat, here / name)


def every_kind_over_every_kind(notes: Notes, root: Path) -> None:
    _combinations(notes, root, 0)


def without_replacing(notes: Notes, root: Path) -> None:
    _combinations(notes, root, NOREPLACE)


def exchanging(notes: Notes, root: Path) -> None:
    _combinations(notes, root, EXCHANGE)


def objects_of_the_source(notes: Notes, root: Path) -> None:
    """What the directory came with, not what was made in it."""
    for old, new, flags in (
        ("file", "large", 0), ("dir", "void", 0), ("void/inner", "inner", 0),
        ("linked", "linked2", 0), ("to-dir", "to-file", 0), ("fifo", "script", 0),
        ("large", "empty", EXCHANGE), ("void", "large", EXCHANGE), ("inner/deep", "up", 0),
        ("owned", "closed", EXCHANGE), ("owned", "inner/owned", NOREPLACE),
        ("inner", "inner/owned/inner", 0), ("sticky", "void/x", 0), ("setgid", "setgid", 0),
        ("closed", "sticky", 0), ("dangling", "loop", EXCHANGE), ("null", "null2", 0),
    ):  # fmt: skip
        notes.call(f"{old} {new} {flags}", rename, root / old, root / new, flags)
    for directory, _names, files in sorted(os.walk(root)):
        for name in sorted(files):
            notes.call(
                os.path.relpath(f"{directory}/{name}", root), os.lstat, f"{directory}/{name}"
            )


def errors(notes: Notes, root: Path) -> None:
    notes.expect("EINVAL", "into itself", rename, root / "dir", root / "dir/inner/x")
    notes.expect("ENOTDIR", "directory over a file", rename, root / "dir", root / "file")
    notes.expect("EISDIR", "file over a directory", rename, root / "file", root / "void")
    notes.expect("ENOENT", "nothing", rename, root / "nothing", root / "new")
    notes.expect("EXDEV", "to another filesystem", rename, root / "file", "/proc/file")
    notes.expect("EEXIST", "NOREPLACE", rename, root / "file", root / "empty", NOREPLACE)
    notes.expect("ENOENT", "EXCHANGE with nothing", rename, root / "file", root / "new", EXCHANGE)
    notes.expect("EINVAL", "both flags", rename, root / "file", root / "new", NOREPLACE | EXCHANGE)
    for new in ("dir", "dir/", "nothing/new", "file/new", "loop/new", "to-dir/new", "dangling",
                "void/.", "void/..", "n" * 256):  # fmt: skip
        for old in ("void", "empty", "file/x", "void/", "void/.", "empty/"):
            notes.call(f"{old} {new}", rename, f"{root}/{old}", f"{root}/{new}")


def permissions(notes: Notes, root: Path) -> None:
    for uid in (OTHER, OWNER):
        with acting_as(uid):
            for old, new in (
                ("owned/mine", "owned/yours"), ("owned/mine", "mine"), ("dir/leaf", "leaf"),
                ("file", "file2"), ("file2", "closed/file"), ("sticky/of0", "of0"),
                (f"sticky/of{OWNER}", "sticky/renamed"), ("empty", "sticky/of0"),
                ("empty", f"sticky/of{OWNER}"), ("sticky/dir-of0", "sticky/x"), ("dir", "d2"),
                (f"sticky/dir-of{OWNER}", "void/moved"), ("setgid", "sg"), ("void", "v2"),
            ):  # fmt: skip
                notes.call(f"{uid} {old} {new}", rename, root / old, root / new)
    with acting_as(OTHER):
        # the entry ".." of a directory is written when its parent changes
        (root / "d3").mkdir()
        (root / "d3").chmod(0o555)
        notes.call("a directory that may not be written", rename, root / "d3", root / "setgid/d3")


def open_files_go_along(notes: Notes, root: Path) -> None:
    fd = os.open(root / "file", os.O_RDWR)
    over = os.open(root / "empty", os.O_RDWR)
    directory = os.open(root / "dir", os.O_RDONLY)
    rename(root / "file", root / "empty")
    rename(root / "dir", root / "void/dir")
    os.write(fd, b"CONTENT")
    os.write(over, b"of the replaced one")
    notes.call("content", (root / "empty").read_bytes)
    notes.call("replaced", os.fstat, over)
    notes.call("replaced content", os.pread, over, 100, 0)
    notes.call("relative", os.stat, "leaf", dir_fd=directory)
    os.close(os.open("made", os.O_CREAT, dir_fd=directory))
    notes.note("listed", sorted(os.listdir(directory)))
    notes.note("there", sorted(os.listdir(root / "void/dir")))
    for number in (fd, over, directory):
        os.close(number)


CASES = (
    every_kind_over_every_kind, without_replacing, exchanging, objects_of_the_source, errors,
    permissions, open_files_go_along,
)  # fmt: skip
