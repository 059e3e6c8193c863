"""The registry of cases, and the words in which they are written. Knows nothing about cowfs."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, overload

from integration.conformance.furniture import furnish
from integration.conformance.processes import User

Act = Callable[[], object]
F = TypeVar("F", bound=Callable[[], object])
Prepare = Callable[[], None]


class Case(NamedTuple):
    """One thing to do in a directory.

    prepare: fills the directory before, as root; in the source of a copy, or in the mount.
    user: who acts.
    copy: what the case gives in a copy where docs/semantics.md says that it is not as on XFS.
    """

    name: str  # family-function
    act: Act
    prepare: Prepare
    user: User | None
    copy: object


SAME = object()
CASES: list[Case] = []


@overload
def case(act: F, /) -> F: ...
@overload
def case(
    *,
    prepare: Prepare = furnish,
    user: User | None = None,
    copy: object = SAME,
) -> Callable[[F], F]: ...
def case(
    act: Any = None,
    /,
    *,
    prepare: Prepare = furnish,
    user: User | None = None,
    copy: object = SAME,
) -> Any:
    """Decorator: enter a function into the registry, under its own name and that of its module."""

    def enter(act: F) -> F:
        name = f"{act.__module__.rpartition('.')[2]}-{act.__name__}"
        CASES.append(Case(name, act, prepare, user, copy))
        return act

    return enter if act is None else enter(act)


def outcome(call: Callable[..., object], *args: Any, **kwargs: Any) -> object:
    """What a call gives, or the name of its errno."""
    try:
        return call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def fails(name: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Assert that a call fails with the errno of this name; several are parted by "|"."""
    got = outcome(call, *args, **kwargs)
    shown = ", ".join(repr(arg)[:80] for arg in args)
    assert got in name.split("|"), f"{getattr(call, '__name__', call)}({shown}): {got!r}"


def equal(got: object, expected: object) -> None:
    """Assert that both are equal, and show them."""
    assert got == expected, f"{got!r} is not {expected!r}"


def mode_of(path: str | int) -> str:
    """Permission bits of a path (not followed) or descriptor, in octal."""
    st = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return f"{stat.S_IMODE(st.st_mode):04o}"


def owner_of(path: str) -> tuple[int, int]:
    """Owner and group of a path, not followed."""
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def hash_of(path: str) -> str:
    """SHA-256 of the bytes of a file."""
    return hashlib.sha256(get(path)).hexdigest()


def exists(path: str) -> bool:
    """Whether there is such a name, of a dangling symlink too."""
    return os.path.lexists(path)


def put(path: str, data: bytes = b"", mode: int = 0o644) -> None:
    """Make or overwrite a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def get(path: str) -> bytes:
    """All bytes of a file."""
    with open(path, "rb") as file:
        return file.read()
