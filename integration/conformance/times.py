"""utimensat(2), and which times an operation moves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from integration.conformance import calls
from integration.conformance.calls import UTIME_NOW, UTIME_OMIT, utimensat
from integration.conformance.cases import case, equal, fails, get, put
from integration.conformance.furniture import furnish_for_users
from integration.conformance.processes import ALICE, BOB, act_as

OLD = 10**18 + 123_456_789  # nanoseconds since 1970


def _stamps(path: str) -> tuple[int, int, int]:
    st = os.lstat(path)
    return st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns


def _moved(action: Callable[[], object], *paths: str) -> dict[str, str]:
    """Which of "amc" an action moves, for each path. The object may be renamed meanwhile: a path
    "old>new".
    """
    for path in paths:
        os.utime(path.partition(">")[0], ns=(OLD, OLD), follow_symlinks=False)
    before = {path: _stamps(path.partition(">")[0]) for path in paths}
    time.sleep(0.01)  # a tick of the kernel's coarse clock
    action()
    found = {}
    for path in paths:
        after = _stamps(path.rpartition(">")[2])
        found[path] = "".join(
            letter
            for letter, old, new in zip("amc", before[path], after, strict=True)
            if old != new
        )
    return found


def _written(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)


@case
def times_are_kept_to_the_nanosecond() -> object:
    seen: list[object] = []
    for path in ("file", "big", "dir", "link", "dangling", "fifo", "null", "hard1"):
        for atime, mtime in (
            ((1, 1), (2, 999_999_999)),
            ((1 << 32, 0), (1 << 33, 7)),
            ((-1, 5), (1 - (1 << 31), 999_999_998)),
            ((0, 0), (0, 0)),
        ):
            utimensat(path, atime, mtime, calls.AT_SYMLINK_NOFOLLOW)
            st = os.lstat(path)
            got = st.st_atime_ns, st.st_mtime_ns
            expected = tuple(seconds * 10**9 + nanos for seconds, nanos in (atime, mtime))
            equal(got, expected)
            seen.append(got)
    equal(os.stat("dir/hard2").st_mtime_ns, 0)
    return seen


@case
def utime_now_and_omit() -> list[bool]:
    seen = []
    for path in ("file", "big", "dir"):
        os.utime(path, ns=(OLD, OLD))
        utimensat(path, (0, UTIME_OMIT), (5, 6))
        equal(_stamps(path)[:2], (OLD, 5_000_000_006))
        utimensat(path, (7, 8), (0, UTIME_OMIT))
        equal(_stamps(path)[:2], (7_000_000_008, 5_000_000_006))
        before = _stamps(path)
        utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
        equal(_stamps(path), before)
        start = time.time_ns() - 10**9
        utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
        assert start < _stamps(path)[0] < start + 10**10
        equal(_stamps(path)[1], 5_000_000_006)
        utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW))
        seen.append(start < _stamps(path)[1] < start + 10**10)
        equal(_stamps(path)[0], _stamps(path)[1])
    return seen


@case
def utimensat_errors() -> None:
    for nanoseconds in (-1, 10**9, 10**9 + 5):
        fails("EINVAL", utimensat, "file", (0, nanoseconds), (0, 0))
        fails("EINVAL", utimensat, "file", (0, 0), (0, nanoseconds))
    fails("ENOENT", utimensat, "none", (0, 0), (0, 0))
    fails("ENOENT", utimensat, "dangling", (0, 0), (0, 0))
    fails("ELOOP", utimensat, "loop", (0, 0), (0, 0))
    fails("ENOTDIR", utimensat, "file/below", (0, 0), (0, 0))
    fails("EINVAL", utimensat, "file", (0, 0), (0, 0), 0x80000)


@case(prepare=furnish_for_users)
def owner_sets_times_and_a_writer_only_now() -> None:
    os.chmod("alice.file", 0o666)
    act_as(ALICE, utimensat, "alice.file", (1, 1), (2, 2))
    fails("EPERM", act_as, BOB, utimensat, "alice.file", (1, 1), (2, 2))
    fails("EPERM", act_as, BOB, utimensat, "alice.file", (0, UTIME_OMIT), (0, UTIME_NOW))
    fails("EPERM", act_as, BOB, utimensat, "alice.file", (0, UTIME_OMIT), (3, 3))
    act_as(BOB, utimensat, "alice.file", (0, UTIME_NOW), (0, UTIME_NOW))
    act_as(BOB, utimensat, "file", (0, UTIME_OMIT), (0, UTIME_OMIT))
    fails("EACCES", act_as, BOB, utimensat, "file", (0, UTIME_NOW), (0, UTIME_NOW))
    fails("EPERM", act_as, BOB, utimensat, "file", (1, 1), (1, 1))
    fails("EACCES", act_as, BOB, utimensat, "closed.dir/file", (1, 1), (1, 1))
    os.chmod("alice.file", 0)
    act_as(ALICE, utimensat, "alice.file", (0, UTIME_NOW), (0, UTIME_NOW))
    act_as(ALICE, utimensat, "alice.dir", (4, 4), (5, 5))


@case
def writing_moves_mtime_and_ctime() -> object:
    seen: list[object] = []
    for path in ("file", "big", "empty"):
        seen += [
            _moved(lambda path=path: _written(path, b"x"), path, "."),
            _moved(lambda path=path: os.truncate(path, 5), path, "."),
            _moved(lambda path=path: os.truncate(path, 0), path),
            _moved(lambda path=path: put(path, b"new"), path, "."),
        ]
    for found in seen:
        equal(set(found.values()) - {"mc", ""}, set())  # type: ignore[attr-defined]
    equal(seen[0], {"file": "mc", ".": ""})
    return seen


@case
def what_only_changes_the_inode_moves_ctime() -> object:
    seen: list[object] = []
    for path in ("file", "big", "dir", "fifo"):
        seen += [
            _moved(lambda path=path: os.chmod(path, 0o700), path, "."),
            _moved(lambda path=path: os.chown(path, 1, 1), path, "."),
            _moved(lambda path=path: os.setxattr(path, "trusted.a", b"1"), path, "."),
            _moved(lambda path=path: os.removexattr(path, "trusted.a"), path, "."),
            _moved(lambda path=path: os.rename(path, f"{path}.new"), f"{path}>{path}.new", "."),
        ]
    for number, found in enumerate(seen):
        equal(list(found.values()), ["c", "mc" if number % 5 == 4 else ""])  # type: ignore[attr-defined]
    return seen


@case
def names_that_come_and_go_move_their_directory() -> object:
    seen = [
        _moved(lambda: put("dir/new"), "dir", "."),
        _moved(lambda: os.mkdir("dir/newdir"), "dir", "."),
        _moved(lambda: os.symlink("x", "dir/newlink"), "dir"),
        _moved(lambda: os.mkfifo("dir/newfifo"), "dir"),
        _moved(lambda: os.link("file", "dir/linked"), "dir", "file", "."),
        _moved(lambda: os.unlink("dir/linked"), "dir", "file", "."),
        _moved(lambda: os.rmdir("dir/newdir"), "dir", "."),
        _moved(lambda: os.rename("dir/new", "void/new"), "dir", "void", "dir/new>void/new", "."),
        _moved(lambda: os.rename("dir/sub", "void/sub"), "dir", "void", "dir/sub>void/sub"),
        _moved(lambda: os.rename("file", "void/new"), "void", ".", "file>void/new"),
        _moved(lambda: put("dir/file", b"overwritten"), "dir", "dir/file"),
        _moved(lambda: os.unlink("hard1"), "dir/hard2", ".", "dir"),
    ]
    equal(seen[0], {"dir": "mc", ".": ""})
    equal(seen[4], {"dir": "mc", "file": "c", ".": ""})
    equal(seen[5], {"dir": "mc", "file": "c", ".": ""})
    equal(seen[11], {"dir/hard2": "c", ".": "mc", "dir": ""})
    return seen


@case
def failures_and_looking_move_nothing() -> object:
    def fail() -> None:
        fails("EEXIST", os.mkdir, "dir")
        fails("ENOTEMPTY|EEXIST", os.rmdir, "dir")
        fails("ENOENT", os.unlink, "dir/none")
        fails("EEXIST", os.link, "file", "other")
        fails("EISDIR", os.rename, "file", "void")
        fails("EINVAL", os.rename, "dir", "dir/sub/x")
        fails("EEXIST", calls.renameat2, "file", "other", calls.RENAME_NOREPLACE)
        fails("ENODATA", os.removexattr, "file", "user.none")
        os.stat("file")
        os.access("dir", os.R_OK)
        os.close(os.open("file", os.O_RDONLY))

    seen = _moved(fail, ".", "dir", "file", "other", "void")
    equal(set(seen.values()), {""})
    return [seen]


@case
def reading_what_was_never_changed_leaves_mtime_and_ctime() -> list[bool]:
    seen = []
    for path in ("file", "big", "dir/file", "hard1"):
        before = _stamps(path)
        get(path)
        seen.append(_stamps(path)[1:] == before[1:])
    equal(seen, [True] * 4)
    return seen


@case
def writing_through_a_descriptor_shows_at_once() -> object:
    seen = []
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDWR)
        os.utime(path, ns=(OLD, OLD))
        time.sleep(0.01)
        os.write(fd, b"x")
        equal(os.fstat(fd).st_mtime_ns, os.stat(path).st_mtime_ns)
        seen.append(os.stat(path).st_mtime_ns > OLD)
        os.utime(fd, ns=(OLD, OLD))
        equal(os.stat(path).st_mtime_ns, OLD)
        os.close(fd)
        seen.append(os.stat(path).st_mtime_ns == OLD)
    equal(seen, [True] * 4)
    return seen


@case
def writing_nothing_moves_nothing() -> object:
    _written("file", b"")  # the first open for writing may move the ctime: docs/semantics.md
    seen = [
        _moved(lambda: _written("file", b""), "file"),
        _moved(lambda: os.truncate("file", 10), "file"),
    ]
    equal(seen[0], {"file": ""})
    return seen
