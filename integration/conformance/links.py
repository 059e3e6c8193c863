"""link(2), unlink(2), symlink(2), readlink(2)."""

from __future__ import annotations

import os
import stat
import tempfile

from integration.conformance import calls
from integration.conformance.cases import case, equal, exists, fails, get, outcome, put
from integration.conformance.furniture import furnish_for_users, listening
from integration.conformance.processes import ALICE, BOB, CAROL, act_as


def _count(path: str) -> int:
    return os.lstat(path).st_nlink


def _link(old: str, new: str) -> None:
    os.link(old, new, follow_symlinks=False)


@case
def link_gives_every_kind_another_name() -> list[int]:
    listening("socket").close()
    seen = []
    for path in ("file", "big", "empty", "hard1", "link", "dangling", "fifo", "null", "socket"):
        before = os.lstat(path)
        _link(path, f"dir/{path}.new")
        after = os.lstat(f"dir/{path}.new")
        equal((after.st_ino, after.st_dev), (before.st_ino, before.st_dev))
        equal(after.st_nlink, before.st_nlink + 1)
        equal(_count(path), before.st_nlink + 1)
        assert after.st_ctime_ns > before.st_ctime_ns
        equal(after.st_mtime_ns, before.st_mtime_ns)
        seen.append(after.st_nlink)
    return seen


@case
def link_follows_only_when_told() -> object:
    calls.link_followed("link", "followed")
    _link("link", "itself")
    equal(get("followed"), get("file"))
    equal(os.readlink("itself"), "file")
    equal(_count("file"), 2)
    fails("ENOENT", calls.link_followed, "dangling", "new")
    fails("ELOOP", calls.link_followed, "loop", "new")
    return [_count("link"), _count("file")]


@case
def link_errors() -> None:
    fails("ENOENT", _link, "none", "new")
    fails("ENOENT", _link, "none/below", "new")
    fails("ENOENT", _link, "file", "none/new")
    fails("ENOTDIR", _link, "file/below", "new")
    fails("ENOTDIR", _link, "file", "other/new")
    fails("EPERM", _link, "dir", "new")
    fails("EPERM", _link, "void", "new")
    fails("ENOTDIR", _link, "file/", "new")
    fails("ENOENT", _link, "file", "new/")
    fails("ENOENT", _link, "", "new")
    fails("ENOENT", _link, "file", "")
    for existing in ("file", "other", "dir", "void", "link", "dangling", "loop", "fifo", "null"):
        fails("EEXIST", _link, "file", existing)
    fails("EEXIST", _link, "hard1", "dir/hard2")
    fails("EEXIST", _link, "dir", "file")
    equal(_count("file"), 1)


@case
def link_does_not_leave_the_filesystem() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        put(f"{elsewhere}/file")
        fails("EXDEV", _link, "file", f"{elsewhere}/new")
        fails("EXDEV", _link, f"{elsewhere}/file", "new")
        fails("EXDEV", _link, "hard1", f"{elsewhere}/new")


@case
def linked_names_show_one_file() -> object:
    _link("file", "file2")
    _link("hard1", "hard3")
    with open("file2", "ab") as file:
        file.write(b"tail")
    put("dir/hard2", b"all three")
    os.chmod("hard3", 0o600)
    os.setxattr("hard1", "user.all", b"of them")
    equal(get("file"), b"0123456789tail")
    equal([get(name) for name in ("hard1", "dir/hard2", "hard3")], [b"all three"] * 3)
    equal(oct(os.stat("dir/hard2").st_mode), "0o100600")
    os.unlink("hard1")
    equal(_count("hard3"), 2)
    return [os.getxattr("hard3", "user.all"), _count("dir/hard2"), _count("file")]


@case
def last_of_several_names_keeps_the_bytes() -> object:
    _link("big", "big2")
    os.unlink("big")
    _link("hard1", "hard3")
    os.unlink("hard1")
    os.unlink("dir/hard2")
    return [len(get("big2")), _count("big2"), get("hard3"), _count("hard3")]


@case
def unlink_takes_every_kind_but_directories() -> list[str]:
    listening("socket").close()
    for path in ("file", "big", "empty", "link", "dirlink", "dangling", "loop", "fifo", "null"):
        os.unlink(path)
        assert not exists(path)
        fails("ENOENT", os.unlink, path)
    os.unlink("socket")
    return sorted(os.listdir("."))


@case
def unlink_errors() -> None:
    fails("ENOENT", os.unlink, "none")
    fails("ENOENT", os.unlink, "none/below")
    fails("ENOENT", os.unlink, "")
    fails("ENOTDIR", os.unlink, "file/below")
    fails("ENOTDIR", os.unlink, "file/")
    fails("EISDIR", os.unlink, "dir")
    fails("EISDIR", os.unlink, "void")
    fails("EISDIR|ENOTDIR", os.unlink, "dir/")
    fails("ENOTDIR", os.unlink, "dirlink/")
    fails("EISDIR", os.unlink, ".")
    fails("EISDIR", os.unlink, "dir/..")


@case
def unlink_lowers_the_count_and_moves_the_ctime() -> int:
    before = os.stat("dir/hard2")
    os.unlink("hard1")
    after = os.stat("dir/hard2")
    equal(after.st_nlink, before.st_nlink - 1)
    assert after.st_ctime_ns > before.st_ctime_ns
    equal(after.st_mtime_ns, before.st_mtime_ns)
    return after.st_nlink


@case
def name_is_free_after_unlink() -> object:
    os.unlink("file")
    os.mkdir("file")
    os.unlink("link")
    put("link", b"a file now")
    os.unlink("big")
    os.symlink("other", "big")
    os.unlink("fifo")
    os.mkfifo("fifo")
    os.unlink("dir/file")
    put("dir/file", b"again")
    return [sorted(os.listdir(".")), os.listdir("file"), get("big"), get("dir/file")]


@case
def symlink_keeps_its_target_to_the_byte() -> list[str]:
    seen = []
    targets = ("x", "/", "/abs/olute", "..", "a//b/", "nul\udcff\n", "t" * 255, "p/" * 511)
    for number, target in enumerate(targets):
        os.symlink(target, f"new{number}")
        st = os.lstat(f"new{number}")
        equal(os.readlink(f"new{number}"), target)
        equal(st.st_size, len(os.fsencode(target)))
        equal(stat.S_IMODE(st.st_mode), 0o777)
        seen.append(target)
    return seen


@case
def symlink_errors() -> None:
    for existing in ("file", "dir", "link", "dirlink", "dangling", "loop", "fifo"):
        fails("EEXIST", os.symlink, "target", existing)
    fails("ENOENT", os.symlink, "target", "none/new")
    fails("ENOTDIR", os.symlink, "target", "file/new")
    fails("ENOENT", os.symlink, "", "new")
    fails("ENOENT", os.symlink, "target", "")
    fails("ENAMETOOLONG", os.symlink, "t" * 4096, "new")
    fails("ENAMETOOLONG", os.symlink, "t" * 1024, "new")  # XFS_SYMLINK_MAXLEN
    os.symlink("t" * 1023, "longest")
    equal(len(os.readlink("longest")), 1023)


@case
def readlink_errors() -> object:
    for path in ("file", "big", "dir", "fifo", "null", "."):
        fails("EINVAL", os.readlink, path)
    fails("ENOENT", os.readlink, "none")
    fails("ENOTDIR", os.readlink, "file/below")
    fails("ELOOP", os.readlink, "loop/below")
    return [outcome(os.readlink, path) for path in ("link", "dangling", "loop", "dirlink")]


@case
def symlink_chain_ends_after_forty() -> None:
    os.symlink("file", "chain0")
    for number in range(1, 45):
        os.symlink(f"chain{number - 1}", f"chain{number}")
    equal(get("chain39"), b"0123456789")
    fails("ELOOP", get, "chain40")
    fails("ELOOP", os.stat, "loop")
    fails("ELOOP", os.stat, "loop/below")
    fails("ELOOP", os.chmod, "loop", 0o600)
    fails("ELOOP", os.truncate, "loop", 0)
    fails("ELOOP", os.mkdir, "loop/new")
    fails("ELOOP", os.rename, "loop/a", "b")


@case
def trailing_slash_follows_a_symlink_to_a_directory() -> object:
    os.mkdir("dirlink/new")
    equal(sorted(os.listdir("dirlink/")), sorted(os.listdir("dir")))
    fails("ENOTDIR", os.lstat, "link/")
    fails("EEXIST", os.mkdir, "dirlink/")
    fails("ENOENT|EEXIST", os.mkdir, "dangling/")
    return [stat.S_ISDIR(os.lstat("dirlink/").st_mode), stat.S_ISLNK(os.lstat("dirlink").st_mode)]


@case(prepare=furnish_for_users)
def names_belong_to_the_directory() -> None:
    fails("EACCES", act_as, BOB, os.unlink, "alice.dir/file")
    fails("EACCES", act_as, BOB, os.symlink, "x", "alice.dir/new")
    fails("EACCES", act_as, ALICE, _link, "alice.file", "dir/new")
    fails("EACCES", act_as, ALICE, os.unlink, "dir/file")
    fails("EACCES", act_as, CAROL, os.unlink, "closed.dir/file")
    act_as(BOB, os.unlink, "alice.file")  # the directory is open to all
    act_as(ALICE, os.unlink, "alice.dir/file")
    act_as(ALICE, os.symlink, "x", "alice.dir/new")


@case(prepare=furnish_for_users)
def protected_hard_links_as_the_system_has_it() -> object:
    tried = [("file", "n1"), ("closed", "n2"), ("alice.file", "n3"), ("fifo", "n4"), ("link", "n5")]
    seen: list[object] = [act_as(BOB, outcome, _link, old, new) for old, new in tried]
    equal(act_as(ALICE, outcome, _link, "alice.file", "n6"), None)
    os.chmod("file", 0o666)
    equal(act_as(BOB, outcome, _link, "file", "n7"), None)
    os.chmod("file", 0o4777)
    return [*seen, act_as(BOB, outcome, _link, "file", "n8")]


@case(prepare=furnish_for_users)
def protected_symlinks_as_the_system_has_it() -> object:
    act_as(ALICE, os.symlink, "../file", "sticky/toalice")
    os.symlink("../file", "sticky/toroot")
    return [
        act_as(user, outcome, get, path)
        for user in (ALICE, BOB)
        for path in ("sticky/toalice", "sticky/toroot")
    ]


@case(prepare=furnish_for_users)
def protected_fifos_and_files_as_the_system_has_it() -> object:
    act_as(ALICE, os.mkfifo, "sticky/fifo", 0o666)
    os.chmod("sticky/fifo", 0o666)
    os.chmod("sticky/alice", 0o666)

    def create(path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666))

    return [
        act_as(user, outcome, create, path)
        for user in (ALICE, BOB)
        for path in ("sticky/fifo", "sticky/alice")
    ]


@case
def symlink_owner_is_its_maker() -> tuple[int, int]:
    os.chmod("void", 0o777)
    act_as(ALICE, os.symlink, "x", "void/mine")
    st = os.lstat("void/mine")
    equal((st.st_uid, st.st_gid), (ALICE.uid, ALICE.gid))
    return st.st_uid, st.st_gid


@case
def link_of_a_directory_to_a_symlink_is_not_followed() -> None:
    fails("EEXIST", _link, "file", "dirlink")
    _link("dirlink", "another")
    equal(os.readlink("another"), "dir")
