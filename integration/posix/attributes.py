"""chmod, chown, utimensat, access, extended attributes, POSIX ACLs, set-id bits."""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from integration.hand import futimens
from integration.posix.notes import OTHER, OWNER, TEAM, Notes, acting_as, opened, umask

_OBJECTS = ("file", "large", "void", "dir", "to-file", "dangling", "fifo", "null", "linked")
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_UNDEFINED = 0xFFFFFFFF


def _mode(path: Path) -> str:
    return oct(path.stat().st_mode)


def chmod_rules(notes: Notes, root: Path) -> None:
    for name in _OBJECTS:
        for mode in (0o000, 0o644, 0o7777, 0o2755, 0o1777):
            notes.call(f"{name} {mode:o}", os.chmod, root / name, mode)
            notes.call("then", os.lstat, root / name)
    (root / "file").chmod(0o644)
    with acting_as(OTHER, [TEAM]):
        notes.expect("EPERM", "of another's", os.chmod, root / "file", 0o777)
    with acting_as(OWNER):
        os.chmod(root / "file", 0o6777)
        notes.note("setgid goes when the owner is not in the group", _mode(root / "file"))
        os.chmod(root / "void", 0o2777)
        notes.note("of a directory", _mode(root / "void"))
    with acting_as(OWNER, [TEAM]):
        os.chmod(root / "file", 0o6777)
        assert (root / "file").stat().st_mode & 0o7777 == 0o6777
        notes.call("sticky file", os.chmod, root / "file", 0o1644)
        notes.note("then", _mode(root / "file"))
    fd = os.open(root / "empty", os.O_RDONLY)
    notes.call("fchmod", os.fchmod, fd, 0o600)
    notes.call("seen", os.fstat, fd)
    os.close(fd)
    notes.call("nothing", os.chmod, root / "nothing", 0o600)
    notes.call("loop", os.chmod, root / "loop", 0o600)
    notes.call("below a file", os.chmod, root / "file/x", 0o600)


def chown_rules(notes: Notes, root: Path) -> None:
    for name in _OBJECTS:
        for uid, gid in ((OTHER, -1), (-1, OTHER), (-1, -1), (0, 0), (OWNER, TEAM)):
            for mode in (0o6755, 0o6644, 0o644):
                if not (root / name).is_symlink():
                    os.chmod(root / name, mode)
                notes.call(
                    f"{name} {uid}:{gid}", os.chown, root / name, uid, gid, follow_symlinks=False
                )
                notes.call("then", os.lstat, root / name)
    for uid, groups in ((OWNER, (TEAM,)), (OWNER, ()), (OTHER, (TEAM,))):
        with acting_as(uid, groups):
            for name in ("file", "void", "linked"):
                for new_uid, new_gid in (
                    (-1, TEAM), (-1, uid), (-1, 3000), (uid, -1), (OTHER, -1), (-1, -1), (0, 0),
                ):  # fmt: skip
                    foreign = (root / name).stat().st_uid != uid
                    if foreign and (new_uid, new_gid) == (-1, -1):
                        continue  # docs/semantics.md
                    for mode in (0o6777, 0o2666):
                        os.seteuid(0)
                        os.chmod(root / name, mode)
                        os.seteuid(uid)
                        notes.call(f"{uid}{groups} {name} {new_uid}:{new_gid}",
                                   os.chown, root / name, new_uid, new_gid)  # fmt: skip
                        notes.call("then", os.lstat, root / name)


def set_id_bits(notes: Notes, root: Path) -> None:
    """Cleared by a change of data, as the kernel has it for each caller."""
    changes: dict[str, Callable[[int], Any]] = {
        "write": lambda fd: os.write(fd, b"x"),
        "write nothing": lambda fd: os.write(fd, b""),
        "ftruncate": lambda fd: os.ftruncate(fd, 3),
        "fallocate": lambda fd: os.posix_fallocate(fd, 0, 10000),
        "copy_file_range": lambda fd: os.copy_file_range(fd, fd, 5, 0, 8000),
        "read": lambda fd: os.read(fd, 1),
    }
    for name in ("file", "large"):
        for mode in (0o4777, 0o2777, 0o6666, 0o6755, 0o2666):
            for uid, groups in ((OWNER, (TEAM,)), (OWNER, ()), (0, ())):
                for label, change in changes.items():
                    os.chown(root / name, OWNER, TEAM)
                    os.chmod(root / name, mode)
                    with acting_as(uid, groups):
                        fd = os.open(root / name, os.O_RDWR)
                        notes.call(f"{name} {mode:o} {uid}{groups} {label}", change, fd)
                        notes.note("mode", oct(os.fstat(fd).st_mode))
                        os.close(fd)
                    notes.note("mode", _mode(root / name))
    for uid in (OWNER, 0):
        (root / "file").chmod(0o6777)
        with acting_as(uid):
            notes.call("truncate", os.truncate, root / "file", 2)
            notes.note("mode", _mode(root / "file"))
            (root / "linked").chmod(0o6777) if uid == 0 else None
            notes.call("O_TRUNC", opened, root / "file", os.O_WRONLY | os.O_TRUNC)
            notes.note("mode", _mode(root / "file"))


def inheritance_of_setgid(notes: Notes, root: Path) -> None:
    for uid, groups in ((OWNER, ()), (OWNER, (TEAM,)), (0, ())):
        with acting_as(uid, groups), umask(0):
            base = root / "setgid" / f"{uid}-{len(groups)}"
            opened(f"{base}.file", os.O_CREAT, 0o2775)
            opened(f"{base}.plain", os.O_CREAT, 0o2664)
            os.mkdir(f"{base}.dir", 0o755)
            os.mkfifo(f"{base}.fifo", 0o2775)
            os.symlink("x", f"{base}.link")
            for kind in ("file", "plain", "dir", "fifo", "link"):
                notes.call(f"{uid} {kind}", os.lstat, f"{base}.{kind}")
            opened(f"{base}.dir/inner", os.O_CREAT)
            notes.call("inner", os.lstat, f"{base}.dir/inner")


# --- times ----------------------------------------------------------------------------------------


def _times(path: Path | str) -> tuple[int, int, int]:
    st = os.lstat(path)
    return st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns


def what_changes_times(notes: Notes, root: Path) -> None:
    """Which times of an object and of its directory each call moves."""

    def moved(label: str, action: Callable[[], Any], *paths: Path) -> None:
        before = {path: _times(path) for path in paths if os.path.lexists(path)}
        time.sleep(0.012)  # longer than a tick of the kernel's clock
        notes.call(label, action)
        for path, old in before.items():
            if os.path.lexists(path):
                new = _times(path)
                kinds = "m" if path.is_dir() else "mc"  # docs/semantics.md: ctime of a directory
                said = [kind for kind, a, b in zip(kinds, old[1:], new[1:], strict=False) if a != b]
                notes.note(f"  {path.relative_to(root)}", said)

    file, large, void, linked = (root / n for n in ("file", "large", "void", "linked"))
    moved("chmod", lambda: os.chmod(file, 0o600), root, file)
    moved("same chmod", lambda: os.chmod(file, 0o600), root, file)
    moved("chown", lambda: os.chown(file, OWNER, OWNER), root, file)
    moved("chown -1", lambda: os.chown(file, -1, -1), root, file)
    moved("setxattr", lambda: os.setxattr(file, "user.a", b"b"), root, file)
    moved("truncate", lambda: os.truncate(file, 3), root, file)
    moved("truncate to the same", lambda: os.truncate(file, 3), root, file)
    moved("extend", lambda: os.truncate(large, 5 << 20), root, large)
    moved("O_TRUNC", lambda: opened(file, os.O_WRONLY | os.O_TRUNC), root, file)
    moved("O_TRUNC of an empty one", lambda: opened(file, os.O_WRONLY | os.O_TRUNC), root, file)
    moved("open for writing", lambda: opened(large, os.O_RDWR), root, large)
    moved("write", lambda: file.write_bytes(b"written"), root, file)
    moved("append", lambda: opened(file, os.O_WRONLY | os.O_APPEND), root, file)
    moved("link", lambda: os.link(linked, void / "l"), root, void, linked, root / "linked2")
    moved("unlink", lambda: os.unlink(void / "l"), root, void, linked)
    moved("create", lambda: opened(void / "new", os.O_CREAT), root, void)
    moved("create again", lambda: opened(void / "new", os.O_CREAT), void, void / "new")
    moved("mkdir", lambda: os.mkdir(void / "d"), root, void)
    moved("rmdir", lambda: os.rmdir(void / "d"), root, void)
    moved("rename", lambda: os.rename(void / "new", root / "moved"), root, void, root / "moved")
    moved("rename a directory", lambda: os.rename(root / "dir", void / "dir"), root, void)
    moved("symlink", lambda: os.symlink("x", void / "s"), root, void)
    moved("failing create", lambda: opened(large, os.O_CREAT | os.O_EXCL), root, large)
    moved("failing unlink", lambda: os.unlink(void), root, void)
    moved("readdir", lambda: sorted(os.listdir(void)), void)
    fd = os.open(large, os.O_RDWR)
    moved("ftruncate to the same", lambda: os.ftruncate(fd, 5 << 20), large)
    moved("ftruncate", lambda: os.ftruncate(fd, 4 << 20), large)
    moved("fallocate", lambda: os.posix_fallocate(fd, 0, 6 << 20), large)
    moved("fallocate inside", lambda: os.posix_fallocate(fd, 0, 1 << 20), large)
    moved("fsync", lambda: os.fsync(fd), large)
    moved("pwrite", lambda: os.pwrite(fd, b"x", 0), large)
    moved("fchmod", lambda: os.fchmod(fd, 0o640), large)
    moved("read", lambda: len(os.read(fd, 10)), large)
    os.close(fd)


def setting_times(notes: Notes, root: Path) -> None:
    for name in _OBJECTS:
        for ns in ((1, 2), (10**18 + 123456789, 10**18 + 987654321), (-5, -1_500_000_000)):
            notes.call(f"{name} {ns}", os.utime, root / name, ns=ns, follow_symlinks=False)
            notes.note("told", _times(root / name)[1:2])
            st = os.lstat(root / name)
            if notes.lines[-2][1] is None:
                assert (st.st_atime_ns, st.st_mtime_ns) == ns
    fd = os.open(root / "file", os.O_RDONLY)
    os.utime(fd, ns=(10**18, 10**18))
    futimens(fd, None, 5)
    notes.note("atime omitted", _times(root / "file")[:2])
    futimens(fd, 7, None)
    notes.note("mtime omitted", _times(root / "file")[:2])
    before = _times(root / "file")
    time.sleep(0.012)
    futimens(fd, None, None)
    notes.note("both omitted", _times(root / "file") == before)
    os.close(fd)
    (root / "file").chmod(0o666)
    for uid in (OWNER, OTHER):
        with acting_as(uid):
            notes.call(f"now as {uid}", os.utime, root / "file")
            notes.call(f"set as {uid}", os.utime, root / "file", (1, 1))
            notes.call(f"now as {uid}", os.utime, root / "linked")
            notes.call(f"set as {uid}", os.utime, root / "linked", (1, 1))
    with acting_as(OTHER):
        notes.expect("EPERM", "of another's", os.utime, root / "file", (1, 1))
        notes.expect("EACCES", "now, without write permission", os.utime, root / "linked")
    notes.call("far future", os.utime, root / "file", ns=(2**33 * 10**9, 2**34 * 10**9))
    notes.note("clamped", _times(root / "file")[:2])


def reading_moves_atime(notes: Notes, root: Path) -> None:
    """relatime: an atime that is not newer than mtime moves."""
    for name in ("owned/mine", "dir/leaf"):
        path = root / name
        path.chmod(0o644)
        os.utime(path, ns=(10**18, 2 * 10**18))
        path.read_bytes()
        notes.note(name, path.stat().st_atime_ns > 2 * 10**18)
        os.utime(path, ns=(10**18, 2 * 10**18))
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        os.read(fd, 10)
        os.close(fd)
        notes.note("O_NOATIME", path.stat().st_atime_ns)


# --- extended attributes --------------------------------------------------------------------------


def xattrs(notes: Notes, root: Path) -> None:
    names = ("user.a", "trusted.a", "security.a", "system.a", "nonsense", "user.", "user",
             "user.\udcff", "user." + "n" * 250, "user." + "n" * 251, "USER.a", "/statx", "/x",
             "trusted.overlayx", "user.overlay.opaque", "trusted.cowfsx")  # fmt: skip
    for obj in ("file", "large", "void", "to-file", "fifo", "null", "nothing", "dir"):
        for uid in (0, OWNER, OTHER):
            with acting_as(uid):
                for name in names:
                    label = f"{obj} {uid} {name[:20]}"
                    where = root / obj
                    notes.call(
                        f"{label} set", os.setxattr, where, name, b"v", follow_symlinks=False
                    )
                    notes.call(f"{label} get", os.getxattr, where, name, follow_symlinks=False)
                    notes.call(
                        f"{label} remove", os.removexattr, where, name, follow_symlinks=False
                    )
                    notes.call(f"{label} again", os.removexattr, where, name, follow_symlinks=False)
                os.seteuid(0)
                for name in ("user.u", "trusted.t", "security.s"):
                    notes.call("set", os.setxattr, root / obj, name, b"v", follow_symlinks=False)
                os.seteuid(uid)
                listed = _listed(root / obj)
                notes.note("list", listed)
    for flags in (os.XATTR_CREATE, os.XATTR_REPLACE, 3, 8):
        for name in ("user.flags", "user.u"):
            notes.call(f"flags {flags} {name}", os.setxattr, root / "file", name, b"w", flags)
    for size in (0, 1, 255, 4096, 65535, 65536):
        notes.call(f"{size} bytes", os.setxattr, root / "large", "user.big", b"x" * size)
        value = notes.call("length", lambda: len(os.getxattr(root / "large", "user.big")))
        assert value == size or size > 65535 or value == "ENODATA"
    notes.expect("EEXIST", "CREATE", os.setxattr, root / "file", "user.u", b"", os.XATTR_CREATE)
    notes.expect("ENODATA", "REPLACE", os.setxattr, root / "file", "user.no", b"", os.XATTR_REPLACE)
    (root / "file").chmod(0o444)
    with acting_as(OWNER):
        notes.call("without write permission", os.setxattr, root / "file", "user.x", b"")
        notes.call("on a sticky directory", os.setxattr, root / "sticky", "user.x", b"")
    with acting_as(OTHER):
        notes.call("read by others", os.getxattr, root / "file", "user.u")
        (root / "file").stat()
    (root / "file").chmod(0o400)
    with acting_as(OTHER):
        notes.call("unreadable", os.getxattr, root / "file", "user.u")


def _listed(path: Path) -> object:
    try:
        return sorted(name for name in os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        return error.errno


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


def _full(user: int, group: int, mask: int, other: int) -> bytes:
    return _acl(
        (_USER_OBJ, 7, _UNDEFINED), (_USER, user, OTHER), (_GROUP_OBJ, group, _UNDEFINED),
        (_GROUP, 5, TEAM), (_MASK, mask, _UNDEFINED), (_OTHER, other, _UNDEFINED),
    )  # fmt: skip


def acls(notes: Notes, root: Path) -> None:
    minimal = _acl((_USER_OBJ, 6, _UNDEFINED), (_GROUP_OBJ, 4, _UNDEFINED), (_OTHER, 0, _UNDEFINED))
    for name in ("file", "large", "void", "linked"):
        for label, value in (
            ("full", _full(6, 4, 6, 0)), ("masked", _full(7, 7, 1, 7)), ("minimal", minimal),
            ("nonsense", b"nonsense"), ("empty", b""), ("incomplete", minimal[:12]),
        ):  # fmt: skip
            for kind in (_ACCESS, _DEFAULT):
                notes.call(f"{name} {label} {kind}", os.setxattr, root / name, kind, value)
                notes.call("get", os.getxattr, root / name, kind)
                notes.note("mode", _mode(root / name))
    os.setxattr(root / "linked", _ACCESS, _full(6, 0, 6, 0))
    for uid, groups in ((OTHER, ()), (OWNER, ()), (3000, (TEAM,)), (3000, ())):
        with acting_as(uid, groups):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                notes.call(f"{uid}{groups} {flags}", opened, root / "linked", flags)
            notes.call("set by others", os.setxattr, root / "linked", _ACCESS, minimal)
    with acting_as(OTHER):
        notes.expect("opened", "named user", opened, root / "linked", os.O_RDWR)
    (root / "linked").chmod(0o640)  # moves the mask
    notes.call("mask", os.getxattr, root / "linked", _ACCESS)
    with acting_as(OTHER):
        notes.expect("EACCES", "named user, masked", opened, root / "linked", os.O_RDWR)
    os.removexattr(root / "linked", _ACCESS)
    notes.note("without", _mode(root / "linked"))
    notes.call("removed", os.getxattr, root / "linked", _ACCESS)


def default_acls(notes: Notes, root: Path) -> None:
    for place in ("void", "dir", "setgid"):
        os.setxattr(root / place, _DEFAULT, _full(6, 5, 7, 0))
        for uid, mask in ((0, 0o022), (OWNER, 0o077), (OWNER, 0)):
            (root / place).chmod(0o2777 if place == "setgid" else 0o777)
            with acting_as(uid, [TEAM]), umask(mask):
                base = root / place / f"{uid}-{mask:o}"
                opened(f"{base}.file", os.O_CREAT, 0o666)
                opened(f"{base}.narrow", os.O_CREAT, 0o600)
                os.mkdir(f"{base}.dir", 0o777)
                os.mkfifo(f"{base}.fifo", 0o640)
                os.symlink("x", f"{base}.link")
            for kind in ("file", "narrow", "dir", "fifo", "link"):
                notes.call(f"{place} {uid} {kind}", os.lstat, f"{base}.{kind}")
                for attribute in (_ACCESS, _DEFAULT):
                    notes.call(
                        attribute, os.getxattr, f"{base}.{kind}", attribute, follow_symlinks=False
                    )
            opened(f"{base}.dir/inner", os.O_CREAT, 0o666)
            notes.call("inner", os.getxattr, f"{base}.dir/inner", _ACCESS)


def access_checks(notes: Notes, root: Path) -> None:
    for mode in (0o000, 0o111, 0o444, 0o640, 0o751, 0o777):
        (root / "script").chmod(mode)
        (root / "dir").chmod(mode)
        for uid, groups in ((0, ()), (OWNER, (TEAM,)), (OTHER, ())):
            with acting_as(uid, groups):
                for wanted in (os.F_OK, os.R_OK, os.W_OK, os.X_OK):
                    for name in ("script", "dir", "dir/leaf", "to-file", "nothing"):
                        what = f"{mode:o} {uid} {name} {wanted}"
                        notes.call(what, os.access, root / name, wanted, effective_ids=True)
                notes.call("listdir", lambda: sorted(os.listdir(root / "dir")))
                notes.call("stat below", os.stat, root / "dir/leaf")
                notes.call("chdir", _enter, root / "dir")


def _enter(path: Path) -> str:
    before = os.getcwd()
    os.chdir(path)
    os.chdir(before)
    return "entered"


def filesystem(notes: Notes, root: Path) -> None:
    st = os.statvfs(root)
    assert st.f_namemax == 255
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_namemax"):
        notes.note(field, getattr(st, field))
    devices = {os.lstat(root / name).st_dev for name in _OBJECTS}
    assert len(devices) == 1
    numbers = {entry.name: entry.inode() for entry in os.scandir(root)}
    assert numbers == {name: os.lstat(root / name).st_ino for name in numbers}
    kinds = {e.name: stat.S_IFMT(os.lstat(e.path).st_mode) == _kind(e) for e in os.scandir(root)}
    assert all(kinds.values()), kinds


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


CASES = (
    chmod_rules, chown_rules, set_id_bits, inheritance_of_setgid, what_changes_times, setting_times,
    reading_moves_atime, xattrs, acls, default_acls, access_checks, filesystem,
)  # fmt: skip
