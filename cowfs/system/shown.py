"""What /proc shows of this process: its command line and its environment.

A forked process would show those of the one that it was forked from, and others find processes by
them: ps(1), `store/runtime.py`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence

# linux/prctl.h
_PR_SET_MM = 35
_ARGUMENTS = (8, 9)  # PR_SET_MM_ARG_START, PR_SET_MM_ARG_END
_VARIABLES = (10, 11)  # PR_SET_MM_ENV_START, PR_SET_MM_ENV_END

_libc = ctypes.CDLL(None, use_errno=True)
# The kernel reads it as long as this process lives.
_memory: mmap.mmap | None = None


def show(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Have /proc/self/cmdline and /proc/self/environ say this.

    OSError: not without CAP_SYS_RESOURCE in the first user namespace.
    """
    global _memory
    arguments = _joined(words)
    environment = _joined([f"{name}={value}" for name, value in variables.items()])
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, len(arguments) + len(environment) + 1, flags=flags)
    memory.write(arguments + environment)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    middle = begin + len(arguments)
    _move(_ARGUMENTS, begin, middle)
    _move(_VARIABLES, middle, middle + len(environment))
    _memory = memory


def _joined(words: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def _move(bounds: tuple[int, int], begin: int, end: int) -> None:
    """The kernel wants the beginning below the end at each step."""
    first, last = (bounds[0], begin), (bounds[1], end)
    for steps in ((last, first), (first, last)):
        if all(_set(what, address) for what, address in steps):
            return
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _set(what: int, address: int) -> bool:
    arguments = (what, address, 0, 0)
    return _libc.prctl(_PR_SET_MM, *(ctypes.c_ulong(word) for word in arguments)) == 0
