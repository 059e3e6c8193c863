"""mknod(2), and fifos, sockets and devices at work."""

from __future__ import annotations

import os
import socket
import stat

from integration.conformance.cases import case, equal, fails, get, mode_of, outcome, owner_of
from integration.conformance.furniture import furnish_for_users, listening
from integration.conformance.processes import ALICE, BOB, Child, act_as

_KINDS = {
    "regular": (stat.S_IFREG, 0),
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "character": (stat.S_IFCHR, os.makedev(1, 3)),
    "block": (stat.S_IFBLK, os.makedev(7, 200)),
    "large": (stat.S_IFCHR, os.makedev(511, (1 << 18) - 1)),
    "without type": (0, 0),
}


@case
def mknod_makes_every_kind() -> object:
    seen = []
    for umask in (0, 0o022, 0o077):
        os.umask(umask)
        for name, (kind, device) in _KINDS.items():
            path = f"{name}{umask:o}"
            os.mknod(path, kind | 0o766, device)
            st = os.lstat(path)
            equal(stat.S_IFMT(st.st_mode), kind or stat.S_IFREG)
            equal(stat.S_IMODE(st.st_mode), 0o766 & ~umask)
            equal(st.st_rdev, device)
            equal(st.st_nlink, 1)
            seen.append((path, st.st_mode, st.st_rdev))
    return seen


@case
def mknod_errors() -> None:
    for existing in ("file", "dir", "link", "dangling", "loop", "fifo", "null"):
        for kind, device in _KINDS.values():
            fails("EEXIST", os.mknod, existing, kind | 0o600, device)
        fails("EEXIST", os.mkfifo, existing)
    fails("ENOENT", os.mkfifo, "none/new")
    fails("ENOTDIR", os.mkfifo, "file/new")
    fails("EPERM|EINVAL", os.mknod, "new", stat.S_IFDIR | 0o700)
    fails("EINVAL", os.mknod, "new", stat.S_IFLNK | 0o700)
    fails("ENOENT|EISDIR", os.mkfifo, "new/")


@case(copy=["EPERM", False])  # it would be a whiteout
def device_zero() -> object:
    done = outcome(os.mknod, "zero", stat.S_IFCHR | 0o600, 0)
    seen = os.path.exists("zero")
    if seen:
        os.unlink("zero")
    return [done, seen]


@case
def block_device_zero_is_no_whiteout() -> None:
    os.mknod("zero", stat.S_IFBLK | 0o600, 0)
    equal(os.stat("zero").st_rdev, 0)


@case(prepare=furnish_for_users)
def users_make_fifos_and_sockets_but_no_devices() -> None:
    for kind, device in ((stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(7, 0))):
        fails("EPERM", act_as, ALICE, os.mknod, "alice.dir/device", kind | 0o600, device)
    act_as(ALICE, os.mkfifo, "alice.dir/fifo", 0o640)
    act_as(ALICE, os.mknod, "alice.dir/socket", stat.S_IFSOCK | 0o600)
    equal(owner_of("alice.dir/fifo"), (ALICE.uid, ALICE.gid))
    equal(mode_of("alice.dir/fifo"), "0640")
    fails("EACCES", act_as, BOB, os.mkfifo, "alice.dir/new")


@case
def fifo_carries_bytes_between_processes() -> list[bytes]:
    os.mkfifo("new")
    seen = []
    for path in ("fifo", "new"):

        def write(path: str = path) -> None:
            with open(path, "wb") as file:
                file.write(b"through the fifo")

        writer = Child(write)
        with open(path, "rb") as file:
            seen.append(file.read())
        writer.result()
        equal(os.stat(path).st_size, 0)
    equal(seen, [b"through the fifo"] * 2)
    return seen


@case
def every_name_of_a_fifo_is_one_pipe() -> bytes:
    os.link("fifo", "dir/again")
    os.rename("fifo", "renamed")
    first = os.open("renamed", os.O_RDONLY | os.O_NONBLOCK)
    second = os.open("dir/again", os.O_WRONLY)
    os.write(second, b"one pipe")
    os.chmod("renamed", 0o600)  # copies it up, in a copy
    got = os.read(first, 100)
    third = os.open("renamed", os.O_WRONLY | os.O_NONBLOCK)
    os.write(third, b"!")
    equal(os.read(first, 100), b"!")
    for fd in (first, second, third):
        os.close(fd)
    equal(got, b"one pipe")
    return got


@case
def sockets_connect_through_their_name() -> bytes:
    server = listening("socket")
    os.rename("socket", "dir/socket")

    def connect() -> None:
        client = socket.socket(socket.AF_UNIX)
        client.connect("dir/socket")
        client.send(b"through the socket")
        client.close()

    child = Child(connect)
    peer, _address = server.accept()
    got = peer.recv(100)
    peer.close()
    child.result()
    fails("EADDRINUSE", listening, "dir/socket")
    server.close()
    fails("ECONNREFUSED", socket.socket(socket.AF_UNIX).connect, "dir/socket")
    equal(got, b"through the socket")
    return got


@case(prepare=furnish_for_users)
def socket_is_connected_with_write_permission() -> None:
    with listening("socket"):
        os.chmod("socket", 0o755)
        fails("EACCES", act_as, BOB, lambda: socket.socket(socket.AF_UNIX).connect("socket"))
        os.chmod("socket", 0o777)
        act_as(BOB, lambda: socket.socket(socket.AF_UNIX).connect("socket"))


@case
def device_is_the_device() -> object:
    os.mknod("zeros", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with open("null", "r+b", buffering=0) as null, open("zeros", "rb", buffering=0) as zeros:
        return [null.write(b"away"), null.read(10), zeros.read(10)]


@case
def special_files_keep_their_attributes() -> object:
    seen: list[object] = []
    for path in ("fifo", "null"):
        os.chmod(path, 0o640)
        os.chown(path, 3, 4)
        os.utime(path, ns=(5, 6))
        os.setxattr(path, "trusted.a", b"b")
        fails("EPERM", os.setxattr, path, "user.a", b"b")
        st = os.lstat(path)
        seen.append((st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev))
    return [*seen, get("null")]
