"""What makes sense in an upper layer: the rules of docs/on-disk-format.md for one entry.

Pure: facts go in, problems come out. Reading the facts and carrying out repairs is copy.py.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cowfs.system import ondisk

#: A repair: take this mark away, or the entry itself (a whiteout).
Fix = bytes | Literal["remove"] | None

DIRECTORY = stat.S_IFDIR
WHITEOUT = 0

# What the kernel's overlay leaves in an upper layer that was mounted with it, and cowfs ignores.
_HARMLESS_OVERLAY = frozenset(
    b"trusted.overlay." + name
    for name in (b"origin", b"impure", b"nlink", b"upper", b"uuid", b"protattr")
)
_INO_BYTES = 8
_TIME_BYTES = 8


class Entry(NamedTuple):
    """An entry of upper/, and what the template has to do with it.

    kind: S_IFMT of its mode, or WHITEOUT. marks: its internal attributes. below: S_IFMT of the
    template's entry that it covers, None when there is none. target: the same for what the
    redirect leads to. origin: for its kept inode number, S_IFMT of the template's entry that has
    it. whole: nothing is wrong with the template, so what it lacks never was there.
    """

    kind: int
    marks: Mapping[bytes, bytes]
    below: int | None = None
    target: int | None = None
    origin: int | None = None
    whole: bool = True
    is_root: bool = False


@dataclass(frozen=True)
class Problem:
    """One broken rule. See `findings.Finding`.

    unmerges: it is not known what the directory is to be merged with.
    """

    problem: str
    detail: str
    remedy: str
    fix: Fix = None
    harmless: bool = False
    unmerges: bool = False


def redirect_path(value: bytes, parent: bytes | None) -> bytes | None:
    """The path in the template that a redirect means, for a directory whose parent is merged with
    the template's directory *parent*; None when that parent is merged with none.

    As overlayfs takes it: absolute in the lower tree, or the bare name of a sibling. ValueError
    for everything else.
    """
    absolute = value.startswith(b"/")
    components = value[absolute:].split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in components):
        raise ValueError("a component that is empty, '.' or '..'")
    if absolute:
        return value[1:]
    if len(components) > 1:
        raise ValueError("neither absolute nor a bare name")
    if parent is None:
        return None
    return parent + b"/" + value if parent else value


def ino_of(value: bytes) -> int | None:
    """The inode number that a mark keeps; None when it is none."""
    if len(value) != _INO_BYTES:
        return None
    ino = int.from_bytes(value, "little")
    return ino if ino >= ondisk.LEAST_INO else None


def problems(entry: Entry) -> Iterator[Problem]:
    """Every rule that the entry breaks."""
    for name, value in sorted(entry.marks.items()):
        if entry.kind == WHITEOUT:
            yield _senseless(name, "on a whiteout")
        elif name == ondisk.OPAQUE:
            yield from _opaque(entry, value)
        elif name == ondisk.REDIRECT:
            yield from _redirect(entry, value)
        elif name == ondisk.INO:
            yield from _ino(entry, value)
        elif name == ondisk.BTIME:
            if len(value) != _TIME_BYTES:
                yield Problem(
                    "bad-btime",
                    f"has the mark {_shown(name)} with a value that is no time",
                    "removing the mark shows the birth time of the copy's own file",
                    fix=name,
                )
        elif name == ondisk.DATA:
            yield from _data(entry, value)
        elif name not in _HARMLESS_OVERLAY:
            yield Problem(
                "unknown-mark",
                f"has the mark {_shown(name)}, which this cowfs does not know",
                "read the copy with what wrote it (a newer cowfs, or overlayfs with metacopy=on or "
                "xwhiteouts), and write the file anew",
            )
    if entry.kind == WHITEOUT and entry.below is None and entry.whole:
        yield Problem(
            "stray-whiteout",
            "whiteout of a name that the template does not have there",
            "removing it changes nothing that is seen",
            fix="remove",
            harmless=True,
        )


def _opaque(entry: Entry, value: bytes) -> Iterator[Problem]:
    if entry.kind != DIRECTORY:
        yield _senseless(ondisk.OPAQUE, "on what is no directory")
    elif entry.is_root:
        yield _senseless(ondisk.OPAQUE, "on the copy's root")
    elif value == b"x":
        yield Problem(
            "unknown-mark",
            f"has {_shown(ondisk.OPAQUE)}=x: overlayfs keeps whiteouts as attributes in it",
            "mount the copy with overlayfs, and write the directory anew",
            unmerges=True,
        )
    elif value != b"y":
        yield _senseless(ondisk.OPAQUE, f"with the value {value[:16]!r}, which means nothing")


def _redirect(entry: Entry, value: bytes) -> Iterator[Problem]:
    name = ondisk.REDIRECT
    if entry.kind != DIRECTORY:
        yield _senseless(name, "on what is no directory")
        return
    if entry.is_root:
        yield _senseless(name, "on the copy's root")
        return
    if entry.marks.get(ondisk.OPAQUE) == b"y":
        return  # not looked at
    shown = ascii(value[:64])[1:]
    # Without the mark the directory is merged with what the template has under its name.
    reveals = entry.below == DIRECTORY
    try:
        redirect_path(value, b"")
    except ValueError as error:
        detail = f"redirected to {shown}, which has {error}"
        problem = "bad-redirect"
    else:
        if entry.target == DIRECTORY:
            return
        detail = f"redirected to {shown}, which is no directory of the template"
        problem = "lost-redirect"
    if entry.whole and not reveals:
        yield Problem(
            problem,
            detail,
            "removing the mark changes nothing that is seen",
            fix=name,
            unmerges=True,
        )
    else:
        yield Problem(
            problem,
            detail,
            f"find out which directory of the template it was, and set {_shown(name)} to its path, "
            "or remove the attribute: the template's directory of its own name, if "
            "there is one, shows through then",
            unmerges=True,
        )


def _ino(entry: Entry, value: bytes) -> Iterator[Problem]:
    name = ondisk.INO
    if entry.is_root:
        return
    if entry.kind == DIRECTORY:
        yield _senseless(name, "on a directory")
    elif ino_of(value) is None:
        yield Problem(
            "bad-ino",
            f"has the mark {_shown(name)} with a value that is no inode number",
            "removing the mark gives the file its own inode number",
            fix=name,
        )
    elif entry.origin is None:
        if entry.whole:
            yield Problem(
                "lost-ino",
                f"keeps the inode number {ino_of(value)}, which nothing in the template has",
                "removing the mark gives the file its own inode number",
                fix=name,
                harmless=True,
            )
    elif entry.origin != entry.kind:
        yield Problem(
            "bad-ino",
            f"keeps the inode number {ino_of(value)}, which something of another type has",
            "removing the mark gives the file its own inode number",
            fix=name,
        )


def _data(entry: Entry, value: bytes) -> Iterator[Problem]:
    name = ondisk.DATA
    if entry.kind != stat.S_IFREG:
        yield _senseless(name, "on what is no regular file")
    elif len(value) <= _TIME_BYTES or ondisk.INO not in entry.marks:
        yield Problem(
            "bad-data",
            f"has the mark {_shown(name)}, and not what goes with it",
            "removing the mark changes nothing that is seen: the file has the same data itself",
            fix=name,
        )


def _senseless(name: bytes, where: str) -> Problem:
    return Problem(
        "senseless-mark",
        f"has the mark {_shown(name)} {where}",
        "removing the mark changes nothing that is seen",
        fix=name,
    )


def _shown(name: bytes) -> str:
    return ascii(name)[2:-1]
