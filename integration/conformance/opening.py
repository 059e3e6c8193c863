"""open(2) and creat(2): flags, and who may."""

from __future__ import annotations

import fcntl
import os
import stat

from integration.conformance import calls
from integration.conformance.cases import (
    case,
    equal,
    exists,
    fails,
    get,
    mode_of,
    outcome,
    owner_of,
    put,
)
from integration.conformance.furniture import BIG, DIGITS, SHARE_MIN, furnish_for_users, listening
from integration.conformance.processes import ALICE, BOB, CAROL, act_as

_WRITE = os.O_WRONLY


def _closed(path: str, flags: int, mode: int = 0o666) -> int:
    """Open and close; gives the status flags that the descriptor had, without O_LARGEFILE."""
    fd = os.open(path, flags, mode)
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000
    finally:
        os.close(fd)


@case
def missing_names() -> None:
    for flags in (os.O_RDONLY, _WRITE, os.O_RDWR, os.O_PATH, os.O_DIRECTORY, os.O_TRUNC):
        fails("ENOENT", _closed, "none", flags)
        fails("ENOENT", _closed, "none/below", flags)
        fails("ENOENT", _closed, "dangling", flags)
        fails("ENOTDIR", _closed, "file/below", flags)
        fails("ENOTDIR", _closed, "link/below", flags)
        fails("ENOTDIR", _closed, "file/", flags)
        fails("ENOENT", _closed, "", flags)
    fails("ENOENT", _closed, "none/new", os.O_CREAT | _WRITE)
    fails("ENOTDIR", _closed, "file/new", os.O_CREAT | _WRITE)
    fails("EISDIR", _closed, "new/", os.O_CREAT | _WRITE)


@case
def directory_is_not_opened_for_writing() -> None:
    for path in ("dir", "void", "dirlink", "."):
        for flags in (_WRITE, os.O_RDWR, os.O_CREAT, os.O_CREAT | os.O_RDWR, os.O_TRUNC | _WRITE):
            fails("EISDIR", _closed, path, flags)
        fails("EEXIST", _closed, path, os.O_CREAT | os.O_EXCL | _WRITE)
        _closed(path, os.O_RDONLY)
        _closed(path, os.O_RDONLY | os.O_DIRECTORY)
    fails("EINVAL|EISDIR", _closed, "dir", os.O_CREAT | os.O_DIRECTORY)


@case
def o_directory_wants_a_directory() -> None:
    for path in ("file", "big", "link", "fifo", "null"):
        fails("ENOTDIR", _closed, path, os.O_DIRECTORY)
    fails("ENOTDIR", _closed, "dirlink", os.O_DIRECTORY | os.O_NOFOLLOW)
    _closed("dirlink", os.O_DIRECTORY)


@case
def o_nofollow_refuses_symlinks() -> None:
    for path in ("link", "dirlink", "dangling", "loop"):
        fails("ELOOP", _closed, path, os.O_NOFOLLOW)
        fails("ELOOP", _closed, path, os.O_NOFOLLOW | _WRITE)
    fails("ELOOP", _closed, "link", os.O_NOFOLLOW | os.O_CREAT | _WRITE)
    fails("EEXIST", _closed, "link", os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL | _WRITE)
    _closed("dirlink/file", os.O_NOFOLLOW)


@case
def o_excl_refuses_every_existing_name() -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    for path in ("file", "big", "dir", "link", "dirlink", "dangling", "loop", "fifo", "null"):
        fails("EEXIST", _closed, path, flags)
    _closed("new", flags)
    fails("EEXIST", _closed, "new", flags)
    assert not exists("nowhere")


@case
def o_creat_follows_a_dangling_symlink() -> str:
    _closed("dangling", os.O_CREAT | _WRITE, 0o640)
    equal(mode_of("nowhere"), "0640")
    fails("ELOOP", _closed, "loop", os.O_CREAT | _WRITE)
    return os.readlink("dangling")


@case
def o_creat_of_an_existing_file_changes_nothing() -> object:
    seen = []
    for path in ("file", "big", "hard1", "link"):
        before = os.stat(path)
        flags = _closed(path, os.O_CREAT | os.O_RDWR, 0o600)
        after = os.stat(path)
        equal(after.st_mode, before.st_mode)
        equal(after.st_size, before.st_size)
        equal(after.st_mtime_ns, before.st_mtime_ns)
        seen.append(flags)
    return seen


@case
def new_file_has_the_mode_without_the_umask() -> list[str]:
    seen = []
    for umask in (0, 0o022, 0o077, 0o777):
        os.umask(umask)
        for mode in (0o644, 0o777, 0o7777, 0, 0o4711):
            path = f"new{umask:o}.{mode:o}"
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, mode))
            equal(mode_of(path), f"{mode & ~umask:04o}")
            seen.append(mode_of(path))
    return seen


@case
def o_trunc_empties_files() -> object:
    seen: list[object] = []
    for path in ("file", "big", "empty", "hard1"):
        seen.append(_closed(path, os.O_TRUNC | _WRITE))
        equal(os.stat(path).st_size, 0)
    equal(get("dir/hard2"), b"")
    _closed("fifo", os.O_TRUNC | os.O_RDWR)
    _closed("null", os.O_TRUNC | os.O_RDWR)
    return seen


@case
def o_trunc_with_read_only_access() -> object:
    return [(outcome(_closed, path, os.O_TRUNC), os.stat(path).st_size) for path in ("file", "big")]


@case
def o_append_writes_at_the_end_whatever_the_position() -> object:
    seen: list[object] = []
    for path in ("file", "big"):
        first = os.open(path, os.O_RDWR | os.O_APPEND)
        second = os.open(path, _WRITE | os.O_APPEND)
        os.lseek(first, 3, os.SEEK_SET)
        os.write(first, b"one")
        os.write(second, b"two")
        os.pwrite(first, b"three", 0)  # Linux appends here too: pwrite(2), BUGS
        seen += [os.lseek(first, 0, os.SEEK_CUR), os.pread(first, 100, 0)]
        os.close(first)
        os.close(second)
        assert get(path).endswith(b"onetwothree")
    return seen


@case
def o_append_can_be_switched() -> bytes:
    fd = os.open("file", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"end")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"S", 0)
    os.close(fd)
    equal(get("file"), b"S123456789end")
    return get("file")


@case
def o_path_gives_no_access() -> object:
    seen: list[object] = []
    for path in ("file", "big", "dir", "link", "dangling", "fifo", "null"):
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        fails("EBADF", os.read, fd, 1)
        fails("EBADF", os.write, fd, b"x")
        fails("EBADF", os.fchmod, fd, 0o600)
        fails("EBADF", os.ftruncate, fd, 0)
        fails("EBADF", os.fsync, fd)
        fails("EBADF", os.listxattr, fd)
        seen.append(stat.filemode(os.fstat(fd).st_mode))
        os.close(fd)
    fd = os.open("file", os.O_PATH)
    with open(f"/proc/self/fd/{fd}", "r+b") as again:
        again.write(b"through the path")
    os.close(fd)
    equal(get("file"), b"through the path")
    return seen


@case
def access_mode_of_a_descriptor_is_kept() -> None:
    for path in ("file", "big"):
        fd = os.open(path, os.O_RDONLY)
        fails("EBADF", os.write, fd, b"x")
        fails("EBADF|EINVAL", os.ftruncate, fd, 0)
        os.close(fd)
        fd = os.open(path, _WRITE)
        fails("EBADF", os.read, fd, 1)
        os.close(fd)
        fd = os.open(path, os.O_ACCMODE)  # Linux: neither, but needs both permissions
        fails("EBADF", os.read, fd, 1)
        fails("EBADF", os.write, fd, b"x")
        os.close(fd)


@case
def reopened_descriptor_has_the_flags_of_the_new_open() -> bytes:
    fd = os.open("file", os.O_RDONLY)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC)
    os.write(again, b"new")
    os.close(again)
    os.close(fd)
    equal(get("file"), b"new")
    return get("file")


@case(prepare=furnish_for_users)
def permission_bits_are_those_of_the_class() -> object:
    modes = (0o000, 0o400, 0o040, 0o004, 0o200, 0o020, 0o002, 0o060, 0o066, 0o606, 0o660)
    for mode in modes:
        put(f"file{mode:o}", b"data")
        os.chmod(f"file{mode:o}", mode)
        os.chown(f"file{mode:o}", ALICE.uid, ALICE.gid)
        _closed(f"file{mode:o}", os.O_RDWR)  # root may

    def act(place: int) -> list[bool]:
        seen = []
        for mode in modes:
            bits = mode >> (6 - 3 * place) & 7
            for flags, need in ((os.O_RDONLY, 4), (_WRITE, 2), (os.O_RDWR, 6)):
                seen.append(outcome(_closed, f"file{mode:o}", flags) == "EACCES")
                equal(seen[-1], bits & need != need)
        return seen

    return [act_as(user, act, place) for place, user in enumerate((ALICE, CAROL, BOB))]


@case(prepare=furnish_for_users)
def group_decides_before_others_do() -> None:
    os.chown("file", 0, 2000)
    os.chmod("file", 0o606)
    fails("EACCES", act_as, CAROL, _closed, "file", os.O_RDONLY)
    act_as(BOB, _closed, "file", os.O_RDWR)


@case(prepare=furnish_for_users, user=BOB)
def closed_directories_are_not_passed() -> None:
    for flags in (os.O_RDONLY, os.O_PATH, os.O_CREAT | _WRITE):
        fails("EACCES", _closed, "closed.dir/file", flags)
        fails("EACCES", _closed, "closed.dir/none", flags)
    fails("EACCES", _closed, "closed.dir", os.O_RDONLY)
    fails("EACCES", _closed, "closed", os.O_RDONLY)
    fails("EACCES", _closed, "file", os.O_TRUNC | os.O_RDONLY)
    fails("EACCES", _closed, "dir/new", os.O_CREAT | _WRITE)
    os.close(os.open("closed", os.O_PATH))
    os.close(os.open("closed.dir", os.O_PATH))


@case(prepare=furnish_for_users)
def o_creat_of_an_existing_file_needs_no_write_permission_for_the_directory() -> None:
    act_as(BOB, _closed, "dir/file", os.O_CREAT | os.O_RDONLY)
    fails("EACCES", act_as, BOB, _closed, "dir/file", os.O_CREAT | _WRITE)
    fails("EEXIST", act_as, BOB, _closed, "dir/file", os.O_CREAT | os.O_EXCL | _WRITE)
    fails("EACCES", act_as, BOB, _closed, "dir/new", os.O_CREAT | os.O_EXCL | _WRITE)


@case(prepare=furnish_for_users, user=ALICE)
def creator_may_write_what_the_mode_forbids() -> str:
    fd = os.open("new", os.O_CREAT | os.O_RDWR, 0)
    os.write(fd, b"mine")
    equal(os.pread(fd, 10, 0), b"mine")
    os.close(fd)
    fails("EACCES", _closed, "new", os.O_RDONLY)
    equal(owner_of("new"), (ALICE.uid, ALICE.gid))
    return mode_of("new")


@case(prepare=furnish_for_users)
def o_noatime_is_for_the_owner() -> None:
    for path in ("alice.file", "alice.big"):
        act_as(ALICE, _closed, path, os.O_NOATIME)
        fails("EPERM", act_as, BOB, _closed, path, os.O_NOATIME)
        fails("EPERM", act_as, CAROL, _closed, path, os.O_NOATIME)
        _closed(path, os.O_NOATIME)


@case(prepare=furnish_for_users)
def o_noatime_leaves_the_time_of_access() -> None:
    for path in ("file", "big"):
        os.utime(path, ns=(10**18, 2 * 10**18))
        fd = os.open(path, os.O_NOATIME)
        os.read(fd, 100)
        os.close(fd)
        equal(os.stat(path).st_atime_ns, 10**18)


@case
def descriptors_hold_their_own_positions() -> object:
    first, second = os.open("file", os.O_RDONLY), os.open("file", os.O_RDONLY)
    shared = os.dup(first)
    got = [os.read(first, 2), os.read(second, 3), os.read(shared, 4)]
    equal(got, [b"01", b"012", b"2345"])
    for fd in (first, second, shared):
        os.close(fd)
    return got


@case
def sockets_are_not_opened() -> None:
    listening("socket").close()
    for flags in (os.O_RDONLY, _WRITE, os.O_RDWR):
        fails("ENXIO", _closed, "socket", flags)
    _closed("socket", os.O_PATH)


@case
def fifo_without_reader_is_not_opened_for_writing_without_waiting() -> None:
    fails("ENXIO", _closed, "fifo", _WRITE | os.O_NONBLOCK)
    _closed("fifo", os.O_RDONLY | os.O_NONBLOCK)


@case
def unknown_flags_of_openat_are_ignored_and_bad_descriptors_not() -> None:
    fails("EBADF", os.open, "file", os.O_RDONLY, dir_fd=999)
    fd = os.open("file", os.O_RDONLY)
    fails("ENOTDIR", os.open, "file", os.O_RDONLY, dir_fd=fd)
    os.close(fd)


@case
def openat_starts_at_its_directory() -> bytes:
    directory = os.open("dir", os.O_PATH)
    fd = os.open("file", os.O_RDONLY, dir_fd=directory)
    equal(os.read(fd, 100), b"inside\n")
    os.close(fd)
    fd = os.open("../file", os.O_RDONLY, dir_fd=directory)
    data = os.read(fd, 100)
    equal(data, DIGITS)
    os.close(fd)
    os.close(os.open("made", os.O_CREAT | _WRITE, 0o600, dir_fd=directory))
    os.close(directory)
    return data


@case
def o_tmpfile_makes_a_file_without_a_name() -> object:
    fd = os.open("dir", os.O_TMPFILE | os.O_RDWR, 0o640)
    st = os.fstat(fd)
    os.write(fd, b"unnamed")
    seen: list[object] = [st.st_nlink, oct(st.st_mode), sorted(os.listdir("dir"))]
    equal(st.st_nlink, 0)
    calls.link_fd(fd, "named")
    os.close(fd)
    equal(get("named"), b"unnamed")
    equal(os.stat("named").st_nlink, 1)
    return seen


@case
def o_tmpfile_errors() -> None:
    flags = os.O_TMPFILE
    fails("EINVAL", _closed, "dir", flags | os.O_RDONLY)
    fails("ENOTDIR", _closed, "file", flags | os.O_RDWR)
    fails("ENOENT", _closed, "none", flags | os.O_RDWR)


@case
def o_tmpfile_with_o_excl_stays_without_a_name() -> None:
    fd = os.open("dir", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o640)
    fails("ENOENT", calls.link_fd, fd, "named")
    os.close(fd)


@case(prepare=furnish_for_users)
def o_tmpfile_belongs_to_who_made_it() -> object:
    def make() -> object:
        fd = os.open("alice.dir", os.O_TMPFILE | os.O_RDWR, 0o666)
        calls.link_fd(fd, "alice.dir/named")
        return mode_of(fd)

    equal(act_as(ALICE, make), "0644")
    fails("EACCES", act_as, BOB, make)
    return owner_of("alice.dir/named")


@case
def big_and_small_files_are_read_whole() -> None:
    assert len(BIG) > SHARE_MIN
    equal(get("file"), DIGITS)
    equal(get("big"), BIG)
    equal(get("empty"), b"")
    equal(get("dir/hard2"), b"two names\n")
