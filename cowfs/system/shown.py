"""What /proc shows of this process: its command line and its environment.

A forked process would show those of the one that it was forked from, and others find processes by
them: ps(1), `store/runtime.py`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence

# linux/prctl.h: what of a kernel with CONFIG_CHECKPOINT_RESTORE needs no capability.
_PR_SET_MM = 35
_PR_SET_MM_MAP = 14
_PR_SET_MM_MAP_SIZE = 15
_SAME_PROGRAM = (1 << 32) - 1


class _Map(ctypes.Structure):
    """struct prctl_mm_map."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("start_code", "end_code", "start_data", "end_data")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack")),
        *((name, ctypes.c_uint64) for name in ("arg_start", "arg_end", "env_start", "env_end")),
        ("auxv", ctypes.c_uint64),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


# Where proc_pid_stat(5) has what is to stay.
_FIELDS = {
    "start_code": 26,
    "end_code": 27,
    "start_stack": 28,
    "start_data": 45,
    "end_data": 46,
    "start_brk": 47,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_void_p
# The kernel reads it as long as this process lives.
_memory: mmap.mmap | None = None


def can_be_set() -> bool:
    """Whether this kernel lets a process say what is shown of it."""
    size = ctypes.c_uint()
    return _call(_PR_SET_MM_MAP_SIZE, ctypes.byref(size), 0) == 0 and size.value == ctypes.sizeof(
        _Map
    )


def show(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Have /proc/self/cmdline and /proc/self/environ say this. OSError."""
    global _memory
    arguments = _joined(words)
    environment = _joined([f"{name}={value}" for name, value in variables.items()])
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, len(arguments) + len(environment) + 1, flags=flags)
    memory.write(arguments + environment)
    new = _Map(exe_fd=_SAME_PROGRAM)
    with open("/proc/self/stat", "rb") as file:
        stat = file.read().rpartition(b")")[2].split()
    for name, number in _FIELDS.items():
        setattr(new, name, int(stat[number - 3]))
    new.arg_start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    new.arg_end = new.env_start = new.arg_start + len(arguments)
    new.env_end = new.env_start + len(environment)
    new.brk = _libc.sbrk(0)
    if _call(_PR_SET_MM_MAP, ctypes.byref(new), ctypes.sizeof(new)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _memory = memory


def _joined(words: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _call(what: int, argument: object, size: int) -> int:
    return int(
        _libc.prctl(
            _PR_SET_MM, ctypes.c_ulong(what), argument, ctypes.c_ulong(size), ctypes.c_ulong(0)
        )
    )
