"""What serves a copy: cowfs itself through FUSE, or the kernel's overlayfs.

Where FUSE passes files through, reads run at the volume's speed, and the copy has everything that
`docs/semantics.md` promises. Where it does not, overlayfs has that speed and one set of pages, and
the differences to a plain directory are its own. Which of the two a copy has had before makes no
difference: what it keeps on disk is the same.
"""

from __future__ import annotations

import os
import struct

from cowfs import syscalls
from cowfs.options import Options

_DEVICE = "/dev/fuse"
_ROOT_MODE = b"40000"  # S_IFDIR, in octal

# linux/fuse.h: fuse_in_header, and behind it flags and flags2 of fuse_init_in
_READ_BUFFER = 1 << 16
_FLAGS = struct.Struct("<40x12xII")
_INIT_EXT = 1 << 30
_PASSTHROUGH = 1 << 5  # bit 37 of both


def prefers_overlayfs(options: Options) -> bool:
    """Whether the copy is to be served by overlayfs, if that can be. Cheap."""
    if options.engine != "auto":
        return options.engine == "overlay"
    return not options.for_fuse and not has_passthrough()


def has_passthrough() -> bool:
    """Whether the kernel's FUSE offers passthrough; False also where there is no FUSE.

    It is asked as a daemon would ask it, by a filesystem that is mounted nowhere: its first request
    says what the kernel can do.
    """
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            parameters = {
                b"fd": b"%d" % device,
                b"rootmode": _ROOT_MODE,
                b"user_id": b"0",
                b"group_id": b"0",
            }
            filesystem = syscalls.create_filesystem(b"fuse", parameters)
            try:
                return _offers_passthrough(os.read(device, _READ_BUFFER))
            finally:
                os.close(filesystem)
        finally:
            os.close(device)
    except OSError:
        return False


def _offers_passthrough(init: bytes) -> bool:
    if len(init) < _FLAGS.size:
        return False  # before Linux 5.17 there is no second word
    flags, flags2 = _FLAGS.unpack_from(init)
    return bool(flags & _INIT_EXT and flags2 & _PASSTHROUGH)
