"""Names of copies: which are allowed, and which one a mountpoint gets by default.

Pure functions of strings; nothing here looks at a disk.
"""

from __future__ import annotations

import hashlib
import os

from cowfs.system.errors import UsageError

NAME_MAX = 255  # bytes, of a directory entry

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_HASH_DIGITS = 16


def check_name(name: str) -> None:
    """UsageError unless `name` can be the name of a copy: it becomes a directory entry."""
    if not name:
        raise UsageError("the name of a copy is empty: give one, as in -o copy=NAME")
    if "/" in name or "\0" in name or name in (".", ".."):
        raise UsageError(
            f"{name!r} cannot be the name of a copy: it must be neither '.' nor '..' and hold no "
            "slash; choose another with -o copy=NAME"
        )
    length = len(os.fsencode(name))
    if length > NAME_MAX:
        raise UsageError(
            f"the name of the copy, {name[:16]}..., has {length} bytes: choose one with at most "
            f"{NAME_MAX} with -o copy=NAME"
        )


def default_name(mountpoint: str) -> str:
    """The name of the copy that is mounted at this canonical path when none was given.

    As `systemd-escape --path` makes it (systemd.unit(5), "String escaping for inclusion in unit
    names"). What would be too long for a name is cut, and ends in a hash of the whole.
    """
    parts = [part for part in os.fsencode(mountpoint).split(b"/") if part not in (b"", b".")]
    escaped = "-".join(_escape(part, first=index == 0) for index, part in enumerate(parts)) or "-"
    if len(escaped) <= NAME_MAX:
        return escaped
    digest = hashlib.sha256(escaped.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{escaped[: NAME_MAX - _HASH_DIGITS - 1]}-{digest}"


def _escape(part: bytes, first: bool) -> str:
    return "".join(
        chr(byte)
        if byte in _PLAIN and not (first and index == 0 and byte == ord("."))
        else f"\\x{byte:02x}"
        for index, byte in enumerate(part)
    )
