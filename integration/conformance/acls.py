"""POSIX access control lists: acl(5), as their extended attributes hold them."""

from __future__ import annotations

import os
import struct

from integration.conformance.cases import case, equal, fails, mode_of, outcome, put
from integration.conformance.furniture import furnish_for_users
from integration.conformance.processes import ALICE, BOB, CAROL, STAFF, User, act_as

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_TAGS = {"u": (1, 2), "g": (4, 8), "m": (16, 0), "o": (32, 0)}


def acl(text: str) -> bytes:
    """The attribute for "u::6,u:1001:7,g::4,m::7,o::0"."""
    made = struct.pack("<I", 2)
    for entry in text.split(","):
        kind, name, bits = entry.split(":")
        plain, named = _TAGS[kind]
        made += struct.pack("<HHI", named if name else plain, int(bits), int(name or 0xFFFFFFFF))
    return made


def _read(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


@case(prepare=furnish_for_users)
def named_users_and_groups_are_let_in_as_far_as_the_mask_goes() -> object:
    for path in ("closed", "alice.big"):
        text = f"u::6,u:{BOB.uid}:6,g::0,g:{STAFF}:4,m::6,o::0"
        os.setxattr(path, ACCESS, acl(text))
        equal(mode_of(path), "0660")
        act_as(BOB, _write, path)
        act_as(CAROL, _read, path)
        fails("EACCES", act_as, CAROL, _write, path)
        os.chmod(path, 0o640)  # with an access ACL the group bits are its mask
        act_as(BOB, _read, path)
        fails("EACCES", act_as, BOB, _write, path)
        equal(os.getxattr(path, ACCESS), acl(text.replace("m::6", "m::4")))
        os.chmod(path, 0o600)
        fails("EACCES", act_as, BOB, _read, path)
    return [os.getxattr(path, ACCESS) for path in ("closed", "alice.big")]


@case
def list_that_says_no_more_than_the_mode_is_kept_as_the_mode() -> object:
    os.setxattr("file", ACCESS, acl("u::7,g::5,o::1"))
    equal(mode_of("file"), "0751")
    fails("ENODATA", os.getxattr, "file", ACCESS)
    os.setxattr("file", ACCESS, acl("u::7,u:5:7,g::5,m::7,o::1"))
    os.removexattr("file", ACCESS)
    return [mode_of("file"), os.listxattr("file")]


@case
def acl_errors() -> None:
    fails("EINVAL|ENOTSUP", os.setxattr, "file", ACCESS, b"nonsense")
    fails("EINVAL", os.setxattr, "file", ACCESS, acl("u::7,g::5"))
    fails("EINVAL", os.setxattr, "file", ACCESS, acl("u::7,u:5:7,g::5,o::1"))
    fails("EACCES", os.setxattr, "file", DEFAULT, acl("u::7,g::5,o::1"))
    fails("ENODATA", os.getxattr, "dir", DEFAULT)
    fails("ENOTSUP", os.setxattr, "link", ACCESS, acl("u::7,g::5,o::1"), follow_symlinks=False)


@case(prepare=furnish_for_users)
def default_list_is_handed_down_in_place_of_the_umask() -> object:
    os.chmod("void", 0o777)
    os.setxattr("void", DEFAULT, acl(f"u::7,u:{BOB.uid}:7,g::5,m::7,o::0"))

    def act() -> None:
        os.umask(0o077)
        put("void/file", b"x", 0o666)
        os.close(os.open("void/exec", os.O_CREAT | os.O_WRONLY, 0o751))
        os.mkdir("void/dir", 0o770)
        os.mkfifo("void/fifo", 0o640)
        put("void/dir/deeper", b"x", 0o644)

    act_as(ALICE, act)
    equal(mode_of("void/file"), "0660")
    equal(mode_of("void/dir"), "0770")
    made = [f"void/{name}" for name in ("file", "exec", "dir", "fifo", "dir/deeper")]
    seen = [(mode_of(path), outcome(os.getxattr, path, ACCESS)) for path in made]
    equal(os.getxattr("void/dir", DEFAULT), os.getxattr("void", DEFAULT))
    act_as(BOB, _write, "void/file")
    fails("EACCES", act_as, User(1004, 1004), _read, "void/file")
    return seen


@case(prepare=furnish_for_users)
def only_the_owner_sets_lists() -> None:
    given = acl(f"u::6,u:{BOB.uid}:6,g::4,m::6,o::0")
    fails("EPERM", act_as, BOB, os.setxattr, "alice.file", ACCESS, given)
    act_as(ALICE, os.setxattr, "alice.file", ACCESS, given)
    fails("EPERM", act_as, BOB, os.removexattr, "alice.file", ACCESS)
    equal(act_as(BOB, os.getxattr, "alice.file", ACCESS), given)
    act_as(ALICE, os.setxattr, "alice.dir", DEFAULT, given)


@case(prepare=furnish_for_users)
def list_by_somebody_outside_of_the_group_clears_setgid() -> list[str]:
    os.chown("alice.file", ALICE.uid, STAFF)
    os.chmod("alice.file", 0o2775)
    act_as(ALICE, os.setxattr, "alice.file", ACCESS, acl("u::7,u:5:7,g::7,m::7,o::5"))
    equal(mode_of("alice.file"), "0775")
    return [mode_of("alice.file")]
