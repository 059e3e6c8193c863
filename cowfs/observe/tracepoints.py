"""Tracepoints of this kernel: which there are, what they tell, and a BPF program at one of them.

Each says in its `format` file what its fields are called and where they lie, so what is known here
is names alone. The files are in tracefs, which need not be mounted: then a mount of our own is
made, which nobody else sees.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from typing import NamedTuple

from cowfs.observe import bpf
from cowfs.system import syscalls

_PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_FIELD = re.compile(r"^\tfield:.*?(\w+)(?:\[\w*\])?;\toffset:(\d+);\tsize:(\d+);", re.MULTILINE)

# linux/perf_event.h
_TYPE_TRACEPOINT = 2
_ATTR_SIZE = 64
_FD_CLOEXEC = 8
_ENABLE, _SET_BPF = 0x2400, 0x40042408


class Field(NamedTuple):
    """Where a field lies in what the program is given, and its size in bytes."""

    offset: int
    size: int


class Tracepoint(NamedTuple):
    """One that this kernel has. name: as "xfs/xfs_file_buffered_read"."""

    name: str
    number: int
    fields: dict[str, Field]


class Tracefs:
    """The directory of the tracepoints."""

    def __init__(self) -> None:
        """OSError: there is none, or no permission."""
        for place in _PLACES:
            if os.path.isdir(os.path.join(place, "events")):
                self._fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                return
        self._fd = syscalls.mount_nowhere(b"tracefs")

    def __enter__(self) -> Tracefs:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def find(self, name: str) -> Tracepoint | None:
        """None: this kernel has none of that name, or its module is not there. OSError."""
        try:
            fd = os.open(
                os.path.join("events", name, "format"), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd
            )
        except FileNotFoundError:
            return None
        with open(fd, encoding="ascii", errors="replace") as file:
            text = file.read()
        number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
        if number is None:
            return None
        fields = {
            field: Field(int(offset), int(size)) for field, offset, size in _FIELD.findall(text)
        }
        return Tracepoint(name, int(number[1]), fields)


def attach(program: int, tracepoint: Tracepoint) -> int:
    """Run the program whenever somebody, on any processor, comes by; the descriptor that keeps it.

    perf_event_open(2). OSError.
    """
    attributes = struct.pack(
        "=IIQQQQQIIQ", _TYPE_TRACEPOINT, _ATTR_SIZE, tracepoint.number, 1, 0, 0, 0, 1, 0, 0
    )
    block = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    # The program belongs to the tracepoint, whatever processor the event is for.
    fd: int = bpf.libc.syscall(
        ctypes.c_long(bpf.SYS_PERF_EVENT_OPEN),
        block,
        ctypes.c_int(-1),
        ctypes.c_int(0),
        ctypes.c_int(-1),
        ctypes.c_ulong(_FD_CLOEXEC),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "perf_event_open(2)")
    try:
        fcntl.ioctl(fd, _SET_BPF, program)
        fcntl.ioctl(fd, _ENABLE, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
