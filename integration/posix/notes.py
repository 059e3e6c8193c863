"""What a case notes down, and the caller as whom it acts."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OWNER, OTHER = 1000, 1001  # users; the group of each has the same number
TEAM = 2000  # a supplementary group of OWNER


class Notes:
    """The calls of one case in their order, and what came of each."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    def call(self, what: str, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do a call; note its value or the name of its errno, and return the same."""
        try:
            value = action(*args, **kwargs)
        except OSError as error:
            value = errno.errorcode.get(error.errno or 0, str(error.errno))
        if isinstance(value, os.stat_result):
            value = shown(value)
        self.lines.append((what, value))
        return value

    def expect(self, wanted: Any, what: str, action: Callable[..., Any], *args: Any) -> None:
        """The same for a call whose outcome is fixed: a value, or the name of an errno."""
        value = self.call(what, action, *args)
        assert value == wanted, f"{what}: {value!r}, not {wanted!r}"

    def note(self, what: str, value: Any) -> None:
        self.lines.append((what, value))


def shown(st: os.stat_result) -> tuple[int | str, ...]:
    """What of an inode does not depend on where it is."""
    size = -1 if stat.S_ISDIR(st.st_mode) else st.st_size
    return oct(st.st_mode), st.st_nlink, st.st_uid, st.st_gid, size, st.st_rdev


def opened(path: Path | str, flags: int, mode: int = 0o666) -> str:
    """Open and close again."""
    os.close(os.open(path, flags, mode))
    return "opened"


@contextmanager
def acting_as(uid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Be this user, in its own group and these, for the calls in the block."""
    own = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(own)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
