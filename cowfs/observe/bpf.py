"""BPF: an assembler for programs of a few dozen instructions, and what bpf(2) does with them.

A program is put together when it is needed, with the offsets that this kernel's tracepoints say. So
one installation serves every kernel: there is no compiler on the node and no object that was made
for another one. libbpf would do the same for larger programs; it would be one more library to find,
and an object to build, for what is here in a page. The instructions are those of
Documentation/bpf/standardization/instruction-set.rst; loops, functions and types are not needed.

Maps and programs live as long as somebody has a descriptor of them: a process that is killed leaves
nothing behind. All of it takes CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN; before Linux 5.11 maps
count against RLIMIT_MEMLOCK.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

# linux/bpf.h
_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD = range(6)
HASH, LRU_HASH, ARRAY = 1, 9, 2
_TRACEPOINT = 5
_LOG = 1 << 16

# Functions that a program may call.
LOOKUP_ELEM, UPDATE_ELEM, GET_PID_TGID, GET_COMM = 1, 2, 14, 16
ANY, NOEXIST = 0, 1

# Bits of instructions: load and store by size, and what is done with two registers.
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_ALU = {"add": 0x07, "sub": 0x17, "rsh": 0x77, "mov": 0xB7}
_JUMPS = {"eq": 0x15, "ne": 0x55, "gt": 0x25, "ge": 0x35, "lt": 0xA5, "le": 0xB5, "set": 0x45}
_FROM_REGISTER = 0x08

STACK = 10  # the register that points behind the program's 512 bytes

# By architecture, (bpf, perf_event_open); the second line is that of most.
_NUMBERS = {"x86_64": (321, 298), "ppc64le": (361, 319)}
_GENERIC = (280, 241)

SYS_BPF, SYS_PERF_EVENT_OPEN = _NUMBERS.get(platform.machine(), _GENERIC)

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Assembler:
    """Instructions of one program, one after the other; registers are numbers.

    R0 is what a function returns, R1 to R5 its arguments, which it destroys; R6 to R9 stay, and
    R10 is STACK. Where a jump leads is a label.
    """

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load(self, to: int, base: int, offset: int, size: int) -> None:
        """to = *(base + offset), of that many bytes."""
        self._add(0x61 | _SIZES[size], to, base, offset)

    def store(self, base: int, offset: int, value: int, size: int = 8) -> None:
        """*(base + offset) = a register."""
        self._add(0x63 | _SIZES[size], base, value, offset)

    def store_number(self, base: int, offset: int, value: int, size: int = 8) -> None:
        self._add(0x62 | _SIZES[size], base, 0, offset, value)

    def add_to_memory(self, base: int, offset: int, value: int) -> None:
        """*(base + offset) += a register, 8 bytes in one step, whoever else does so."""
        self._add(0xDB, base, value, offset)

    def do(self, what: str, to: int, other: int) -> None:
        """to = to WHAT a register: add, sub, rsh, mov."""
        self._add(_ALU[what] | _FROM_REGISTER, to, other)

    def do_number(self, what: str, to: int, number: int) -> None:
        self._add(_ALU[what], to, 0, 0, number)

    def jump(self, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._add(0x05)

    def jump_if(self, one: int, what: str, other: int, label: str) -> None:
        """To the label, if ONE WHAT OTHER, both registers without a sign."""
        self._jumps.append((len(self._code), label))
        self._add(_JUMPS[what] | _FROM_REGISTER, one, other)

    def jump_if_number(self, one: int, what: str, number: int, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._add(_JUMPS[what], one, 0, 0, number)

    def map(self, to: int, fd: int) -> None:
        """to = a map."""
        self._add(0x18, to, 1, 0, fd)
        self._add(0)

    def call(self, function: int) -> None:
        self._add(0x85, 0, 0, 0, function)

    def leave(self) -> None:
        """Return R0."""
        self._add(0x95)

    def assembled(self) -> bytes:
        code = list(self._code)
        for at, label in self._jumps:
            what, to, other, _, number = code[at]
            code[at] = what, to, other, self._labels[label] - at - 1, number
        little = sys.byteorder == "little"
        return b"".join(
            struct.pack(
                "=BBhi", what, other << 4 | to if little else to << 4 | other, offset, number
            )
            for what, to, other, offset, number in code
        )

    def _add(
        self, what: int, to: int = 0, other: int = 0, offset: int = 0, number: int = 0
    ) -> None:
        self._code.append((what, to, other, offset, number))


class Map:
    """A map of keys and values of fixed sizes."""

    def __init__(self, kind: int, key_size: int, value_size: int, entries: int, name: str) -> None:
        """OSError: EPERM, or ENOSYS for a kernel without BPF."""
        self.key_size, self.value_size = key_size, value_size
        attributes = struct.pack(
            "=IIIIIII16s", kind, key_size, value_size, entries, 0, 0, 0, name.encode()
        )
        self.fd = _bpf(_MAP_CREATE, attributes)

    def close(self) -> None:
        os.close(self.fd)

    def get(self, key: bytes) -> bytes | None:
        """What is there, or None. OSError."""
        value = ctypes.create_string_buffer(self.value_size)
        with suppress(FileNotFoundError):
            self._element(_LOOKUP, key, value)
            return value.raw
        return None

    def set(self, key: bytes, value: bytes) -> None:
        """OSError."""
        self._element(_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def delete(self, key: bytes) -> None:
        """No error when it is gone. OSError."""
        with suppress(FileNotFoundError):
            self._element(_DELETE, key, None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All there is, of which others change some meanwhile. OSError."""
        keys = []
        before: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        with suppress(FileNotFoundError):  # the end
            while True:
                self._element(_NEXT_KEY, before, following)
                before = following.raw
                keys.append(before)
        for key in keys:
            value = self.get(key)
            if value is not None:
                yield key, value

    def _element(
        self, command: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None
    ) -> None:
        own = None if key is None else ctypes.create_string_buffer(key, self.key_size)
        attributes = struct.pack(
            "=IIQQQ",
            self.fd,
            0,
            0 if own is None else ctypes.addressof(own),
            0 if value is None else ctypes.addressof(value),
            0,
        )
        _bpf(command, attributes)


def load(program: bytes, name: str) -> int:
    """A descriptor of a program for tracepoints.

    OSError; ValueError: the verifier refuses it, with its last words.
    """
    try:
        return _load(program, name, None)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise
    log = ctypes.create_string_buffer(_LOG)
    try:
        return _load(program, name, log)
    except OSError as error:
        words = log.value.decode("utf-8", "replace").strip().splitlines()
        if words:
            raise ValueError(f"{error.strerror}: {' | '.join(words[-4:])}") from None
        raise


def _load(program: bytes, name: str, log: ctypes.Array[ctypes.c_char] | None) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"MIT")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        _TRACEPOINT,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_),
        0 if log is None else 1,
        0 if log is None else _LOG,
        0 if log is None else ctypes.addressof(log),
        0,
        0,
        name.encode(),
    )
    return _bpf(_PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    block = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = libc.syscall(
        ctypes.c_long(SYS_BPF), ctypes.c_int(command), block, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "bpf(2)")
    return result
