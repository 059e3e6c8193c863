"""The man pages, made from the parsers, the table of options and the exit codes that the program
itself uses, so they cannot be wrong about these. `cowfs install` writes them.

    cowfs(1)          the commands
    mount.cowfs(8)    the helpers of mount(8), fstab
    cowfs(5)          options of a mount, names and marks on disk

Macros of man(7) only, so that groff and mandoc print the same.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from cowfs import __version__
from cowfs.commands import mounthelper, umounthelper
from cowfs.commands.helper import Option as Letter
from cowfs.commands.helper import synopsis
from cowfs.commands.table import Command, Option
from cowfs.mount import options
from cowfs.system import ondisk
from cowfs.system.errors import EXIT_CODES

DATE = "2026-11-21"
"""When the words below were last changed."""

_MOUNT_EXIT_CODES = {
    **EXIT_CODES,
    32: "the mount, remount or unmount failed",
}

ENVIRONMENT = {
    "COWFS_DEBUG": "When it is set, an internal error is shown with its traceback.",
    "COWFS_FORKER": "With on, keeper and daemon of a mount are forked of a process that all mounts "
    "share. A number: the same, and how many seconds without a mount that stays (300). Else off.",
    "COWFS_IO_URING": "With off, cowfs import copies without io_uring.",
    "COWFS_RESEND": "With off, a mount does as on Linux before 6.9: its daemon has no successor.",
}

FILES = {
    "/run/cowfs/MAJOR:MINOR.json": "The record of a running mount, named after its device.",
    "/run/cowfs/MAJOR:MINOR.overlay": "The same, where overlayfs serves it.",
    "/run/cowfs/MAJOR:MINOR.log": "What its daemon has to say.",
    "/run/cowfs/forker-ID.sock": "Where mounts ask for a keeper, and .lock: who makes that socket.",
    "/var/lib/cowfs/stores/": "Stores that mounts have named with store=, one file for each.",
}

STORE = {
    "templates/ID/tree/": "The sealed snapshot of a source; never written again.",
    "templates/ID/manifest.json": "Its source, counts, and groups of hard links.",
    "copies/NAME/upper/": "What changed in a copy, as overlayfs keeps it.",
    "copies/NAME/work/": "What is not finished; emptied at each mount.",
    "copies/NAME/copy.json": "Source, template, and whether the copy is kept.",
    "copies/NAME/lock": "Locked (flock) while the copy is served.",
    "partial/": "Templates and copies in the making.",
    "trash/": "What is being deleted.",
}

MARKS = {
    "character device 0:0": "A whiteout: the name of the template is gone.",
    f"{ondisk.OPAQUE.decode()}=y": "No names of the template show through this directory.",
    f"{ondisk.REDIRECT.decode()}=PATH": "The directory is merged with this one of the template: "
    "it was renamed.",
    ondisk.INO.decode(): "The inode number that users see, of a file that was copied up.",
    ondisk.BTIME.decode(): "When the template's file was made, of what was copied up.",
}


def pages(top: Command) -> dict[str, str]:
    """Every page by its file name, such as "cowfs.1". top: the command `cowfs`."""
    return {
        "cowfs.1": _cowfs_1(top),
        "cowfs.5": _cowfs_5(),
        "mount.cowfs.8": _mount_cowfs_8(),
        "umount.cowfs.8": ".so man8/mount.cowfs.8\n",
    }


def _cowfs_1(top: Command) -> str:
    page = _Page("cowfs", 1)
    page.section("NAME").text("cowfs - instant copy-on-write copies of directories")
    page.section("SYNOPSIS")
    for command in top.below():
        page.call(f"cowfs {command.name}", command.usage)
    page.section("DESCRIPTION")
    for paragraph in top.text:
        page.text(paragraph)
    page.text(
        "A copy is a template, a sealed snapshot of the source made of reflink clones, and an "
        "upper directory that holds what changed. Both are in a store on the volume of the source: "
        "see cowfs(5). The source may change or vanish; the copy stays as it was."
    )
    for option in top.options:
        _option(page, option)
    page.section("COMMANDS")
    for command in top.below():
        page.subsection(f"cowfs {command.name} {command.usage}".rstrip())
        for paragraph in command.text:
            page.text(paragraph)
        for option in command.options:
            _option(page, option)
        if command.ending:
            page.text(command.ending[0])
            for line in command.ending[1:]:
                code, _, meaning = line.strip().partition("  ")
                page.item(code, meaning)
    page.section("EXIT STATUS").table({str(code): text for code, text in EXIT_CODES.items()})
    page.section("ENVIRONMENT").table(ENVIRONMENT)
    page.section("FILES").table(FILES)
    page.section("EXAMPLES")
    page.example(
        "cowfs mount /data/models/llama /mnt/job-42",
        "cowfs list",
        "cowfs umount /mnt/job-42",
        "cowfs mount -o ephemeral,ro /data/models/llama /mnt/job-43",
    )
    page.section("SEE ALSO").text("cowfs(5), mount.cowfs(8), mount(8), cp(1), fuse(4)")
    return page.done()


def _option(page: _Page, option: Option) -> None:
    page.item(" ".join([", ".join(option.flags), option.value]).rstrip(), option.help)


def _cowfs_5() -> str:
    page = _Page("cowfs", 5)
    page.section("NAME").text("cowfs - options of a mount, and names on disk")
    page.section("DESCRIPTION").text(
        "What cowfs mount -o, mount -t cowfs -o and a line of fstab may say, and what is in a "
        "store."
    )
    page.section("OPTIONS").text(
        "Options are separated by commas; a later one overrides an earlier one. Inside a value \\, "
        "is a comma and \\\\ a backslash. In fstab a space is \\040."
    )
    page.table(options.DESCRIPTIONS)
    generic = [name for name in options.GENERIC if name not in options.DESCRIPTIONS]
    page.item(
        ", ".join(generic),
        "As in mount(8). nosuid and nodev are on unless suid or dev is given; "
        "mount(8) and fstab do not hand these two words on, but allow_suid and allow_dev.",
    )
    words = ", ".join([*options.FSTAB_WORDS, "comment=TEXT", "x-NAME", "X-NAME"])
    page.item(
        words,
        "Accepted, since mount(8) and fstab(5) give them a meaning; they say nothing to cowfs.",
    )
    page.item(
        ", ".join(options.KERNEL_WORDS),
        "Accepted: the kernel shows them of every copy, so "
        "that a line of /proc/self/mounts can be put into fstab.",
    )
    page.section("THE STORE").text(
        "The directory .cowfs at the top of the source's volume, or that of the option store=DIR; "
        "root's, with mode 0700."
    )
    page.table(STORE)
    page.section("MARKS").text(
        "The upper directory is an upper layer of overlayfs: a copy that is not mounted can be "
        "read with mount -t overlay. Marks are files or extended attributes, and none of them is "
        "visible in a copy."
    )
    page.table(MARKS)
    page.section("SEE ALSO").text("cowfs(1), mount.cowfs(8), fstab(5), mount(8)")
    return page.done()


def _mount_cowfs_8() -> str:
    page = _Page("mount.cowfs", 8)
    page.section("NAME").text(
        "mount.cowfs, umount.cowfs - mount and unmount copies through mount(8) and fstab"
    )
    page.section("SYNOPSIS")
    page.call("mount -t cowfs", "[-o OPTIONS] SOURCE MOUNTPOINT")
    page.call("umount", "MOUNTPOINT")
    for helper in (mounthelper, umounthelper):
        program, _, rest = synopsis(helper.PROGRAM, helper.OPERANDS, helper.OPTIONS).partition(" ")
        page.call(program, rest)
    page.section("DESCRIPTION").text(
        "mount(8) calls mount.cowfs for filesystems of the types cowfs and fuse.cowfs, and "
        "umount(8) calls umount.cowfs for what is mounted as fuse.cowfs. They do what cowfs mount "
        "and cowfs umount do, see cowfs(1), and need the same privileges: the option user does not "
        "help, because mount(8) gives its own away before."
    )
    page.text(
        "mount.cowfs returns when the mount answers; its daemon runs in a session of its own. "
        "umount.cowfs returns when the copy is put away, so that an ephemeral one is gone. umount "
        "-i and umount(2) have the same effect a moment later."
    )
    page.text(
        "A mountpoint must not be inside its source. Two lines of fstab that would take the same "
        "copy, by copy=NAME, cannot both be mounted."
    )
    for helper in (mounthelper, umounthelper):
        page.subsection(f"Options of {helper.PROGRAM}")
        _letters(page, helper.OPTIONS)
    page.section("REMOUNT").text(
        "mount -o remount,ro makes a copy read-only, for everybody and at once; while a file is "
        "open for writing it fails. remount,rw makes it writable again. Other flags of mount(8), "
        "such as noexec, can be changed too. A copy that was mounted with ro cannot become "
        f"writable, and what cowfs alone knows ({', '.join(options.FIXED)}) cannot be changed: "
        "unmount it, and mount it again."
    )
    page.section("FSTAB")
    page.example(
        "/data/models/llama  /srv/llama     cowfs  copy=srv,nofail            0  0",
        "/data/models/llama  /srv/my\\040copy  cowfs  ro,x-systemd.automount   0  0",
    )
    page.text(
        "The volume of the source has to be mounted before: a line above does that, and with "
        "systemd x-systemd.requires-mounts-for=/data."
    )
    codes = {str(code): text for code, text in _MOUNT_EXIT_CODES.items()}
    page.section("EXIT STATUS").table(codes)
    page.text("16 and 64 come from mount(8) alone: there is no mtab here, and no -a.")
    page.section("SEE ALSO").text("cowfs(1), cowfs(5), mount(8), umount(8), fstab(5)")
    return page.done()


def _letters(page: _Page, letters: Iterable[Letter]) -> None:
    for option in letters:
        page.item(f"-{option.letter} {option.value}".rstrip(), option.help)


class _Page:
    """Lines of roff. Text is written as it is meant; what roff would obey is escaped here."""

    def __init__(self, name: str, section: int) -> None:
        self._lines = [f'.TH {_plain(name.upper())} {section} "{DATE}" "cowfs {__version__}"']

    def section(self, title: str) -> _Page:
        self._lines.append(f'.SH "{_plain(title)}"')
        return self

    def subsection(self, title: str) -> _Page:
        self._lines.append(f'.SS "{_plain(title)}"')
        return self

    def text(self, paragraph: str) -> _Page:
        self._lines += [".PP", *_wrapped(paragraph)]
        return self

    def item(self, term: str, text: str) -> _Page:
        self._lines += [".TP", f'.B "{_plain(term)}"', *_wrapped(text)]
        return self

    def table(self, rows: dict[str, str]) -> _Page:
        for term, text in rows.items():
            self.item(term, text)
        return self

    def call(self, name: str, arguments: str) -> _Page:
        self._lines += [".PP", f'.B "{_plain(name)}"', *_wrapped(arguments)]
        return self

    def example(self, *lines: str) -> _Page:
        self._lines += [".PP", ".nf", *map(_escaped, lines), ".fi"]
        return self

    def done(self) -> str:
        # An empty line, or a paragraph at once after a heading, is nothing that lint likes.
        lines = [line for line in self._lines if line]
        kept = [
            line
            for before, line in zip(["", *lines], lines, strict=False)
            if not (line == ".PP" and before.startswith((".SH", ".SS")))
        ]
        return "\n".join(kept) + "\n"


def _wrapped(text: str) -> list[str]:
    lines = textwrap.wrap(text, 76, break_long_words=False, break_on_hyphens=False)
    return [_escaped(line) for line in lines]


def _plain(text: str) -> str:
    """Inside the quotes of a macro's argument."""
    return _escaped(text).replace('"', "\\(dq")


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"^([.'])", r"\\&\1", text)
