"""Directory trees to copy, and what is seen of a tree from outside. Knows nothing about cowfs."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20


class Entry(NamedTuple):
    """Everything about one name that must look the same in two equal trees."""

    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int  # bytes; 0 for a directory, whose size is the filesystem's own affair
    mtime_ns: int | None
    content: str  # target of a symlink, SHA-256 of a file's bytes
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]  # every name of the same inode, when there are several


def tree_state(root: Path, *, times: bool = True) -> dict[str, Entry]:
    """Describe every name below `root`, which is itself the name ".".

    Without `times` the modification times are left out: two trees that were changed one after the
    other differ there.
    """
    paths = ["."]
    for directory, directories, files in os.walk(root):
        relative = os.path.relpath(directory, root)
        paths += [os.path.normpath(os.path.join(relative, name)) for name in (*directories, *files)]
    inodes: dict[tuple[int, int], list[str]] = {}
    states = {}
    for path in sorted(paths):
        states[path] = st = os.lstat(root / path)
        if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1:
            inodes.setdefault((st.st_dev, st.st_ino), []).append(path)
    return {
        path: Entry(
            mode=st.st_mode,
            uid=st.st_uid,
            gid=st.st_gid,
            rdev=st.st_rdev,
            nlink=st.st_nlink,
            size=0 if stat.S_ISDIR(st.st_mode) else st.st_size,
            mtime_ns=st.st_mtime_ns if times else None,
            content=_content(root / path, st),
            xattrs=_xattrs(root / path),
            links=tuple(inodes.get((st.st_dev, st.st_ino), ())),
        )
        for path, st in states.items()
    }


def _content(path: Path, st: os.stat_result) -> str:
    if stat.S_ISLNK(st.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(st.st_mode):
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _xattrs(path: Path) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def make_model(path: Path) -> Path:
    """A small directory with one of everything that a model directory may have, 5 MiB in all."""
    path.mkdir()
    (path / "config.json").write_text('{"hidden_size": 384}\n')
    (path / "empty").touch()
    weights = bytes(range(256)) * (4 * MIB // 256)
    (path / "weights.bin").write_bytes(weights)
    (path / "small.bin").write_bytes(weights[:4096])
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.txt").write_text("".join(f"token{n}\n" for n in range(1000)))
    (path / "tokenizer" / "deep" / "er").mkdir(parents=True)
    (path / "tokenizer" / "deep" / "er" / "leaf").write_text("leaf\n")
    (path / "latest").symlink_to("weights.bin")
    (path / "dangling").symlink_to("nowhere/at/all")
    (path / "hard1").write_bytes(b"one inode, two names\n")
    os.link(path / "hard1", path / "tokenizer" / "hard2")
    with (path / "sparse.bin").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"island" * 1000)
    (path / "many").mkdir()
    for number in range(200):
        (path / "many" / f"f{number:03}").write_text(str(number))
    (path / "script.sh").write_text("#!/bin/sh\necho hello\n")
    (path / "script.sh").chmod(0o755)
    os.setxattr(path / "config.json", "user.origin", b"hub")
    os.chown(path / "small.bin", 1000, 1000)
    return path


def with_ctimes(root: Path) -> dict[str, tuple[Entry, int]]:
    """Everything about a tree, and the time that no change goes without."""
    return {path: (e, os.lstat(root / path).st_ctime_ns) for path, e in tree_state(root).items()}


def differences(expected: dict[str, Entry], got: dict[str, Entry]) -> str:
    """What differs between two trees, for a message; empty when nothing does."""
    return "\n".join(
        f"{path}:\n  expected: {expected.get(path)}\n  got:      {got.get(path)}"
        for path in sorted(expected.keys() | got.keys())
        if expected.get(path) != got.get(path)
    )
