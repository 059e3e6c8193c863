"""rename(2) and renameat2(2)."""

from __future__ import annotations

import os
import stat
import tempfile

from integration.conformance.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, entries, renameat2
from integration.conformance.cases import case, equal, exists, fails, get, outcome, owner_of, put
from integration.conformance.furniture import furnish_for_users
from integration.conformance.processes import ALICE, BOB, CAROL, act_as

_FILES = ("file", "big", "empty", "hard1", "link", "dirlink", "dangling", "loop", "fifo", "null")


def _rename(old: str, new: str) -> None:
    renameat2(old, new, 0)


def _identity(path: str) -> tuple[int, int, int]:
    st = os.lstat(path)
    return st.st_ino, st.st_mode, st.st_nlink


def _targets() -> None:
    """For each kind of object to rename, one of each kind to be in the way."""
    for old in (*_SOURCES, "dir"):
        os.mkdir(old)
        for new in _SOURCES:
            _make(f"{old}/{new}.old", old)
            _make(f"{old}/{new}", new)


_SOURCES = ("file", "void", "full", "link", "fifo", "null")


def _make(path: str, kind: str) -> None:
    if kind == "file":
        put(path, path.encode())
    elif kind in ("void", "full", "dir"):
        os.mkdir(path)
        if kind == "full":
            put(f"{path}/inside", b"inside\n")
    elif kind == "link":
        os.symlink("file", path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@case(prepare=_targets)
def every_kind_over_every_kind() -> dict[str, object]:
    seen = {}
    for old in _SOURCES:
        for new in _SOURCES:
            got = outcome(_rename, f"{old}/{new}.old", f"{old}/{new}")
            is_directory, over_directory = old in ("void", "full"), new in ("void", "full")
            if is_directory and not over_directory:
                equal(got, "ENOTDIR")
            elif over_directory and not is_directory:
                equal(got, "EISDIR")
            elif new == "full":
                assert got in ("EEXIST", "ENOTEMPTY"), got
            else:
                equal(got, None)
            equal(exists(f"{old}/{new}.old"), got is not None)
            seen[f"{old} over {new}"] = got
    return seen


@case(prepare=_targets)
def noreplace_spares_every_kind() -> None:
    for old in _SOURCES:
        for new in _SOURCES:
            before = _identity(f"{old}/{new}")
            fails("EEXIST", renameat2, f"{old}/{new}.old", f"{old}/{new}", RENAME_NOREPLACE)
            equal(_identity(f"{old}/{new}"), before)
            renameat2(f"{old}/{new}.old", f"{old}/{new}.new", RENAME_NOREPLACE)


@case(prepare=_targets)
def exchange_swaps_every_kind() -> None:
    for old in _SOURCES:
        for new in _SOURCES:
            before = _identity(f"{old}/{new}.old"), _identity(f"{old}/{new}")
            renameat2(f"{old}/{new}.old", f"{old}/{new}", RENAME_EXCHANGE)
            equal((_identity(f"{old}/{new}"), _identity(f"{old}/{new}.old")), before)


@case
def object_stays_itself() -> object:
    seen = []
    for path in (*_FILES, "dir", "void"):
        before = os.lstat(path)
        _rename(path, f"{path}.new")
        after = os.lstat(f"{path}.new")
        equal(after.st_ino, before.st_ino)
        equal(after.st_mtime_ns, before.st_mtime_ns)
        equal(after.st_mode, before.st_mode)
        equal(after.st_nlink, before.st_nlink)
        fails("ENOENT", os.lstat, path)
        seen.append(sorted(os.listdir(f"{path}.new")) if stat.S_ISDIR(after.st_mode) else None)
    return seen


@case
def errors_of_names() -> None:
    fails("ENOENT", _rename, "none", "new")
    fails("ENOENT", _rename, "none/below", "new")
    fails("ENOENT", _rename, "file", "none/new")
    fails("ENOTDIR", _rename, "file/below", "new")
    fails("ENOTDIR", _rename, "file", "other/new")
    fails("ENOENT", _rename, "", "new")
    fails("ENOENT", _rename, "file", "")
    fails("ENOTDIR", _rename, "file/", "new")
    fails("ENOTDIR", _rename, "file", "new/")
    fails("ENOTDIR", _rename, "dirlink/", "new")
    fails("EBUSY|EINVAL", _rename, ".", "new")
    fails("EBUSY|EINVAL", _rename, "dir/..", "new")
    fails("EBUSY|EINVAL|EEXIST", _rename, "dir", ".")
    fails("EBUSY|EINVAL|EEXIST|ENOTEMPTY", _rename, "file", "dir/..")
    fails("ENAMETOOLONG", _rename, "file", "n" * 256)
    fails("ENAMETOOLONG", _rename, "n" * 256, "file")
    fails("ELOOP", _rename, "loop/a", "b")
    fails("ELOOP", _rename, "file", "loop/b")


@case
def directory_does_not_go_below_itself() -> None:
    os.mkdir("dir/sub/deeper")
    for new in ("dir/new", "dir/sub/new", "dir/sub/deeper/new", "dirlink/new"):
        fails("EINVAL", _rename, "dir", new)
    fails("EINVAL", _rename, "dir", "dir/sub")
    fails("ENOTEMPTY|EEXIST", _rename, "dir/sub", "dir")
    fails("EINVAL", renameat2, "dir", "dir/sub", RENAME_EXCHANGE)
    fails("EINVAL", renameat2, "dir/sub/deeper", "dir", RENAME_EXCHANGE)
    fails("ENOTEMPTY|EEXIST", _rename, "dir/sub/deeper", "dir")


@case
def errors_of_flags() -> None:
    fails("EINVAL", renameat2, "file", "other", RENAME_NOREPLACE | RENAME_EXCHANGE)
    fails("EINVAL", renameat2, "file", "new", 1 << 5)
    fails("ENOENT", renameat2, "file", "new", RENAME_EXCHANGE)
    fails("ENOENT", renameat2, "none", "file", RENAME_EXCHANGE)
    fails("ENOENT", renameat2, "none", "new", RENAME_NOREPLACE)
    fails("EEXIST", renameat2, "file", "dangling", RENAME_NOREPLACE)
    fails("EEXIST", renameat2, "file", "file", RENAME_NOREPLACE)
    fails("EEXIST", renameat2, "hard1", "dir/hard2", RENAME_NOREPLACE)
    renameat2("file", "file", RENAME_EXCHANGE)


@case
def nothing_happens_between_names_of_one_file() -> list[int]:
    _rename("file", "file")
    _rename("dir", "dir")
    _rename("hard1", "dir/hard2")
    equal(os.lstat("hard1").st_nlink, 2)
    os.link("file", "file2")
    _rename("file", "file2")
    assert exists("file")
    _rename("dirlink/hard2", "hard1")
    return [os.lstat(path).st_nlink for path in ("file", "file2", "hard1", "dir/hard2")]


@case
def replaced_file_loses_the_name() -> object:
    fd = os.open("other", os.O_RDONLY)
    hard = os.open("hard1", os.O_RDONLY)
    _rename("file", "other")
    _rename("empty", "hard1")
    seen: list[object] = [os.fstat(fd).st_nlink, os.pread(fd, 100, 0), get("other")]
    equal(seen, [0, b"another file\n", b"0123456789"])
    equal(os.fstat(hard).st_nlink, 1)
    equal(os.lstat("dir/hard2").st_nlink, 1)
    os.close(fd)
    os.close(hard)
    return [*seen, get("hard1"), get("dir/hard2")]


@case
def counts_follow_a_directory() -> list[int]:
    here = os.stat(".").st_nlink
    _rename("void", "dir/void")
    equal([os.stat(".").st_nlink, os.stat("dir").st_nlink], [here - 1, 4])
    _rename("dir/sub", "sub")
    equal([os.stat(".").st_nlink, os.stat("dir").st_nlink], [here, 3])
    os.mkdir("dir/other")
    _rename("sub", "dir/other")
    equal([os.stat(".").st_nlink, os.stat("dir").st_nlink], [here - 1, 4])
    renameat2("file", "dir/void", RENAME_EXCHANGE)
    equal([os.stat(".").st_nlink, os.stat("dir").st_nlink], [here, 3])
    return [os.stat(path).st_nlink for path in (".", "dir", "file", "dir/void")]


@case
def parent_of_a_moved_directory_is_the_new_one() -> list[str]:
    for _ in range(2):  # the kernel keeps a listing from the second time on
        entries("dir/sub")
    _rename("dir/sub", "void/sub")
    equal(os.stat("void/sub/..").st_ino, os.stat("void").st_ino)
    listed = {entry[0]: entry[1] for entry in entries("void/sub")}
    equal(listed[".."], os.stat("void").st_ino)
    _rename("void", "dir/void")
    equal(os.stat("dir/void/sub/../..").st_ino, os.stat("dir").st_ino)
    return sorted(os.listdir("dir/void"))


@case
def tree_moves_with_all_that_is_in_it() -> object:
    _rename("dir", "moved")
    put("moved/file", b"changed")
    os.mkdir("dir")
    equal(os.listdir("dir"), [])
    _rename("moved/sub", "dir/sub")
    _rename("moved", "dir/sub/moved")
    _rename("dir", "dir2")
    put("dir2/sub/moved/hard2", b"through the new path")
    equal(get("hard1"), b"through the new path")
    fails("ENOENT", os.stat, "dir")
    fails("ENOENT", os.stat, "moved")
    return [get("dir2/sub/moved/file"), sorted(os.listdir("dir2/sub/moved"))]


@case
def name_is_free_after_a_rename() -> object:
    for path in ("file", "dir", "link", "void"):
        _rename(path, f"{path}.old")
        fails("ENOENT", os.lstat, path)
    put("dir", b"a file")
    os.mkdir("file")
    os.mkdir("void")
    os.symlink("dir", "link")
    return [get("link"), os.listdir("file"), os.listdir("void"), sorted(os.listdir("dir.old"))]


@case
def descriptors_do_not_mind() -> object:
    fd = os.open("file", os.O_RDWR)
    big = os.open("big", os.O_RDONLY)
    directory = os.open("dir", os.O_RDONLY)
    _rename("file", "file.new")
    _rename("big", "dir/big")
    _rename("dir", "void/dir")
    os.write(fd, b"written")
    inside = os.open("file", os.O_RDONLY, dir_fd=directory)
    seen = [os.read(inside, 100), os.pread(big, 5, 0), get("file.new")]
    equal(seen, [b"inside\n", b"01234", b"written789"])
    os.close(os.open("made", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory))
    assert exists("void/dir/made")
    for each in (fd, big, directory, inside):
        os.close(each)
    return seen


@case
def rename_over_an_open_file_keeps_its_writer() -> bytes:
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDWR)
        put("new", b"new bytes")
        _rename("new", path)
        os.write(fd, b"lost")
        equal(os.pread(fd, 4, 0), b"lost")
        equal(os.fstat(fd).st_nlink, 0)
        equal(get(path), b"new bytes")
        os.close(fd)
    return get("file")


@case
def rename_does_not_leave_the_filesystem() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        put(f"{elsewhere}/file")
        for path in ("file", "dir", "link", "fifo"):
            fails("EXDEV", _rename, path, f"{elsewhere}/new")
        fails("EXDEV", _rename, f"{elsewhere}/file", "new")
        fails("EXDEV", renameat2, "file", f"{elsewhere}/file", RENAME_EXCHANGE)


@case(prepare=furnish_for_users)
def both_directories_must_be_writable() -> None:
    fails("EACCES", act_as, ALICE, _rename, "dir/file", "alice.dir/new")
    fails("EACCES", act_as, ALICE, _rename, "alice.file", "dir/new")
    fails("EACCES", act_as, BOB, _rename, "alice.dir/file", "new")
    fails("EACCES", act_as, BOB, _rename, "closed.dir/file", "new")
    fails("EACCES", act_as, CAROL, renameat2, "carol.file", "dir/file", RENAME_EXCHANGE)
    act_as(BOB, _rename, "alice.file", "bob.file")
    equal(owner_of("bob.file"), (ALICE.uid, ALICE.gid))


@case(prepare=furnish_for_users)
def directory_of_others_does_not_change_its_parent() -> None:
    # Its ".." would be written: that takes the write permission of the directory itself.
    fails("EACCES", act_as, BOB, _rename, "alice.dir", "void/moved")
    os.chmod("void", 0o777)
    fails("EACCES", act_as, BOB, _rename, "alice.dir", "void/moved")
    act_as(BOB, _rename, "alice.dir", "renamed")
    act_as(ALICE, _rename, "renamed", "void/moved")
    fails("EACCES", act_as, BOB, renameat2, "void/moved", "dir", RENAME_EXCHANGE)


@case(prepare=furnish_for_users)
def sticky_directory_guards_its_names() -> None:
    for user in (BOB, CAROL):
        for call in (os.unlink, lambda path: _rename(path, "new")):
            fails("EPERM", act_as, user, call, "sticky/alice")
            fails("EPERM", act_as, user, call, "sticky/root")
        fails("EPERM", act_as, user, os.rmdir, "sticky/alice.dir")
        fails("EPERM", act_as, user, _rename, "sticky/alice.dir", "sticky/new")
        fails("EPERM", act_as, user, _rename, "carol.file", "sticky/alice")
    fails("EPERM", act_as, ALICE, os.unlink, "sticky/root")
    fails("EPERM", act_as, ALICE, _rename, "sticky/alice", "sticky/root")
    fails("EPERM", act_as, ALICE, renameat2, "sticky/alice", "sticky/root", RENAME_EXCHANGE)
    act_as(ALICE, _rename, "sticky/alice", "sticky/still.hers")
    act_as(ALICE, os.rmdir, "sticky/alice.dir")
    os.chown("sticky", BOB.uid, BOB.gid)
    act_as(BOB, os.unlink, "sticky/root")
    act_as(BOB, _rename, "sticky/still.hers", "sticky/his")
