"""Random file operations, said once: what may be done, as plain data. Knows nothing about cowfs.

A `Plan` draws operations: calls with names relative to a root and descriptors by slot. A `Hand`
(hand.py) does them.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

KIB = 1 << 10
LARGE = 64 * KIB  # the share_min that the tests mount with
SLOTS = 8
USER = 1000
NOW = -1  # instead of nanoseconds: utimensat(2)

# Every time that is set is before this one, every time that a change leaves is after it.
LONG_AGO_NS = 1_500_000_000_000_000_000


class Data(NamedTuple):
    """Bytes that can be printed: one word again and again."""

    word: int
    size: int

    def __bytes__(self) -> bytes:  # the size is in words of 8
        return self.word.to_bytes(8, "little") * self.size


class Operation(NamedTuple):
    name: str
    args: tuple[Any, ...]
    as_user: bool

    def __repr__(self) -> str:
        return f"{self.name}{self.args!r}{' as user' if self.as_user else ''}"


def make_source(path: Path) -> Path:
    """Few names, so that operations meet; everything that a template may have; times long ago.

    No symlink says "..": wherever it is moved to, it stays below the root.
    """
    path.mkdir()
    for name in ("a", "a/b", "a/b/c", "d", "d/e", "void"):
        (path / name).mkdir()
    block = bytes(range(256)) * 4
    for name, size in (
        ("small", 10), ("a/small", 5000), ("a/b/small", 0), ("d/small", 3 * KIB),
        ("large", 3 * LARGE), ("a/large", LARGE), ("a/b/c/large", 2 * LARGE + 17),
        ("d/e/large", 5 * LARGE), ("group", 100), ("biggroup", 2 * LARGE),
    ):  # fmt: skip
        (path / name).write_bytes((name.encode() + block * (size // 1024 + 1))[:size])
    for name in ("a/group", "d/e/group"):
        os.link(path / "group", path / name)
    for name in ("d/biggroup", "a/b/c/biggroup"):
        os.link(path / "biggroup", path / name)
    with (path / "holes").open("wb") as file:
        file.truncate(8 * LARGE)
        file.seek(4 * LARGE)
        file.write(b"island" * 1000)
    (path / "link").symlink_to("a/small")
    (path / "a/link").symlink_to("b/small")
    os.link(path / "link", path / "d/link", follow_symlinks=False)
    os.mkfifo(path / "fifo")
    os.setxattr(path / "small", "user.origin", b"hub")
    os.setxattr(path / "d", "user.origin", b"hub")
    (path / "d").chmod(0o777)
    os.chown(path / "d/small", USER, USER)
    for directory, names, files in os.walk(path, topdown=False):
        for name in (*names, *files):
            where = os.path.join(directory, name)
            os.utime(where, ns=(LONG_AGO_NS // 2, LONG_AGO_NS // 3), follow_symlinks=False)
    os.utime(path, ns=(LONG_AGO_NS // 2, LONG_AGO_NS // 3))
    return path


# --- what to do -----------------------------------------------------------------------------------

_NAMES = ("a", "b", "c", "d", "e", "small", "large", "group", "biggroup", "link", "n1", "n2", "n3")
_TARGETS = ("small", "a/large", "nowhere", "d", "n1")
_SIZES = (0, 1, 10, 4095, 4096, 5000, LARGE - 1, LARGE, 2 * LARGE + 3, 6 * LARGE)
_OPEN_FLAGS = (
    os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR,
    os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDONLY | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_CREAT | os.O_APPEND,
    os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, os.O_PATH | os.O_NOFOLLOW,
)  # fmt: skip
_TMPFILE_FLAGS = (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_EXCL)
_MODES = (0o600, 0o644, 0o640, 0o755, 0o777, 0o000, 0o444, 0o1777)
_PRIVILEGED = (*_MODES, 0o4755, 0o2755, 0o6711, 0o2775)

# How often an operation comes, and how its arguments are drawn.
_DRAWN: dict[str, tuple[int, Callable[[Plan], tuple[Any, ...]]]] = {
    "open": (14, lambda p: (p.any_slot(), p.either(), p.pick(_OPEN_FLAGS), p.pick(_MODES))),
    "tmpfile": (
        2,
        lambda p: (p.any_slot(), p.path(directory=True), p.pick(_TMPFILE_FLAGS), p.pick(_MODES)),
    ),
    "close": (4, lambda p: (p.slot(),)),
    "pread": (6, lambda p: (p.slot(), p.size(), p.size())),
    "pwrite": (8, lambda p: (p.slot(), p.data(), p.size())),
    "read": (2, lambda p: (p.slot(), p.size())),
    "write": (4, lambda p: (p.slot(), p.data())),
    "direct_read": (2, lambda p: (p.slot(), p.blocks(), p.blocks())),
    "direct_write": (2, lambda p: (p.slot(), p.word(), p.blocks(), p.blocks())),
    "lseek": (3, lambda p: (p.slot(), p.size(), p.pick((0, 1, 2, os.SEEK_DATA, os.SEEK_HOLE)))),
    "ftruncate": (3, lambda p: (p.slot(), p.size())),
    "fsync": (2, lambda p: (p.slot(), p.pick((True, False)))),
    "fallocate": (3, lambda p: (p.slot(), p.pick((0, 1, 3, 16, 17)), p.size(), p.size())),
    "fstat": (4, lambda p: (p.slot(),)),
    "fchmod": (2, lambda p: (p.slot(), p.pick(_PRIVILEGED))),
    "fchown": (2, lambda p: (p.slot(), *p.owner())),
    "futimens": (2, lambda p: (p.slot(), *p.times())),
    "fxattr": (2, lambda p: (p.slot(), p.key(), p.value())),
    "link_fd": (2, lambda p: (p.slot(), p.new())),
    "copy_range": (4, lambda p: (p.slot(), p.slot(), p.size(), p.size(), p.size())),
    "flock": (2, lambda p: (p.slot(), p.pick((1, 2, 8)))),
    "range_lock": (2, lambda p: (p.slot(), p.pick((0, 1, 2)), p.size(), p.size())),
    "map": (4, lambda p: (p.slot(), p.pick((True, False)))),
    "map_read": (3, lambda p: (p.slot(), p.size(), 100)),
    "map_store": (4, lambda p: (p.slot(), p.size(), p.data(), p.pick((True, False)))),
    "unmap": (1, lambda p: (p.slot(),)),
    "list_fd": (2, lambda p: (p.slot(),)),
    "list_begin": (3, lambda p: (p.any_slot(), p.path(directory=True), p.count())),
    "list_back": (2, lambda p: (p.any_slot(), p.count())),
    "list_rest": (3, lambda p: (p.any_slot(),)),
    "truncate": (4, lambda p: (p.path(), p.size())),
    "overwrite": (6, lambda p: (p.either(), p.data())),
    "append": (4, lambda p: (p.path(), p.data())),
    "read_all": (4, lambda p: (p.path(),)),
    "rename": (14, lambda p: (p.path(), p.either(), p.pick((0, 0, 0, 1, 2, 2)))),
    "link": (4, lambda p: (p.path(), p.new())),
    "symlink": (2, lambda p: (p.pick(_TARGETS), p.new())),
    "unlink": (6, lambda p: (p.path(),)),
    "rmdir": (4, lambda p: (p.path(directory=True),)),
    "rmtree": (1, lambda p: (p.path(directory=True),)),
    "mkdir": (6, lambda p: (p.new(), p.pick((*_MODES[:-1], 0o2775)))),
    "mkfifo": (1, lambda p: (p.new(), p.pick(_MODES))),
    "mknod": (1, lambda p: (p.new(), p.pick(_MODES), p.pick((stat.S_IFREG, stat.S_IFCHR)))),
    "chmod": (4, lambda p: (p.path(), p.pick(_PRIVILEGED))),
    "chown": (3, lambda p: (p.path(), *p.owner())),
    "utimens": (4, lambda p: (p.path(), *p.times())),
    "set_xattr": (4, lambda p: (p.path(), p.key(), p.value(), p.pick((0, 0, 1, 2)))),
    "remove_xattr": (2, lambda p: (p.path(), p.key())),
    "list_xattrs": (2, lambda p: (p.path(),)),
    "set_acl": (3, lambda p: (p.path(), p.pick((True, False)), p.acl())),
    "remove_acl": (1, lambda p: (p.path(), p.pick((True, False)))),
    "list": (3, lambda p: (p.path(directory=True),)),
    "stat": (6, lambda p: (p.either(),)),
    "readlink": (1, lambda p: (p.path(),)),
}
WEIGHTS = {name: weight for name, (weight, _draw) in _DRAWN.items()}

# rmtree stops at the first error, and which one that is the order of names decides. The others
# write by a descriptor that is passed through: docs/semantics.md about setuid and setgid.
_NEVER_AS_USER = {"rmtree", "write", "pwrite", "direct_write", "append"}


class Plan:
    """Draws operations on what is there below `root`, and on names that are not.

    *slots*: those that have a descriptor; as a rule an operation gets one of them.
    """

    def __init__(
        self, source: random.Random, root: Path, slots: Callable[[], Sequence[int]]
    ) -> None:
        self._random = source
        self._root = root
        self._slots = slots

    def draw(self, name: str | None = None) -> Operation:
        """An operation, or one of this name."""
        if name is None:
            [name] = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        arguments = _DRAWN[name][1](self)
        as_user = self.chance(0.06) and name not in _NEVER_AS_USER
        return Operation(name, arguments, as_user)

    def pick(self, choices: Sequence[T]) -> T:
        return self._random.choice(choices)

    def chance(self, probability: float) -> bool:
        return self._random.random() > 1 - probability

    def path(self, *, directory: bool = False) -> str:
        """A name that is there, as a rule: a walk down from the root with a random end."""
        at = "."
        for _depth in range(6):
            try:
                with os.scandir(self._root / at) as found:
                    entries = sorted(
                        (e.name, e.is_dir(follow_symlinks=False))
                        for e in found
                        if not e.name.startswith("mine")
                    )
            except OSError:
                break
            if directory:
                entries = [e for e in entries if e[1]]
            if not entries:
                break
            name, is_directory = self.pick(entries)
            at = os.path.normpath(os.path.join(at, name))
            if not is_directory or self.chance(0.4):
                break
        return at

    def new(self) -> str:
        return os.path.normpath(os.path.join(self.path(directory=True), self.pick(_NAMES)))

    def either(self) -> str:
        return self.new() if self.chance(0.4) else self.path()

    def any_slot(self) -> int:
        return self._random.randrange(SLOTS)

    def slot(self) -> int:
        taken = self._slots()
        return self.any_slot() if not taken or self.chance(0.1) else self.pick(sorted(taken))

    def size(self) -> int:
        if self.chance(0.6):
            return self.pick(_SIZES)
        return self._random.randrange(4 * LARGE)

    def count(self) -> int:
        return self._random.randrange(6)

    def blocks(self) -> int:
        """A number of pages."""
        return self._random.randrange(20)

    def word(self) -> int:
        return self._random.getrandbits(64)

    def data(self) -> Data:
        return Data(self.word(), min(self.size(), 2 * LARGE) // 8 + 1)

    def owner(self) -> tuple[int, int]:
        return self.pick((-1, 0, USER, 77)), self.pick((-1, 0, USER, 88))

    def times(self) -> tuple[int | None, int | None]:
        """Nanoseconds, None for a time that stays as it is, or `NOW`."""

        def one() -> int | None:
            if self.chance(0.3):
                return self.pick((None, NOW))
            return self._random.randrange(LONG_AGO_NS)

        return one(), one()

    def key(self) -> str:
        return self.pick(("user.origin", "user.a", "trusted.b"))

    def value(self) -> bytes:
        return self._random.randbytes(1) * self.pick((0, 1, 10, 30, 3000))

    def acl(self) -> tuple[int, ...]:
        """Permissions of owner, a user, group, mask and others; or without the user and mask."""
        return tuple(self._random.randrange(8) for _ in range(self.pick((3, 5))))
