"""Names of copies: which are allowed, and which ones a mountpoint may get by default.

Pure functions of strings; nothing here looks at a disk. Which of them is a mountpoint's, naming.py
finds out.
"""

from __future__ import annotations

import hashlib
import os
import re

from cowfs.system.errors import UsageError

NAME_MAX = 255  # bytes, of a directory entry

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")
_HASH_DIGITS = 16
_SHORT_DIGITS = 6


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


def default_names(mountpoint: str) -> list[str]:
    """What the copy of this canonical path may be called when no name was given, best first.

    The first is what a person can type: the letters, digits, dots and underscores of the path, with
    a hyphen for all else. Other paths may have it, too. The others end in a hash of the path.
    """
    words = "".join(char if _is_plain(char) else "-" for char in mountpoint)
    joined = re.sub(r"-[-.]*", "-", words.lstrip("-.")) or "root"
    plain = _cut(joined, NAME_MAX - _HASH_DIGITS - 1).rstrip("-")
    digest = _hash(os.fsencode(mountpoint))
    return [plain, *(f"{plain}-{digest[:digits]}" for digits in (_SHORT_DIGITS, _HASH_DIGITS))]


def former_name(mountpoint: str) -> str:
    """What earlier versions called the copy of this canonical path when no name was given.

    As `systemd-escape --path` makes it (systemd.unit(5), "String escaping for inclusion in unit
    names"). What would be too long for a name is cut, and ends in a hash of the whole.
    """
    parts = [part for part in os.fsencode(mountpoint).split(b"/") if part not in (b"", b".")]
    escaped = "-".join(_escape(part, first=index == 0) for index, part in enumerate(parts)) or "-"
    if len(escaped) <= NAME_MAX:
        return escaped
    digest = _hash(escaped.encode())[:_HASH_DIGITS]
    return f"{escaped[: NAME_MAX - _HASH_DIGITS - 1]}-{digest}"


def _is_plain(char: str) -> bool:
    return char.isalnum() or char in "._"


def _cut(text: str, size: int) -> str:
    return os.fsencode(text)[:size].decode(errors="ignore")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _escape(part: bytes, first: bool) -> str:
    return "".join(
        chr(byte)
        if byte in _PLAIN and not (first and index == 0 and byte == ord("."))
        else f"\\x{byte:02x}"
        for index, byte in enumerate(part)
    )
