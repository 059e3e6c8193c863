"""access(2) and faccessat2(2)."""

from __future__ import annotations

import os

from integration.conformance import calls
from integration.conformance.cases import case, equal, fails, outcome, put
from integration.conformance.furniture import furnish_for_users
from integration.conformance.processes import ALICE, BOB, CAROL, STAFF, act_as


@case
def access_errors() -> None:
    fails("ENOENT", calls.faccessat2, "none", os.F_OK, 0)
    fails("ENOENT", calls.faccessat2, "dangling", os.F_OK, 0)
    fails("ELOOP", calls.faccessat2, "loop", os.F_OK, 0)
    fails("ENOTDIR", calls.faccessat2, "file/below", os.F_OK, 0)
    fails("EINVAL", calls.faccessat2, "file", 8, 0)
    fails("EINVAL", calls.faccessat2, "file", os.F_OK, 0x80000)
    calls.faccessat2("dangling", os.F_OK, calls.AT_SYMLINK_NOFOLLOW)


@case
def root_executes_what_somebody_may() -> None:
    fails("EACCES", calls.faccessat2, "file", os.X_OK, 0)
    os.chmod("file", 0o001)
    calls.faccessat2("file", os.X_OK | os.R_OK | os.W_OK, 0)
    os.chmod("dir", 0)
    calls.faccessat2("dir", os.X_OK | os.R_OK | os.W_OK, 0)


def _every_mode() -> None:
    furnish_for_users()
    for mode in range(8):
        for shift, name in ((6, "user"), (3, "group"), (0, "other")):
            path = f"{name}{mode}"
            put(path)
            os.chmod(path, mode << shift)
            os.chown(path, ALICE.uid, STAFF)


@case(prepare=_every_mode)
def access_says_what_the_mode_says() -> list[bool]:
    def act(name: str) -> list[bool]:
        seen = []
        for mode in range(8):
            for asked in range(1, 8):
                got = outcome(calls.faccessat2, f"{name}{mode}", asked, calls.AT_EACCESS)
                equal(got, None if mode & asked == asked else "EACCES")
                seen.append(got is None)
        return seen

    return [
        granted
        for user, name in ((ALICE, "user"), (CAROL, "group"), (BOB, "other"))
        for granted in act_as(user, act, name)
    ]


@case(prepare=furnish_for_users)
def access_asks_for_the_real_user_and_eaccess_for_the_effective_one() -> object:
    def act() -> list[object]:
        os.setgroups([])
        os.setresgid(BOB.gid, ALICE.gid, -1)
        os.setresuid(BOB.uid, ALICE.uid, -1)
        return [
            outcome(calls.faccessat2, "alice.file", os.W_OK, flags)
            for flags in (0, calls.AT_EACCESS)
        ]

    from integration.conformance.processes import apart

    os.chmod("alice.file", 0o600)
    seen = apart(act)
    equal(seen, ["EACCES", None])
    return seen


@case(prepare=furnish_for_users)
def search_permission_of_every_directory_on_the_way() -> None:
    os.mkdir("a")
    os.mkdir("a/b")
    put("a/b/c")
    os.chmod("a/b/c", 0o666)
    act_as(BOB, os.stat, "a/b/c")
    os.chmod("a", 0o766)
    for call, arguments in (
        (os.stat, ()),
        (os.readlink, ()),
        (os.chmod, (0o600,)),
        (os.truncate, (0,)),
        (os.unlink, ()),
        (os.mkdir, ()),
        (os.listxattr, ()),
    ):
        fails("EACCES", act_as, BOB, call, "a/b/c", *arguments)
    os.chmod("a", 0o711)
    act_as(BOB, os.stat, "a/b/c")
    act_as(BOB, os.truncate, "a/b/c", 0)
