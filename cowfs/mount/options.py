"""What ``-o`` may say, as one frozen dataclass.

This file knows the words of mount options and what each of them means for a mount. It knows nothing
of paths, stores or the system at hand: the same strings give the same `Options` everywhere, which
is why the daemon, the mount helper and the tests may all call it. Whether a copy may have a certain
name is the store's decision; here a name is only a string that is not missing.

Grammar: items are separated by commas, ``-o`` may be repeated, a later item overrides an earlier
one. Inside an item ``\\,`` is a comma and ``\\\\`` a backslash; any other backslash stands for
itself, because the names that earlier versions made are full of ``\\x2d``.  `join` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

from cowfs.overlay.inplace import CloneMode
from cowfs.system import remedy
from cowfs.system.errors import UsageError
from cowfs.system.syscalls import (
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_RELATIME,
    MS_SILENT,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
)

if TYPE_CHECKING:
    from cowfs.trees.links import Policy

PassthroughMode = Literal["auto", "on", "off"]
Engine = Literal["auto", "fuse", "overlay"]

MIB = 1 << 20

# Seconds: long for any answer, short for whoever waits for one that will not come.
WATCHDOG = 60

DEFAULT_MOUNT_FLAGS = MS_NOSUID | MS_NODEV

_ATIME = MS_NOATIME | MS_RELATIME | MS_STRICTATIME

# option: (bits that it clears, bits that it then sets), as mount(8) describes each of them
GENERIC: dict[str, tuple[int, int]] = {
    "ro": (0, MS_RDONLY),
    "rw": (MS_RDONLY, 0),
    "nosuid": (0, MS_NOSUID),
    "suid": (MS_NOSUID, 0),
    "nodev": (0, MS_NODEV),
    "dev": (MS_NODEV, 0),
    "allow_suid": (MS_NOSUID, 0),
    "allow_dev": (MS_NODEV, 0),
    "noexec": (0, MS_NOEXEC),
    "exec": (MS_NOEXEC, 0),
    "noatime": (_ATIME, MS_NOATIME),
    "atime": (MS_NOATIME, 0),
    "nodiratime": (0, MS_NODIRATIME),
    "diratime": (MS_NODIRATIME, 0),
    "relatime": (_ATIME, MS_RELATIME),
    "norelatime": (MS_RELATIME, 0),
    "strictatime": (_ATIME, MS_STRICTATIME),
    "nostrictatime": (MS_STRICTATIME, 0),
    "lazytime": (0, MS_LAZYTIME),
    "nolazytime": (MS_LAZYTIME, 0),
    "sync": (0, MS_SYNCHRONOUS),
    "async": (MS_SYNCHRONOUS, 0),
    "dirsync": (0, MS_DIRSYNC),
    "nosymfollow": (0, MS_NOSYMFOLLOW),
    "symfollow": (MS_NOSYMFOLLOW, 0),
    "silent": (0, MS_SILENT),
    "loud": (MS_SILENT, 0),
}

# Words of fstab that say when and by whom to mount, not how; mount(8) may hand them on, and adds by
# itself what they imply. "defaults" is fstab's filler for "no options" and must not take away
# nosuid,nodev.
FSTAB_WORDS = (
    *("defaults", "auto", "noauto", "nofail", "_netdev"),
    *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup"),
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "helper=", "uhelper=")

# What the kernel shows of every copy, so that a line of /proc/self/mounts can become one of fstab.
# "seclabel" is what it adds under SELinux.
KERNEL_WORDS = ("default_permissions", "allow_other", "user_id=0", "group_id=0", "seclabel")

_IGNORED = frozenset((*FSTAB_WORDS, *KERNEL_WORDS))

_UNIMPLEMENTED = {
    "remount": "is for mount(8), with ro or rw; for other options unmount the copy and mount it "
    "again",
    "bind": "is not for cowfs: have mount(8) bind the mounted copy",
    "rbind": "is not for cowfs: have mount(8) bind the mounted copy",
}

DESCRIPTIONS: dict[str, str] = {
    "ro": "Read-only. The daemon then keeps every file as it is: such a mount cannot become "
    "writable by a remount.",
    "rw": "Writable (default).",
    "allow_suid": "As suid, which mount(8) and fstab do not hand on: programs in the copy may "
    "change user and group. A remount keeps it.",
    "allow_dev": "As dev, in the same way: device nodes in the copy may be opened.",
    "copy=NAME": "The name under which the copy is kept. Without it: made from the mountpoint, "
    "mnt-job-42 for /mnt/job-42; where another copy has that name already, it ends in a hash.",
    "ephemeral": "Discard the copy, and what was written to it, at unmount.",
    "store=DIR": "Keep templates and copies in DIR, on the volume of the source. Without it: in "
    ".cowfs at the top of that volume.",
    "engine=auto|fuse|overlay": "What serves the copy: cowfs itself (fuse), or the kernel's "
    "overlayfs (overlay). auto, the default, takes fuse where the kernel has FUSE passthrough, or "
    "one of passthrough=on|off, clone=write|open and inplace= is given, which only fuse has; else "
    "overlay, and fuse without passthrough where that cannot be.",
    "clone=auto|write|open": "Clone a shared file when it is first written (write), or when it is "
    "first opened (open): then every descriptor sees every later write, but copies share no pages "
    "in memory. auto, the default, does the second for files that programs change in place while "
    "others read them, such as databases and logs, and the first for all others.",
    "inplace=PATTERN[:PATTERN...]": "With clone=auto: files with such names are changed in place, "
    "too. Shell patterns, such as inplace=*.h5:events-*.",
    "passthrough=auto|on|off": "Let the kernel read the backing files itself where it can (auto, "
    "the default), refuse to mount where it cannot (on), or do without (off).",
    "links=auto|follow|keep": "What becomes of symbolic links that lead out of the source. auto, "
    "the default: in a cache of Hugging Face those to a blob become the files that they lead to, "
    "others stay links. follow: all that lead to regular files of the same volume become these "
    "files, with owner and mode, if each link on the way belongs to root or to the owner of the "
    "file; directories, devices and what leads nowhere stay links. keep: all stay links. What is "
    "written through a link that leads out of the copy changes what it leads to.",
    "share_min=SIZE": "Readers of a shared file of at least SIZE bytes (with k, M, G or T) are "
    "passed through to the template's file; smaller ones are cached for each copy (default 1M).",
    "watchdog=SECONDS": "Replace a daemon that has answered nothing for so long (default 60; 0: "
    "never). What is passed through does not wait for it.",
}
"""What the options that are cowfs's own, and those that mean more than in mount(8), do."""

_VALUES = {form.partition("=")[0]: form for form in DESCRIPTIONS if "=" in form}

FIXED = tuple(form.partition("=")[0] for form in DESCRIPTIONS if form not in GENERIC)
"""The names of those that only cowfs knows: a mount keeps them as long as it lasts."""

CHOICES: dict[str, tuple[str, ...]] = {
    name: tuple(form.partition("=")[2].split("|")) for name, form in _VALUES.items() if "|" in form
}

_SIZE = re.compile(r"([0-9]{1,19})(?:([kmgtKMGT])(?:iB)?)?", re.ASCII)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_MAX_SIZE = (1 << 63) - 1  # st_size is an off_t
_MAX_SECONDS = 86400


@dataclass(frozen=True)
class Options:
    """How a copy is mounted.

    engine: what serves the copy.
    share_min: bytes; a shared file of at least this size is passed through when opened read-only.
    in_place: shell patterns of file names that programs change in place, besides the known ones.
    watchdog: seconds without an answer after which a daemon is replaced; 0: never.
    mount_flags: MS_* bits for mount(2), read_only included as MS_RDONLY.
    given: the items as the user wrote them, for display only.
    """

    read_only: bool = False
    copy: str | None = None
    ephemeral: bool = False
    store: str | None = None
    engine: Engine = "auto"
    clone: CloneMode = "auto"
    in_place: tuple[str, ...] = ()
    passthrough: PassthroughMode = "auto"
    links: Policy = "auto"
    share_min: int = MIB
    watchdog: int = WATCHDOG
    mount_flags: int = DEFAULT_MOUNT_FLAGS
    given: tuple[str, ...] = ()

    @property
    def for_fuse(self) -> str:
        """The option that only FUSE can serve, as it was written; empty when there is none.

        `share_min` and `watchdog` are not among them: they mean nothing to overlayfs, which can do
        without.
        """
        if self.passthrough != "auto":
            return f"passthrough={self.passthrough}"
        if self.clone != "auto":
            return f"clone={self.clone}"
        return "inplace=" + ":".join(self.in_place) if self.in_place else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the way back."""
        values = asdict(self)
        for name in ("given", "in_place"):
            values[name] = list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Options:
        """From what to_dict() gave, in this version or another: what this one does not know is left
        out, what the other did not is as if it were not given. TypeError when it is no mapping."""
        plain = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        for name in ("given", "in_place"):
            plain[name] = tuple(plain.get(name, ()))
        return cls(**plain)


def parse(options: Iterable[str], *, sloppy: bool = False) -> Options:
    """Read the values of every ``-o``, in their order.

    Raises UsageError that names the option, and the known ones when it is unknown; with *sloppy*,
    as mount(8) means it, those that are unknown are passed over.
    """
    flags = DEFAULT_MOUNT_FLAGS
    ephemeral = False
    values: dict[str, str] = {}
    given: list[str] = []
    for item in (item for text in options for item in split(text)):
        if not item:
            continue  # ",," and a trailing comma are as harmless here as they are to mount(8)
        given.append(item)
        name, equals, value = item.partition("=")
        if name in _VALUES:
            values[name] = _checked_value(item, name, value if equals else None)
        elif item in _IGNORED or item.startswith(_IGNORED_PREFIXES):
            continue
        elif name in GENERIC or name == "ephemeral":
            if equals:
                raise UsageError(f"option {item!r}: {name} takes no value: write just {name}")
            if name == "ephemeral":
                ephemeral = True
            else:
                clears, sets = GENERIC[name]
                flags = flags & ~clears | sets
        elif name in _UNIMPLEMENTED:
            raise UsageError(f"option {name!r} {_UNIMPLEMENTED[name]}")
        elif sloppy:
            given.pop()
        else:
            raise UsageError(f"unknown option {item!r}: {_suggestion(name)}")
    parsed = Options(
        read_only=bool(flags & MS_RDONLY),
        copy=values.get("copy"),
        ephemeral=ephemeral,
        store=values.get("store"),
        engine=cast(Engine, values.get("engine", "auto")),
        clone=cast(CloneMode, values.get("clone", "auto")),
        in_place=tuple(values["inplace"].split(":")) if "inplace" in values else (),
        passthrough=cast(PassthroughMode, values.get("passthrough", "auto")),
        links=cast("Policy", values.get("links", "auto")),
        share_min=parse_size("share_min", values["share_min"]) if "share_min" in values else MIB,
        watchdog=parse_seconds("watchdog", values["watchdog"])
        if "watchdog" in values
        else WATCHDOG,
        mount_flags=flags,
        given=tuple(given),
    )
    if parsed.engine == "overlay" and parsed.for_fuse:
        raise UsageError(
            f"option {parsed.for_fuse!r} is for engine=fuse, and overlayfs has no such thing: "
            "leave out one of the two"
        )
    return parsed


def split(text: str) -> list[str]:
    """Split at the commas that no backslash protects, and take those backslashes away."""
    items = [""]
    characters = iter(text)
    for character in characters:
        if character == ",":
            items.append("")
            continue
        if character == "\\":
            following = next(characters, "")
            character = following if following in (",", "\\") else "\\" + following
        items[-1] += character
    return items


def join(items: Iterable[str]) -> str:
    """The items as one value of ``-o``: split() makes the same items of it."""
    return ",".join(item.replace("\\", "\\\\").replace(",", "\\,") for item in items)


def parse_size(option: str, text: str) -> int:
    """Bytes of ``4096``, ``64k``, ``1M``, ``1MiB``, ``2G``: powers of 1024, whole numbers.

    Raises UsageError naming the option.
    """
    match = _SIZE.fullmatch(text)
    if match is not None:
        size = int(match[1]) << _UNITS[(match[2] or "").lower()]
        if size <= _MAX_SIZE:
            return size
    raise UsageError(
        f"option {option}={text}: {text!r} is not a size: write bytes or a whole number with k, "
        f"M, G or T, such as {option}=4096, {option}=64k, {option}=1M"
    )


def parse_seconds(option: str, text: str) -> int:
    """Seconds as a whole number, up to a day.  Raises UsageError naming the option."""
    if text.isascii() and text.isdecimal() and int(text) <= _MAX_SECONDS:
        return int(text)
    raise UsageError(
        f"option {option}={text}: {text!r} is no whole number of seconds up to {_MAX_SECONDS}"
    )


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    forms = {form.partition("=")[0]: form for form in (*DESCRIPTIONS, *GENERIC)}
    close = [forms[match] for match in get_close_matches(name.lower(), forms, n=2)]
    see = f"cowfs(5), or {remedy.command('cowfs mount --help')}"
    return f"did you mean {' or '.join(close)}? See {see}" if close else f"see {see}"


def _checked_value(item: str, name: str, value: str | None) -> str:
    if value is None:
        raise UsageError(f"option {item!r} needs a value: write {_VALUES[name]}")
    if name == "share_min":
        parse_size(name, value)
    elif name == "watchdog":
        parse_seconds(name, value)
    elif name in CHOICES and value not in CHOICES[name]:
        raise UsageError(f"option {item!r}: write {_VALUES[name]}")
    elif name == "inplace" and not all(value.split(":")):
        raise UsageError(f"option {item!r} has an empty pattern: write {_VALUES[name]}")
    elif name == "store" and not value:
        raise UsageError(
            f"option {item!r} is empty: write {_VALUES[name]}, the directory of the store"
        )
    return value
