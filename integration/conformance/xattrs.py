"""Extended attributes: xattr(7)."""

from __future__ import annotations

import os

from integration.conformance.cases import case, equal, fails, outcome
from integration.conformance.furniture import furnish_for_users
from integration.conformance.processes import ALICE, BOB, act_as

_PATHS = ("file", "big", "empty", "dir", "hard1")


@case
def attributes_are_set_read_listed_and_removed() -> object:
    seen: list[object] = []
    for path in _PATHS:
        for name in ("user.a", "trusted.b", "security.c", "user.\u20ac"):
            for value in (b"", b"value", bytes(range(256)), b"x" * 4000):
                os.setxattr(path, name, value)
                equal(os.getxattr(path, name), value)
        equal(len(os.listxattr(path)), 4)
        os.removexattr(path, "trusted.b")
        fails("ENODATA", os.getxattr, path, "trusted.b")
        fails("ENODATA", os.removexattr, path, "trusted.b")
        seen.append(sorted(os.listxattr(path)))
    equal(os.getxattr("dir/hard2", "user.a"), b"x" * 4000)
    return seen


@case
def create_and_replace() -> None:
    for path in _PATHS:
        fails("ENODATA", os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
        os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
        fails("EEXIST", os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
        equal(os.getxattr(path, "user.a"), b"1")
        os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
        equal(os.getxattr(path, "user.a"), b"3")
        fails("EINVAL", os.setxattr, path, "user.a", b"4", 4)


@case
def xattr_errors() -> None:
    fails("ENOENT", os.getxattr, "none", "user.a")
    fails("ENOENT", os.setxattr, "dangling", "user.a", b"")
    fails("ELOOP", os.listxattr, "loop")
    fails("ENOTDIR", os.removexattr, "file/below", "user.a")
    fails("ENODATA", os.getxattr, "file", "user.none")
    fails("ENOTSUP", os.getxattr, "file", "nonsense.a")
    fails("ENOTSUP", os.setxattr, "file", "nonsense", b"")
    fails("ERANGE", os.setxattr, "file", "user." + "n" * 251, b"")
    os.setxattr("file", "user." + "n" * 250, b"")
    fails("E2BIG", os.setxattr, "file", "user.a", b"x" * 65537)
    fails("EINVAL|ENOTSUP", os.setxattr, "file", "user.", b"")


@case
def largest_values() -> list[int]:
    for path in ("file", "dir"):
        os.setxattr(path, "user.a", b"x" * 65536)
        equal(os.getxattr(path, "user.a"), b"x" * 65536)
        os.removexattr(path, "user.a")
        for number in range(20):
            os.setxattr(path, f"user.{number}", bytes([number]) * 500)
        for number in range(0, 20, 2):
            os.removexattr(path, f"user.{number}")
    return [len(os.listxattr(path)) for path in ("file", "dir")]


@case
def symlinks_and_special_files_take_trusted_ones_only() -> object:
    seen: list[object] = []
    for path in ("link", "dangling", "dirlink", "fifo", "null"):
        fails("EPERM", os.setxattr, path, "user.a", b"", follow_symlinks=False)
        os.setxattr(path, "trusted.a", b"1", follow_symlinks=False)
        equal(os.getxattr(path, "trusted.a", follow_symlinks=False), b"1")
        seen.append(os.listxattr(path, follow_symlinks=False))
    fails("ENODATA", os.getxattr, "link", "trusted.a")
    os.setxattr("link", "user.through", b"2")
    equal(os.getxattr("file", "user.through"), b"2")
    return seen


@case(prepare=furnish_for_users)
def trusted_attributes_are_for_the_privileged() -> None:
    for path in ("alice.file", "alice.dir"):
        os.setxattr(path, "trusted.a", b"1")
        os.setxattr(path, "user.a", b"1")
        fails("ENODATA", act_as, ALICE, os.getxattr, path, "trusted.a")
        fails("EPERM", act_as, ALICE, os.setxattr, path, "trusted.b", b"")
        fails("EPERM", act_as, ALICE, os.removexattr, path, "trusted.a")
        fails("EPERM", act_as, ALICE, os.setxattr, path, "security.a", b"")
        equal(act_as(ALICE, os.listxattr, path), ["user.a"])
        equal(act_as(BOB, os.listxattr, path), ["user.a"])


@case(prepare=furnish_for_users)
def user_attributes_follow_the_mode() -> object:
    os.setxattr("alice.file", "user.a", b"1")
    os.chmod("alice.file", 0o640)
    fails("EACCES", act_as, BOB, os.getxattr, "alice.file", "user.a")
    fails("EACCES", act_as, BOB, os.setxattr, "alice.file", "user.a", b"2")
    fails("EACCES", act_as, BOB, os.removexattr, "alice.file", "user.a")
    os.chmod("alice.file", 0o444)
    equal(act_as(BOB, os.getxattr, "alice.file", "user.a"), b"1")
    fails("EACCES", act_as, ALICE, os.setxattr, "alice.file", "user.a", b"2")
    os.chmod("alice.file", 0o666)
    act_as(BOB, os.setxattr, "alice.file", "user.a", b"3")
    # In a sticky directory only the owner sets them on it: xattr(7).
    fails("EPERM", act_as, BOB, os.setxattr, "sticky", "user.a", b"")
    os.setxattr("sticky", "user.a", b"")
    return [act_as(BOB, outcome, os.listxattr, "alice.file")]


@case
def descriptors_reach_attributes() -> None:
    for path in ("file", "big", "dir"):
        fd = os.open(path, os.O_RDONLY)
        os.setxattr(fd, "user.a", b"1")
        equal(os.getxattr(path, "user.a"), b"1")
        equal(os.listxattr(fd), ["user.a"])
        if path != "dir":
            os.unlink(path)
            os.setxattr(fd, "user.b", b"2")
            equal(os.getxattr(fd, "user.b"), b"2")
        os.close(fd)
