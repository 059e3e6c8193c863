"""chmod(2) and chown(2), and what setuid, setgid and sticky bits do."""

from __future__ import annotations

import os

from integration.conformance import calls
from integration.conformance.cases import case, equal, fails, mode_of, outcome, owner_of, put
from integration.conformance.furniture import furnish, furnish_for_users
from integration.conformance.processes import ALICE, BOB, CAROL, STAFF, act_as

_MODES = (0o644, 0o7777, 0, 0o4711, 0o2755, 0o1777, 0o111)


def _write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)


@case
def chmod_sets_every_bit_of_every_kind() -> list[str]:
    seen = []
    for path in ("file", "big", "dir", "void", "fifo", "null", "hard1"):
        for mode in _MODES:
            os.chmod(path, mode)
            equal(mode_of(path), f"{mode:04o}")
            seen.append(mode_of(path))
    equal(mode_of("dir/hard2"), mode_of("hard1"))
    return seen


@case
def chmod_follows_symlinks() -> list[str]:
    os.chmod("link", 0o600)
    os.chmod("dirlink", 0o700)
    equal([mode_of("file"), mode_of("dir"), mode_of("link")], ["0600", "0700", "0777"])
    fails("ENOENT", os.chmod, "dangling", 0o600)
    fails("ELOOP", os.chmod, "loop", 0o600)
    return [mode_of("file"), mode_of("dir")]


@case
def chmod_errors() -> None:
    fails("ENOENT", os.chmod, "none", 0o600)
    fails("ENOENT", os.chmod, "", 0o600)
    fails("ENOTDIR", os.chmod, "file/below", 0o600)
    fails("ENOTDIR", os.chmod, "file/", 0o600)
    fails("EBADF", os.fchmod, 999, 0o600)


@case
def fchmod_reaches_the_file_of_the_descriptor() -> list[str]:
    seen = []
    for path in ("file", "big", "dir"):
        fd = os.open(path, os.O_RDONLY)
        os.fchmod(fd, 0o6751)
        equal(mode_of(fd), "6751")
        equal(mode_of(path), "6751")
        if path != "dir":
            os.unlink(path)
            os.fchmod(fd, 0o600)
            equal(mode_of(fd), "0600")
        seen.append(mode_of(fd))
        os.close(fd)
    return seen


@case
def fchmodat2_knows_symlinks_and_empty_paths() -> object:
    if outcome(calls.fchmodat2, calls.AT_FDCWD, "file", 0o600, 0) == "ENOSYS":
        return "ENOSYS"  # before Linux 6.6
    fd = os.open("file", os.O_PATH)
    calls.fchmodat2(fd, "", 0o640, calls.AT_EMPTY_PATH)
    equal(mode_of("file"), "0640")
    os.close(fd)
    fails("EINVAL", calls.fchmodat2, calls.AT_FDCWD, "file", 0o600, 0x80000)
    fails("ENOENT", calls.fchmodat2, calls.AT_FDCWD, "", 0o600, 0)
    calls.fchmodat2(calls.AT_FDCWD, "file", 0o604, calls.AT_SYMLINK_NOFOLLOW)
    return [
        mode_of("file"),
        outcome(calls.fchmodat2, calls.AT_FDCWD, "link", 0o600, calls.AT_SYMLINK_NOFOLLOW),
        mode_of("link"),
    ]


@case(prepare=furnish_for_users)
def chmod_is_for_the_owner() -> None:
    os.chmod("alice.file", 0o666)
    for user in (BOB, CAROL):
        fails("EPERM", act_as, user, os.chmod, "alice.file", 0o600)
        fails("EPERM", act_as, user, os.chmod, "file", 0o600)
        fails("EACCES", act_as, user, os.chmod, "closed.dir/file", 0o600)
    fails("EPERM", act_as, ALICE, os.chmod, "alice.link", 0o600)
    act_as(ALICE, os.chmod, "alice.file", 0o4701)
    act_as(ALICE, os.chmod, "alice.dir", 0o1700)
    equal([mode_of("alice.file"), mode_of("alice.dir")], ["4701", "1700"])


@case(prepare=furnish_for_users)
def setgid_by_owner_outside_of_the_group_is_dropped() -> list[str]:
    seen = []
    for path in ("alice.file", "alice.dir"):
        os.chown(path, ALICE.uid, STAFF)
        act_as(ALICE, os.chmod, path, 0o2755)
        seen.append(mode_of(path))
    equal(seen, ["0755", "0755"])
    os.chown("carol.file", CAROL.uid, STAFF)
    act_as(CAROL, os.chmod, "carol.file", 0o2755)  # it is one of her groups
    equal(mode_of("carol.file"), "2755")
    return seen


@case
def chown_sets_what_it_is_told() -> object:
    seen = []
    for path in ("file", "big", "dir", "fifo", "null", "hard1"):
        os.chown(path, 5, 6)
        os.chown(path, -1, 7)
        os.chown(path, 8, -1)
        os.chown(path, -1, -1)
        equal(owner_of(path), (8, 7))
        seen.append(owner_of(path))
    equal(owner_of("dir/hard2"), (8, 7))
    os.lchown("link", 9, 10)
    equal([owner_of("link"), owner_of("file")], [(9, 10), (8, 7)])
    os.chown("link", 11, 12)
    equal([owner_of("link"), owner_of("file")], [(9, 10), (11, 12)])
    os.lchown("dangling", 13, 14)
    os.chown("file", 2**32 - 2, 2**31)
    equal(owner_of("file"), (2**32 - 2, 2**31))
    return seen


@case
def chown_errors() -> None:
    fails("ENOENT", os.chown, "none", 1, 1)
    fails("ENOENT", os.chown, "dangling", 1, 1)
    fails("ELOOP", os.chown, "loop", 1, 1)
    fails("ENOTDIR", os.chown, "file/below", 1, 1)
    fails("EBADF", os.fchown, 999, 1, 1)
    fails("EINVAL", calls.fchownat, calls.AT_FDCWD, "file", 1, 1, 0x80000)


@case(prepare=furnish_for_users)
def ordinary_users_give_nothing_away() -> None:
    fails("EPERM", act_as, ALICE, os.chown, "alice.file", BOB.uid, -1)
    fails("EPERM", act_as, ALICE, os.chown, "alice.file", -1, STAFF)
    fails("EPERM", act_as, BOB, os.chown, "alice.file", BOB.uid, BOB.gid)
    fails("EPERM", act_as, CAROL, os.chown, "alice.file", -1, STAFF)
    fails("EPERM", act_as, BOB, os.chown, "file", 0, 0)
    act_as(ALICE, os.chown, "alice.file", ALICE.uid, ALICE.gid)
    act_as(ALICE, os.chown, "alice.file", -1, -1)
    act_as(CAROL, os.chown, "carol.file", -1, STAFF)
    act_as(CAROL, os.chown, "carol.dir", CAROL.uid, ALICE.gid)
    equal(owner_of("carol.file"), (CAROL.uid, STAFF))
    equal(owner_of("carol.dir"), (CAROL.uid, ALICE.gid))


@case(prepare=furnish_for_users)
def chown_clears_setuid_and_setgid() -> list[str]:
    seen = []
    for mode in (0o6777, 0o6666, 0o2707, 0o2717, 0o4700, 0o7777):
        for path in ("carol.file", "carol.big"):
            os.chown(path, CAROL.uid, CAROL.gid)
            os.chmod(path, mode)
            act_as(CAROL, os.chown, path, -1, STAFF)
            seen.append(mode_of(path))
            os.chmod(path, mode)
            os.chown(path, 0, 0)
            seen.append(mode_of(path))
            equal(int(seen[-1], 8) & 0o4000, 0)
            if mode & 0o010:
                equal(int(seen[-1], 8) & 0o2000, 0)
    os.chmod("dir", 0o6777)
    os.chown("dir", 1, 1)
    equal(mode_of("dir"), "6777")
    os.chmod("carol.dir", 0o6777)
    act_as(CAROL, os.chown, "carol.dir", -1, STAFF)
    return [*seen, mode_of("carol.dir")]


@case(prepare=furnish_for_users)
def chown_to_nobody_new_clears_too() -> list[str]:
    seen = []
    for arguments in ((ALICE.uid, ALICE.gid), (ALICE.uid, -1), (-1, ALICE.gid)):
        os.chmod("alice.file", 0o6777)
        act_as(ALICE, os.chown, "alice.file", *arguments)
        seen.append(mode_of("alice.file"))
        os.chmod("alice.file", 0o6777)
        os.chown("alice.file", *arguments)
        seen.append(mode_of("alice.file"))
    return seen


@case(prepare=furnish_for_users)
def chown_of_nothing_clears_too() -> str:
    os.chmod("alice.file", 0o6777)
    os.chown("alice.file", -1, -1)
    seen = mode_of("alice.file")
    os.chmod("alice.file", 0o644)
    return seen


def _ways_to_change() -> dict[str, object]:
    def opened(action: object, flags: int = os.O_RDWR) -> object:
        def act(path: str) -> None:
            fd = os.open(path, flags)
            action(fd)  # type: ignore[operator]
            os.close(fd)

        return act

    def copy(fd: int) -> None:
        source = os.open("other", os.O_RDONLY)
        os.copy_file_range(source, fd, 5)
        os.close(source)

    def send(fd: int) -> None:
        source = os.open("other", os.O_RDONLY)
        os.sendfile(fd, source, 0, 5)
        os.close(source)

    return {
        "write": _write,
        "append": opened(lambda fd: os.write(fd, b"x"), os.O_WRONLY | os.O_APPEND),
        "pwritev": opened(lambda fd: os.pwritev(fd, [b"a", b"b"], 3)),
        "write nothing": opened(lambda fd: os.write(fd, b"")),
        "truncate": lambda path: os.truncate(path, 3),
        "ftruncate": opened(lambda fd: os.ftruncate(fd, 4)),
        "O_TRUNC": opened(lambda _fd: None, os.O_WRONLY | os.O_TRUNC),
        "open": opened(lambda _fd: None),
        "fallocate": opened(lambda fd: os.posix_fallocate(fd, 0, 20)),
        "copy_file_range": opened(copy),
        "sendfile": opened(send),
        "punch": opened(lambda fd: calls.fallocate(fd, 3, 0, 4096)),
    }


def _files_to_change() -> None:
    furnish()
    os.chmod(".", 0o777)
    for way in _ways_to_change():
        for mode in (0o6777, 0o6767, 0o2676):
            for kind, size in (("", 10), (".big", 100_000)):
                path = f"{way}.{mode:o}{kind}"
                put(path, b"0" * size)
                os.chmod(path, mode)


@case(prepare=_files_to_change)
def changes_by_a_user_clear_setuid_and_setgid() -> dict[str, str]:
    def act() -> None:
        for way, change in _ways_to_change().items():
            for mode in (0o6777, 0o6767, 0o2676):
                for kind in ("", ".big"):
                    change(f"{way}.{mode:o}{kind}")  # type: ignore[operator]

    act_as(BOB, act)
    seen = {path: mode_of(path) for path in sorted(os.listdir(".")) if ".6" in path or ".2" in path}
    for path in ("write.6777", "write.6777.big", "truncate.6777", "O_TRUNC.6777.big"):
        equal(seen[path], "0777")
    equal(seen["open.6777"], "6777")
    return seen


@case(prepare=_files_to_change)
def changes_by_root_leave_setuid_and_setgid() -> dict[str, str]:
    for way, change in _ways_to_change().items():
        for mode in (0o6777, 0o6767):
            change(f"{way}.{mode:o}")  # type: ignore[operator]
    seen = {path: mode_of(path) for path in sorted(os.listdir(".")) if ".67" in path}
    assert all(mode in ("6777", "6767") for mode in seen.values()), seen
    return seen


@case(prepare=furnish_for_users)
def setgid_directory_hands_its_group_down() -> object:
    os.chown("void", 0, STAFF)
    os.chmod("void", 0o2777)

    def act() -> None:
        put("void/file", b"x", 0o666)
        os.close(os.open("void/exec", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.mkdir("void/dir", 0o755)
        os.mkdir("void/dir/deeper", 0o700)
        os.symlink("x", "void/link")
        os.mkfifo("void/fifo")
        os.mknod("void/socket", 0o140644)

    seen: list[object] = []
    for user in (BOB, CAROL):
        act_as(user, act)
        for path in ("file", "exec", "dir", "dir/deeper", "link", "fifo", "socket"):
            equal(owner_of(f"void/{path}"), (user.uid, STAFF))
            seen.append(mode_of(f"void/{path}"))
        equal(mode_of("void/dir"), "2755")
        equal(mode_of("void/dir/deeper"), "2700")
        os.rename("void", f"void{user.uid}")
        os.mkdir("void")
        os.chown("void", 0, STAFF)
        os.chmod("void", 0o2777)
    return seen


@case(prepare=furnish_for_users)
def rename_and_link_hand_nothing_down() -> object:
    os.chown("void", 0, STAFF)
    os.chmod("void", 0o2777)
    act_as(ALICE, os.rename, "alice.file", "void/file")
    act_as(ALICE, os.rename, "alice.dir", "void/dir")
    act_as(ALICE, os.link, "alice.big", "void/big")
    seen = [(owner_of(f"void/{path}"), mode_of(f"void/{path}")) for path in ("file", "dir", "big")]
    assert all(owner == (ALICE.uid, ALICE.gid) for owner, _mode in seen)
    return list(seen)
