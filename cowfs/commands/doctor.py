"""`cowfs doctor`: would a mount work here, and how well; each line with what to do where it would
not.

A finding either stops every mount (failed), costs something (degraded), is fine (ok), or could not
be tried by this user (unknown). Whatever can be tried is tried, and nothing is said of what cannot;
versions are told for bug reports. Nothing is left behind, and nothing here needs a
copy or a store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cowfs.mount import preflight, privileges, probes
from cowfs.system import descriptors, mountinfo, syscalls
from cowfs.system.errors import CowfsError, UsageError
from cowfs.system.remedy import command

Status = Literal["ok", "degraded", "failed", "unknown"]

# The oldest that is tested. openat2(2) is of 5.6, the mount id in statx(2) of 5.8.
_OLDEST_KERNEL = (5, 10)
# FALLOC_FL_ZERO_RANGE in FUSE, of which INIT says nothing.
_ZERO_RANGE_KERNEL = (5, 14)
# What the kernel's overlayfs has learned; docs/semantics.md says what a copy does without it.
_OVERLAYFS_LEARNED = (
    ("O_TMPFILE", (6, 10)),
    ("RWF_APPEND", (6, 7)),
    ("ETXTBSY for running programs", (5, 15)),
)

# To raise the number of descriptors above the hard limit.
_CAP_SYS_RESOURCE = 24

# Filesystems that may have FICLONE; whether a volume has it is tried.
_REFLINK_TYPES = frozenset({"xfs", "btrfs", "bcachefs", "ocfs2", "zfs"})

_REFUSED = (errno.EACCES, errno.EPERM)
_REFUSALS = frozenset(map(os.strerror, _REFUSED))
_BECOME_ROOT = "become root to try it"

_REFLINK_REMEDY = (
    "put the data on XFS made with mkfs.xfs -m reflink=1 (the default since xfsprogs 5.1), btrfs "
    "or bcachefs"
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. remedy says what to do, None when there is nothing to do."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


def examine(path: str | None) -> list[Finding]:
    """Look at this machine, and at the volume of a path. UsageError when the path does not exist.

    Without a path the volumes that are mounted are looked at: one that can hold a store is enough.
    """
    directory = None if path is None else _directory(path)
    reflink, volume = _reflink(directory)
    return [
        _kernel(),
        _privileges(volume),
        *_engines(),
        _passthrough(volume or "/dev/shm"),  # noqa: S108 -- only a volume to try it with
        *_fuse_features(),
        _io_uring(),
        _descriptors(),
        reflink,
        *_libraries(),
    ]


def would_mount(findings: list[Finding]) -> bool:
    """Whether nothing was found that stops a mount."""
    return all(finding.status != "failed" for finding in findings)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """{"ok": bool, "checks": [{"name", "status", "detail", "remedy"}]}"""
    return {"ok": would_mount(findings), "checks": [asdict(finding) for finding in findings]}


def as_lines(findings: list[Finding]) -> Iterator[tuple[str, str]]:
    """For people: each line, and what to put in front of its rest where it does not fit."""
    width = max(len(finding.name) for finding in findings)
    before = " " * (width + 12)
    for finding in findings:
        yield f"{finding.name:{width}}  {finding.status:8}  {finding.detail}", before
        if finding.remedy is not None:
            yield f"{before}-> {finding.remedy}", before + "   "


def _directory(path: str) -> str:
    """A directory on the volume of path."""
    real = os.path.realpath(path)
    if not os.path.lexists(real):
        raise UsageError(f"{path} does not exist: name a path on the volume to look at")
    return real if os.path.isdir(real) else os.path.dirname(real)


def _kernel() -> Finding:
    release = os.uname().release
    if _kernel_version() < _OLDEST_KERNEL:
        return Finding("kernel", "failed", f"Linux {release}", "use Linux 5.10 or newer")
    return Finding("kernel", "ok", f"Linux {release}")


def _kernel_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _privileges(volume: str | None) -> Finding:
    """volume: where it is tried; None: there is none that would do."""
    try:
        preflight.require_privilege()
        if volume is None:
            return Finding("privileges", "ok", "may mount; the rest needs a volume to be tried on")
        lacking = _lacking(volume)
    except CowfsError as error:
        return _from_error("privileges", error)
    except OSError as error:
        return Finding("privileges", "failed", f"cannot be tried in {volume}: {error.strerror}")
    if lacking:
        return _from_error("privileges", privileges.refusal(lacking))
    return Finding("privileges", "ok", f"all that either engine needs, tried in {volume}")


def _lacking(directory: str) -> list[str]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return privileges.missing(fd)
    finally:
        os.close(fd)


def _engines() -> Iterator[Finding]:
    """What serves copies: FUSE or overlayfs, of which one is enough."""
    device, overlayfs = _fuse_device(), _overlayfs()
    if device.status == "failed" and overlayfs.status == "ok":
        detail = f"{device.detail}; copies are served by the kernel's overlayfs"
        device = replace(device, status="degraded", detail=detail)
    if device.status == "failed" and overlayfs.status == "degraded":
        overlayfs = replace(overlayfs, status="failed")
    yield device
    yield overlayfs
    if overlayfs.status == "ok":
        yield from _overlayfs_calls()


def _fuse_device() -> Finding:
    if _is_ordinary() and not os.access(preflight.FUSE_DEVICE, os.R_OK | os.W_OK):
        with contextlib.suppress(FileNotFoundError):
            os.stat(preflight.FUSE_DEVICE)
            return Finding("/dev/fuse", "unknown", "not for this user to open", _BECOME_ROOT)
    try:
        preflight.require_fuse_device()
    except CowfsError as error:
        return _from_error("/dev/fuse", error)
    return Finding("/dev/fuse", "ok", "opens")


def _overlayfs() -> Finding:
    try:
        if syscalls.has_filesystem(b"overlay"):
            return Finding("overlayfs", "ok", "the kernel has it, for engine=overlay")
    except OSError as error:
        return Finding("overlayfs", "unknown", f"not tried: {error.strerror}", _BECOME_ROOT)
    return Finding(
        "overlayfs",
        "degraded",
        "this kernel has none; engine=overlay is refused, and auto is always FUSE",
        f"load the module with: {command('modprobe overlay')}",
    )


def _overlayfs_calls() -> Iterator[Finding]:
    """A line about what it has not, where there is any."""
    version = _kernel_version()
    missing = [
        f"{name} ({major}.{minor})"
        for name, (major, minor) in _OVERLAYFS_LEARNED
        if version < (major, minor)
    ]
    if missing:
        yield Finding(
            "overlayfs calls",
            "degraded",
            f"the kernel's overlayfs has no {', '.join(missing)}: such calls fail or differ in a "
            "copy that it serves",
            "use the Linux in brackets, or programs that do without",
        )


def _is_ordinary() -> bool:
    """Whether this is a user who mounts nothing."""
    return not preflight.has_capability(preflight.CAP_SYS_ADMIN)


def _passthrough(directory: str) -> Finding:
    where = f"tried with a file in {directory}"
    try:
        refusal = probes.passthrough(directory)
        remedy = "use Linux 6.9 or newer on the host's root, and a volume that is not stacked"
    except OSError as error:
        if error.errno in _REFUSED:
            detail = f"not tried: {error.strerror}"
            return Finding("passthrough", "unknown", detail, _BECOME_ROOT)
        refusal = f"cannot be tried: {error.strerror}"
        remedy = "see /dev/fuse above"
    if refusal is None:
        return Finding("passthrough", "ok", where)
    return Finding(
        "passthrough",
        "degraded",
        f"{refusal}; copies are served by the kernel's overlayfs, or read through the daemon",
        remedy,
    )


def _fuse_features() -> Iterator[Finding]:
    """What the kernel's FUSE has, beside passthrough; see docs/kernels.md."""
    try:
        offered = probes.fuse()
    except OSError:
        return  # what stops it has its own line
    if offered.resends:
        yield Finding("survival", "ok", "a mount outlives its daemon, and is upgraded while in use")
    else:
        yield Finding(
            "survival",
            "degraded",
            "the kernel does not send requests again: a mount whose daemon dies answers ENOTCONN, "
            "and upgrades leave running mounts alone",
            "use Linux 6.9 or newer, or unmount before an upgrade",
        )
    missing = [
        name
        for name, is_there in (
            ("O_TMPFILE (6.1)", offered.has_tmpfile),
            ("birth times (6.6)", offered.has_birth_times),
            ("FALLOC_FL_ZERO_RANGE (5.14)", _kernel_version() >= _ZERO_RANGE_KERNEL),
            ("setgid cleared by another's ACL (5.13)", offered.says_who_sets_an_acl),
        )
        if not is_there
    ]
    if missing:
        yield Finding(
            "calls",
            "degraded",
            f"the kernel's FUSE has no {', '.join(missing)}: such calls fail or differ in a copy",
            "use the Linux in brackets, or programs that do without",
        )
    else:
        yield Finding("calls", "ok", "the kernel's FUSE has all that a copy can answer")


def _io_uring() -> Finding:
    effect = "imports of large files are slower"
    try:
        refusal = probes.io_uring()
    except Exception as error:  # a module that cannot be loaded has its own line below
        refusal = str(error)
    if refusal is None:
        return Finding("io_uring", "ok", "liburing sets up a ring")
    remedy = "use a kernel with CONFIG_IO_URING, and a container whose seccomp profile allows it"
    try:
        with open("/proc/sys/kernel/io_uring_disabled", encoding="ascii") as file:
            setting = file.read().strip()
        if setting != "0":
            refusal += f" (kernel.io_uring_disabled is {setting})"
            remedy = f"allow it with: {command('sysctl kernel.io_uring_disabled=0')}"
    except FileNotFoundError:
        pass  # before Linux 6.6 there is no such switch
    return Finding("io_uring", "degraded", f"{refusal}; {effect}", remedy)


def _descriptors() -> Finding:
    if _is_ordinary():
        return Finding(
            "descriptors", "unknown", "those of who mounts count, and not this user's", _BECOME_ROOT
        )
    raises = preflight.has_capability(_CAP_SYS_RESOURCE)
    limit = descriptors.highest(raises=raises)
    if limit >= descriptors.FEW:
        return Finding("descriptors", "ok", f"{limit} for each mount")
    remedy = "raise the sysctl fs.nr_open"
    if not raises:
        remedy += ", and ulimit -Hn or LimitNOFILE= of the unit: there is no CAP_SYS_RESOURCE"
    return Finding(
        "descriptors",
        "degraded",
        f"{limit} for each mount: about {limit // 2} files can be open at once",
        remedy,
    )


def _reflink(directory: str | None) -> tuple[Finding, str | None]:
    """The finding, and a directory on a volume that clones, where there is one."""
    if directory is not None:
        mount = mountinfo.holding(directory)
        where = f"{mount.mountpoint} ({mount.fstype})"
        refusal = _refusal_to_clone(directory)
        if refusal is None:
            return Finding("reflink", "ok", f"{where} clones files"), directory
        if refusal in _REFUSALS:
            detail = f"{where}: not tried: {refusal}"
            return Finding("reflink", "unknown", detail, _BECOME_ROOT), None
        remedy = _REFLINK_REMEDY
        if mount.is_cowfs:
            remedy = "name a path on the volume below: a cowfs copy cannot hold a store"
        elif refusal == os.strerror(errno.EROFS):
            change = command("mount -o remount,rw", mount.mountpoint)
            remedy = f"make it writable, the store is kept on it: {change}"
        return Finding("reflink", "failed", f"{where} does not: {refusal}", remedy), None
    tried = [mount.mountpoint for mount in mountinfo.read() if mount.fstype in _REFLINK_TYPES]
    answers = {mountpoint: _refusal_to_clone(mountpoint) for mountpoint in tried}
    if able := [mountpoint for mountpoint, refusal in answers.items() if refusal is None]:
        return Finding("reflink", "ok", f"on {', '.join(able)}"), able[0]
    if closed := [mountpoint for mountpoint, refusal in answers.items() if refusal in _REFUSALS]:
        detail = f"not tried on {', '.join(closed)}: this user may not write there"
        return Finding("reflink", "unknown", detail, _BECOME_ROOT), None
    return Finding("reflink", "failed", "no mounted volume clones files", _REFLINK_REMEDY), None


def _refusal_to_clone(directory: str) -> str | None:
    try:
        probes.reflink(directory)
    except OSError as error:
        return error.strerror
    return None


def _libraries() -> Iterator[Finding]:
    yield Finding("Python", "ok", sys.version.split()[0])
    yield _library("pyfuse3", _pyfuse3)
    yield _library("libfuse", _libfuse)
    yield _library("trio", _trio)
    yield _library("cowfs.channel", _channel)
    yield _library("liburing", _liburing)


def _library(name: str, version: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", version())
    except Exception as error:  # an import that fails, in whatever way, is the answer
        return Finding(
            name,
            "failed",
            f"{type(error).__name__}: {error}",
            "install cowfs again",
        )


def _pyfuse3() -> str:
    import pyfuse3

    return str(pyfuse3.__version__)


def _trio() -> str:
    import trio

    return str(trio.__version__)


def _libfuse() -> str:
    import ctypes

    import pyfuse3  # noqa: F401 -- it brings libfuse in

    library = ctypes.CDLL(_mapped("libfuse3"))
    library.fuse_pkgversion.restype = ctypes.c_char_p
    return str(library.fuse_pkgversion().decode("ascii", "replace"))


def _channel() -> str:
    from cowfs import channel  # noqa: F401 -- it brings the extension module in

    return os.path.basename(_mapped("_channel"))


def _liburing() -> str:
    from cowfs import copying  # noqa: F401 -- it brings liburing in

    name = os.path.basename(_mapped("liburing"))
    return name.partition(".so.")[2] or name


def _mapped(library: str) -> str:
    """The file of a library that this process uses. LookupError when it uses none of that name."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and os.path.basename(fields[5]).startswith(library):
                return fields[5].rstrip("\n")
    raise LookupError(f"{library} is not loaded")


def _from_error(name: str, error: CowfsError) -> Finding:
    detail, _, remedy = str(error).partition(": ")
    return Finding(name, "failed", detail, remedy or None)
