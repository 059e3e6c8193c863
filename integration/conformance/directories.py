"""mkdir(2), rmdir(2), and listings."""

from __future__ import annotations

import os
import stat

from integration.conformance import calls
from integration.conformance.cases import (
    case,
    equal,
    exists,
    fails,
    mode_of,
    outcome,
    owner_of,
    put,
)
from integration.conformance.furniture import furnish, furnish_for_users
from integration.conformance.processes import ALICE, BOB, act_as


def _crowd() -> None:
    furnish()
    os.mkdir("crowd")
    for number in range(100):
        put(f"crowd/name{number:03}")


def _count(path: str) -> int:
    return os.stat(path).st_nlink


@case
def mkdir_has_the_mode_without_the_umask() -> list[str]:
    seen = []
    for umask in (0, 0o022, 0o077):
        os.umask(umask)
        for mode in (0o755, 0o777, 0o700, 0, 0o1777, 0o7777):
            path = f"new{umask:o}.{mode:o}"
            os.mkdir(path, mode)
            equal(mode_of(path), f"{mode & 0o1777 & ~umask:04o}")  # mkdir(2): no setuid, setgid
            seen.append(mode_of(path))
    return seen


@case
def mkdir_errors() -> None:
    for existing in ("file", "dir", "link", "dirlink", "dangling", "loop", "fifo", "null", "."):
        fails("EEXIST", os.mkdir, existing)
    fails("EEXIST", os.mkdir, "dir/..")
    fails("EEXIST", os.mkdir, "dir/")
    fails("ENOENT", os.mkdir, "none/new")
    fails("ENOTDIR", os.mkdir, "file/new")
    fails("ENOENT", os.mkdir, "")
    os.mkdir("new/")
    os.mkdir("new/./inner//")
    assert exists("new/inner")


@case
def mkdir_and_rmdir_keep_the_link_counts() -> list[int]:
    before = _count(".")
    os.mkdir("a")
    os.mkdir("a/b")
    os.mkdir("dir/new")
    seen = [_count(path) for path in (".", "a", "a/b", "dir", "dir/sub", "void")]
    equal(seen, [before + 1, 3, 2, 4, 2, 2])
    os.rmdir("a/b")
    os.rmdir("a")
    os.rmdir("dir/sub")
    equal([_count("."), _count("dir")], [before, 3])
    return [*seen, _count("."), _count("dir")]


@case
def rmdir_errors() -> None:
    for path in ("file", "link", "dirlink", "dangling", "fifo", "null"):
        fails("ENOTDIR", os.rmdir, path)
    fails("ENOTEMPTY|EEXIST", os.rmdir, "dir")
    fails("ENOENT", os.rmdir, "none")
    fails("ENOENT", os.rmdir, "none/below")
    fails("ENOTDIR", os.rmdir, "file/below")
    fails("EINVAL", os.rmdir, ".")
    fails("EINVAL", os.rmdir, "dir/.")
    fails("ENOTEMPTY", os.rmdir, "dir/..")
    fails("ENOTDIR", os.rmdir, "dirlink/")
    fails("ENOENT", os.rmdir, "")


@case
def rmdir_says_enotempty_as_xfs_does() -> object:
    os.mkdir("new")
    put("new/file")
    return [outcome(os.rmdir, "dir"), outcome(os.rmdir, "new")]


@case
def directory_that_was_emptied_can_be_removed() -> list[str]:
    for name in ("file", "hard2"):
        os.unlink(f"dir/{name}")
    os.rmdir("dir/sub")
    equal(os.listdir("dir"), [])
    os.rmdir("dir")
    assert not exists("dir")
    os.mkdir("dir")
    equal(os.listdir("dir"), [])
    fails("ENOENT", os.stat, "dir/file")
    os.rmdir("void")
    put("void")
    return sorted(os.listdir("."))


@case(prepare=furnish_for_users)
def mkdir_and_rmdir_need_the_directory() -> None:
    fails("EACCES", act_as, BOB, os.mkdir, "dir/new")
    fails("EACCES", act_as, BOB, os.rmdir, "dir/sub")
    fails("EACCES", act_as, BOB, os.mkdir, "alice.dir/new")
    fails("EACCES", act_as, BOB, os.rmdir, "closed.dir/none")
    act_as(ALICE, os.mkdir, "alice.dir/new")
    equal(owner_of("alice.dir/new"), (ALICE.uid, ALICE.gid))
    act_as(BOB, os.rmdir, "void")


@case
def listing_has_every_name_once_with_its_type_and_number() -> list[tuple[str, bool, bool, bool]]:
    put("new")
    os.unlink("other")
    os.rename("empty", "renamed")
    os.mkdir("newdir")
    seen = []
    with os.scandir(".") as entries:
        for entry in entries:
            st = os.lstat(entry.name)
            equal(entry.inode(), st.st_ino)
            kinds = (
                entry.is_file(follow_symlinks=False),
                entry.is_dir(follow_symlinks=False),
                entry.is_symlink(),
            )
            expected = (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)
            equal(kinds, tuple(test(st.st_mode) for test in expected))
            seen.append((entry.name, *kinds))
    equal(len(seen), len({entry[0] for entry in seen}))
    return sorted(seen)


@case
def dots_are_listed_with_their_numbers() -> list[str]:
    for path in (".", "dir", "dir/sub", "void"):
        found = {name: ino for name, ino, _kind, _place in calls.entries(path)}
        equal(found["."], os.stat(path).st_ino)
        equal(found[".."], os.stat(f"{path}/..").st_ino)
    return sorted(name for name, _ino, _kind, _place in calls.entries("dir"))


@case
def listing_tells_the_kind() -> list[tuple[str, int]]:
    return sorted((name, kind) for name, _ino, kind, _place in calls.entries("."))


@case(prepare=_crowd)
def seekdir_comes_back_to_every_place() -> int:
    with calls.Listing("crowd") as listing:
        places = []
        while entry := listing.read():
            places.append((entry[0], listing.tell()))
        names = [name for name, _place in places]
        for number in (0, 1, 7, 50, 99, 100, 10):
            listing.seek(places[number][1])
            following = listing.read()
            expected = names[number + 1] if number + 1 < len(names) else None
            equal(following[0] if following else None, expected)
        listing.rewind()
        equal(listing.read(), None if not names else calls.entries("crowd")[0])
    return len(names)


@case(prepare=_crowd)
def places_stay_valid_when_names_come_and_go() -> int:
    with calls.Listing("crowd") as listing:
        seen = [listing.read()[0] for _ in range(40)]
        place = listing.tell()
        for name in seen[5:30]:
            if name not in (".", ".."):
                os.unlink(f"crowd/{name}")
        put("crowd/late")
        listing.seek(place)
        rest = []
        while entry := listing.read():
            rest.append(entry[0])
    equal(set(rest) & set(seen), set())
    old = {f"name{number:03}" for number in range(100)}
    assert old <= set(seen) | set(rest)
    for name in os.listdir("crowd"):  # which names are first is the filesystem's own affair
        os.unlink(f"crowd/{name}")
    return len((set(seen) | set(rest)) - {"late"})


@case(prepare=_crowd)
def rewinddir_shows_what_has_changed() -> list[str]:
    with calls.Listing("void") as listing:
        while listing.read():
            pass
        put("void/late")
        listing.rewind()
        seen = []
        while entry := listing.read():
            seen.append(entry[0])
    equal(sorted(seen), [".", "..", "late"])
    return sorted(seen)


@case
def removed_directory_lists_nothing() -> object:
    fd = os.open("void", os.O_RDONLY)
    os.rmdir("void")
    equal(os.listdir(fd), [])
    equal(os.fstat(fd).st_nlink, 0)
    fails("ENOENT", os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    fails("ENOENT", os.mkdir, "new", dir_fd=fd)
    os.close(fd)
    return [exists("void")]


@case
def listing_of_what_is_no_directory() -> None:
    for path in ("file", "link", "fifo", "null"):
        fails("ENOTDIR", os.listdir, path)
    fails("ENOENT", os.listdir, "none")
    fails("ENOENT", os.listdir, "dangling")
    fd = os.open("file", os.O_RDONLY)
    fails("ENOTDIR", os.listdir, fd)
    os.close(fd)


@case(prepare=furnish_for_users)
def listing_needs_read_and_passing_needs_search() -> None:
    os.chmod("alice.dir", 0o711)
    fails("EACCES", act_as, BOB, os.listdir, "alice.dir")
    act_as(BOB, os.stat, "alice.dir/file")
    os.chmod("alice.dir", 0o744)
    equal(act_as(BOB, os.listdir, "alice.dir"), ["file"])
    fails("EACCES", act_as, BOB, os.stat, "alice.dir/file")
    fails("EACCES", act_as, BOB, os.chdir, "alice.dir")
    os.chmod("alice.dir", 0o000)
    fails("EACCES", act_as, ALICE, os.listdir, "alice.dir")
    equal(os.listdir("alice.dir"), ["file"])


@case
def reading_a_directory_is_eisdir() -> None:
    fd = os.open("dir", os.O_RDONLY)
    fails("EISDIR", os.read, fd, 10)
    fails("EBADF", os.write, fd, b"x")
    fails("EINVAL", os.ftruncate, fd, 0)
    fails("EISDIR", os.truncate, "dir", 0)
    os.fsync(fd)
    os.close(fd)
