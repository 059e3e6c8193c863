"""open, creat, link, unlink, mkdir, rmdir, mknod, symlink: making and removing names."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from integration.posix.notes import OTHER, OWNER, TEAM, Notes, acting_as, opened, umask

EVERYTHING = (
    "file", "large", "empty", "void", "dir", "to-file", "to-dir", "dangling", "loop", "fifo",
    "null", "nothing", "file/below", "nothing/below", "to-dir/leaf", "loop/below",
)  # fmt: skip


def open_flags(notes: Notes, root: Path) -> None:
    flags = {
        "O_RDONLY": os.O_RDONLY, "O_RDWR": os.O_RDWR, "O_CREAT": os.O_CREAT | os.O_WRONLY,
        "O_EXCL": os.O_CREAT | os.O_EXCL | os.O_RDWR, "O_TRUNC": os.O_TRUNC | os.O_WRONLY,
        "O_DIRECTORY": os.O_DIRECTORY, "O_NOFOLLOW": os.O_NOFOLLOW, "O_PATH": os.O_PATH,
        "O_PATH|O_NOFOLLOW": os.O_PATH | os.O_NOFOLLOW, "O_CREAT|O_DIRECTORY":
        os.O_CREAT | os.O_DIRECTORY, "O_APPEND": os.O_APPEND | os.O_WRONLY,
        "O_NOATIME": os.O_NOATIME, "O_WRONLY|O_NONBLOCK": os.O_WRONLY | os.O_NONBLOCK,
        "O_CREAT|O_NOFOLLOW": os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR,
        "O_SYNC": os.O_SYNC | os.O_RDWR, "O_DIRECT": os.O_DIRECT | os.O_RDWR,
    }  # fmt: skip
    for name in EVERYTHING:
        for label, value in flags.items():
            notes.call(f"{name} {label}", opened, root / name, value | os.O_NONBLOCK)
    notes.expect(
        "ELOOP", "a symlink that must not be followed", opened, root / "to-file", os.O_NOFOLLOW
    )
    notes.expect("EISDIR", "write to a directory", opened, root / "dir", os.O_RDWR)
    notes.expect("ENXIO", "write to a fifo that nobody reads", opened, root / "fifo",
                 os.O_WRONLY | os.O_NONBLOCK)  # fmt: skip
    notes.expect("EEXIST", "exclusive", opened, root / "file", os.O_CREAT | os.O_EXCL)


def open_permissions(notes: Notes, root: Path) -> None:
    for mode in (0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o777):
        (root / "file").chmod(mode)
        for uid, groups in ((OWNER, ()), (OTHER, ()), (OTHER, (TEAM,))):
            with acting_as(uid, groups):
                for label, flags in (
                    ("read", os.O_RDONLY), ("write", os.O_WRONLY), ("both", os.O_RDWR),
                    ("truncate", os.O_RDONLY | os.O_TRUNC), ("noatime", os.O_NOATIME),
                ):  # fmt: skip
                    notes.call(f"{mode:o} {uid} {groups} {label}", opened, root / "file", flags)
    with acting_as(OTHER):
        notes.expect("EACCES", "in a closed directory", opened, root / "closed/secret", os.O_RDONLY)
        notes.expect("EACCES", "create in it", opened, root / "closed/new", os.O_CREAT)
        notes.expect("EACCES", "create in another's", opened, root / "owned/new", os.O_CREAT)
    with acting_as(OWNER):
        notes.expect("opened", "create in one's own", opened, root / "owned/new", os.O_CREAT)


def create_modes(notes: Notes, root: Path) -> None:
    for mask in (0, 0o022, 0o077, 0o777):
        for mode in (0o666, 0o7777, 0, 0o2755):
            with umask(mask), acting_as(OWNER, [TEAM]):
                for place in ("void", "setgid", "owned"):
                    name = root / place / f"{mask:o}-{mode:o}"
                    notes.call("open", opened, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
                    notes.call("stat", os.stat, name)
                    notes.call("mkdir", os.mkdir, f"{name}.d", mode)
                    notes.call("stat", os.stat, f"{name}.d")
                    notes.call("mkfifo", os.mkfifo, f"{name}.p", mode)
                    notes.call("stat", os.stat, f"{name}.p")
                    notes.call("mknod", os.mknod, f"{name}.n", stat.S_IFREG | mode)
                    notes.call("stat", os.stat, f"{name}.n")
    with acting_as(OTHER):
        (root / "setgid" / "by-other").write_text("")
        notes.call("setgid directory", os.stat, root / "setgid" / "by-other")


def link_errors(notes: Notes, root: Path) -> None:
    for source in EVERYTHING:
        for target in ("new", "file", "void", "nothing/new", "file/new", "dangling", "loop/new"):
            notes.call(f"{source} -> {target}", os.link, root / source, root / target,
                       follow_symlinks=False)  # fmt: skip
            if (root / "new").is_symlink() or (root / "new").exists():
                notes.call("made", os.lstat, root / "new")
                (root / "new").unlink()
    notes.expect("EPERM", "of a directory", os.link, root / "dir", root / "new")
    notes.expect("EEXIST", "onto a file", os.link, root / "file", root / "large")
    notes.expect("EXDEV", "to another filesystem", os.link, root / "file", "/new-name")


def link_counts(notes: Notes, root: Path) -> None:
    os.link(root / "linked", root / "linked3")
    for name in ("linked", "linked2", "linked3"):
        notes.call(name, os.stat, root / name)
    assert (root / "linked").stat().st_nlink == 3
    numbers = {(root / name).stat().st_ino for name in ("linked", "linked2", "linked3")}
    assert len(numbers) == 1
    with (root / "linked2").open("ab") as file:
        file.write(b"through another name")
    notes.call("content", (root / "linked3").read_bytes)
    fd = os.open(root / "linked", os.O_RDONLY)
    for name in ("linked", "linked2", "linked3"):
        (root / name).unlink()
        notes.call(f"without {name}", os.fstat, fd)
    notes.call("still read", os.read, fd, 100)
    os.close(fd)


def link_protected(notes: Notes, root: Path) -> None:
    """As /proc/sys/fs/protected_hardlinks says."""
    (root / "secret").write_text("x")
    (root / "secret").chmod(0o600)
    (root / "setuid").write_text("x")
    (root / "setuid").chmod(0o4755)
    with acting_as(OTHER):
        for name in ("secret", "setuid", "file", "script", "fifo", "to-file"):
            notes.call(name, os.link, root / name, root / f"{name}.link", follow_symlinks=False)


def unlink_errors(notes: Notes, root: Path) -> None:
    for name in EVERYTHING:
        notes.call(f"unlink {name}", os.unlink, root / name)
        notes.call("then", os.lstat, root / name)
    notes.expect("EISDIR", "unlink of a directory", os.unlink, root / "void")
    notes.expect("ENOENT", "unlink twice", os.unlink, root / "file")
    notes.expect("ENOTDIR", "below a file", os.unlink, root / "linked/below")


def rmdir_errors(notes: Notes, root: Path) -> None:
    for name in (*EVERYTHING, "void/.", "void/..", "owned", "."):
        notes.call(f"rmdir {name}", os.rmdir, f"{root}/{name}")
    notes.expect("ENOTEMPTY", "rmdir", os.rmdir, root / "dir")
    notes.expect("ENOTDIR", "rmdir of a file", os.rmdir, root / "file")
    notes.expect("ENOTDIR", "rmdir of a symlink", os.rmdir, root / "to-dir")
    notes.call("parent", os.stat, root)


def remove_permissions(notes: Notes, root: Path) -> None:
    for uid in (OTHER, OWNER):
        with acting_as(uid):
            for name in ("owned/mine", "closed/secret", "dir/leaf", "file",
                         "sticky/of0", f"sticky/of{OWNER}"):  # fmt: skip
                notes.call(f"{uid} unlink {name}", os.unlink, root / name)
            for name in ("sticky/dir-of0", f"sticky/dir-of{OWNER}", "void", "dir/inner"):
                notes.call(f"{uid} rmdir {name}", os.rmdir, root / name)
    with acting_as(OTHER):
        notes.expect("EPERM", "another's in a sticky directory", os.unlink, root / "sticky/of0")


def mkdir_errors(notes: Notes, root: Path) -> None:
    for name in (*EVERYTHING, "new", "new/inner", ".", "..", "void/", "dangling/"):
        notes.call(f"mkdir {name}", os.mkdir, f"{root}/{name}")
    notes.call("counts", os.stat, root)
    notes.call("counts", os.stat, root / "new")
    notes.expect("EEXIST", "on a dangling symlink", os.mkdir, root / "dangling")


def special_files(notes: Notes, root: Path) -> None:
    for label, mode, device in (
        ("fifo", stat.S_IFIFO, 0), ("character", stat.S_IFCHR, os.makedev(1, 5)),
        ("block", stat.S_IFBLK, os.makedev(7, 0)), ("socket", stat.S_IFSOCK, 0),
        ("regular", stat.S_IFREG, 0),
    ):  # fmt: skip
        for uid in (0, OWNER):
            with acting_as(uid):
                where = root / f"{label}-{uid}"
                notes.call(f"{label} as {uid}", os.mknod, where, mode | 0o640, device)
                notes.call("stat", os.stat, where)
        for taken in ("file", "void", "dangling", "nothing/x", "file/x"):
            notes.call(f"{label} {taken}", os.mknod, root / taken, mode | 0o640, device)
    reader = os.open(root / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(root / "fifo", os.O_WRONLY)
    os.write(writer, b"through a fifo")
    notes.call("fifo", os.read, reader, 100)
    os.close(writer)
    os.close(reader)


def sockets(notes: Notes, root: Path) -> None:
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    path = f"/proc/self/fd/{here}/listening"  # sun_path is short
    with (
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as client,
        socket.socket(socket.AF_UNIX) as another,
    ):
        server.bind(path)
        server.listen()
        notes.call("socket", os.stat, root / "listening")
        client.connect(path)
        accepted, _ = server.accept()
        with accepted:
            client.send(b"hello")
            notes.note("received", accepted.recv(10))
        notes.call("bound twice", another.bind, path)
        (root / "listening").rename(root / "moved")
        notes.call("old name", another.connect, path)
    os.close(here)


def symlinks(notes: Notes, root: Path) -> None:
    for target in ("x", "x" * 255, "x" * 256, "x/" * 2000, "x" * 4095, "\udcff\udcfe", "/", "."):
        name = root / f"link{len(target)}"
        notes.call(f"to {target[:10]}", os.symlink, target, name)
        notes.call("says", os.readlink, name)
        notes.call("is", os.lstat, name)
    notes.expect("ENAMETOOLONG", "too long", os.symlink, "x" * 4096, root / "toolong")
    notes.expect("ENOENT", "empty", os.symlink, "", root / "empty-target")
    for name in EVERYTHING:
        notes.call(f"onto {name}", os.symlink, "x", root / name)
        notes.call(f"readlink {name}", os.readlink, root / name)
    with acting_as(OWNER):
        notes.call("as a user", os.symlink, "x", root / "owned/link")
        notes.call("its owner", os.lstat, root / "owned/link")
    with acting_as(OTHER):
        notes.call("followed in a sticky directory", os.symlink, "of0", root / "sticky/link")
    with acting_as(OWNER):
        notes.call("protected_symlinks", opened, root / "sticky/link", os.O_RDONLY)


def long_names(notes: Notes, root: Path) -> None:
    for length in (255, 256):
        for char in ("n", "\udcff", "\u00e9"[0]):
            name = (char * length)[: length if char != "\u00e9" else length // 2]
            where = root / "void" / name
            notes.call(f"create {length}", opened, where, os.O_CREAT)
            notes.call("mkdir", os.mkdir, f"{where}")
            notes.call("rename", os.rename, root / "file", where)
            notes.call("back", os.rename, where, root / "file")
            notes.call("unlink", os.unlink, where)
            notes.call("stat", os.stat, where)
            notes.call("symlink", os.symlink, "x", where)
            notes.call("readlink", os.readlink, where)
            notes.call("link", os.link, root / "file", where)
            notes.call("mkfifo", os.mkfifo, where)
    notes.expect("ENAMETOOLONG", "open", opened, root / ("n" * 256), os.O_RDONLY)
    notes.expect("ENAMETOOLONG", "a long path", os.stat, f"{root}/" + "./" * 2100 + "file")
    names = [b"a\nb", b"\x01\x02", b" ", b"...", b"-rf", b"\xff", b"FILE", b"file ", b".wh.x"]
    for name in names:
        notes.call(repr(name), opened, os.fsencode(root) + b"/void/" + name, os.O_CREAT | os.O_EXCL)
    notes.note("listed", sorted(os.listdir(os.fsencode(root / "void"))))


CASES = (
    open_flags, open_permissions, create_modes, link_errors, link_counts, link_protected,
    unlink_errors, rmdir_errors, remove_permissions, mkdir_errors, special_files, sockets,
    symlinks, long_names,
)  # fmt: skip
