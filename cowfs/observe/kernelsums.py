"""Reads, writes and faults of files on some volumes, summed in the kernel by thread and file.

BPF programs at tracepoints of XFS and of the page cache, which come by in the context of whoever
reads: also when FUSE passes the read through, and no daemon has seen it. What is counted:

- a read or write when it starts, with the bytes that are asked for, of a read those in the file.
  XFS says at each read how long the file is on disk. How long it has become since, the programs
  learn from the writes that they see, and from `note_size`;
- a fault in a mapping. It may come by twice: it asks for its page, waits for the disk, and begins
  anew, to find the page in memory. So each row remembers the page that was asked for last. How many
  pages a fault has mapped no tracepoint tells: all of a large folio at once since Linux 6.18.

The volumes are told, not the files: one that was made a moment ago has been counted already. Sums
of what nobody asks for are thrown away by whoever reads them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
from typing import NamedTuple

from cowfs.observe import bpf, tracepoints
from cowfs.observe.bpf import STACK, Assembler
from cowfs.observe.tracepoints import Tracefs, Tracepoint

# Who does what, on how many files, at once.
_ROWS = 1 << 16
_SIZES = 1 << 14

_KEY = struct.Struct("=QIIQ")
_SUMS = struct.Struct("=16s6Q")
_READS, _READ_BYTES, _WRITES, _WRITTEN, _FAULTS, _ASKED = range(16, 64, 8)

# Where they lie on the program's stack.
_KEY_AT, _SUMS_AT, _NUMBER_AT = -24, -88, -96

_READ_AT = tuple(f"xfs/xfs_file_{how}_read" for how in ("buffered", "direct", "dax", "splice"))
_WRITE_AT = tuple(f"xfs/xfs_file_{how}_write" for how in ("buffered", "direct", "dax"))
_MAP_AT = "filemap/mm_filemap_map_pages"
# By kernel; the first line has those that come by for each file, FUSE's as well.
_FAULT_AT = (
    ("filemap/mm_filemap_fault",),
    ("xfs/xfs_read_fault", "xfs/xfs_write_fault"),
    ("xfs/xfs_filemap_fault",),
)


class Who(NamedTuple):
    """A thread and a file. device: as the kernel has it, see `device_of`."""

    device: int
    inode: int
    pid: int
    tid: int


class Sums(NamedTuple):
    """What a thread has done with a file."""

    name: bytes
    reads: int
    read_bytes: int
    writes: int
    written: int
    faults: int


def device_of(st_dev: int) -> int:
    """The kernel's own number of a device."""
    return os.major(st_dev) << 20 | os.minor(st_dev)


class KernelSums:
    """The programs, from now until `close`, or the end of this process, however it ends."""

    def __init__(self) -> None:
        """OSError; ValueError: the kernel refuses a program. `missing`: what it cannot count."""
        self.missing: list[str] = []
        self._resources = contextlib.ExitStack()
        with contextlib.suppress(OSError, ValueError):  # before Linux 5.11 maps count against it
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        try:
            self._devices = self._map(bpf.HASH, 4, 4, 1024, "cowfs_devices")
            self._sums = self._map(bpf.HASH, _KEY.size, _SUMS.size, _ROWS, "cowfs_sums")
            self._ends = self._map(bpf.LRU_HASH, 16, 8, _SIZES, "cowfs_ends")
            self._lost = self._map(bpf.ARRAY, 4, 8, 1, "cowfs_lost")
            with Tracefs() as tracefs:
                self._attach_all(tracefs)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._resources.close()

    def watch(self, devices: set[int]) -> None:
        """Count what is done with files on these from now on, and on no others. OSError."""
        known = {struct.unpack("=I", key)[0] for key, _ in self._devices.items()}
        for device in devices - known:
            self._devices.set(struct.pack("=I", device), bytes(4))
        for device in known - devices:
            self._devices.delete(struct.pack("=I", device))

    def note_size(self, device: int, inode: int, size: int) -> None:
        """A file is so long, which may not be on disk yet. OSError."""
        self._ends.set(struct.pack("=QII", inode, device, 0), struct.pack("=Q", size))

    def read(self) -> dict[Who, Sums]:
        """All sums since the beginning, or since they were forgotten. OSError."""
        found = {}
        for key, value in self._sums.items():
            inode, device, _, both = _KEY.unpack(key)
            name, *numbers, _ = _SUMS.unpack(value)
            who = Who(device, inode, both >> 32, both & 0xFFFFFFFF)
            found[who] = Sums(name.rstrip(b"\0"), *numbers)
        return found

    def forget(self, who: Who) -> None:
        """Make room for others. OSError."""
        self._sums.delete(_KEY.pack(who.inode, who.device, 0, who.pid << 32 | who.tid))

    def lost(self) -> int:
        """How often there was no room for one more thread or file. OSError."""
        value = self._lost.get(bytes(4))
        return struct.unpack("=Q", value)[0] if value else 0

    def _map(self, kind: int, key: int, value: int, entries: int, name: str) -> bpf.Map:
        made = bpf.Map(kind, key, value, entries, name)
        self._resources.callback(made.close)
        return made

    # ---------------------------------------------------------------- the programs

    def _attach_all(self, tracefs: Tracefs) -> None:
        reads = [one for name in _READ_AT if (one := tracefs.find(name))]
        writes = [one for name in _WRITE_AT if (one := tracefs.find(name))]
        if not reads or not writes:
            self.missing.append("reads and writes that are passed through (no tracepoints of XFS)")
        faults: list[Tracepoint] = []
        for names in _FAULT_AT:
            faults = faults or [one for name in names if (one := tracefs.find(name))]
        maps = tracefs.find(_MAP_AT)
        if not faults:
            self.missing.append("faults (no tracepoints)")
        if maps is None:
            self.missing.append("faults that find their pages in memory (no tracepoint)")
        for one in reads:
            self._attach(one, self._reading(one), "cowfs_read")
        for one in writes:
            self._attach(one, self._writing(one), "cowfs_write")
        for one in faults:
            self._attach(one, self._faulting(one), "cowfs_fault")
        if maps is not None:
            self._attach(maps, self._mapping(maps), "cowfs_map")

    def _attach(self, tracepoint: Tracepoint, program: Assembler, name: str) -> None:
        fd = bpf.load(program.assembled(), name)
        try:
            self._resources.callback(os.close, tracepoints.attach(fd, tracepoint))
        finally:
            os.close(fd)  # the tracepoint has it now

    def _begin(self, at: Tracepoint) -> Assembler:
        """R6 is what the tracepoint tells; the key is on the stack, unless it is another volume."""
        code = Assembler()
        device = at.fields.get("dev") or at.fields["s_dev"]
        inode = at.fields.get("ino") or at.fields["i_ino"]
        code.do("mov", 6, 1)
        code.load(1, 6, device.offset, device.size)
        code.store(STACK, _KEY_AT + 8, 1, 4)
        code.store_number(STACK, _KEY_AT + 12, 0, 4)
        self._look_up(code, self._devices, _KEY_AT + 8)
        code.jump_if_number(0, "eq", 0, "out")
        code.load(1, 6, inode.offset, inode.size)
        code.store(STACK, _KEY_AT, 1)
        code.call(bpf.GET_PID_TGID)
        code.store(STACK, _KEY_AT + 16, 0)
        return code

    def _find(self, code: Assembler) -> None:
        """R0 is the sums of the key, which are made if need be."""
        self._look_up(code, self._sums, _KEY_AT)
        code.jump_if_number(0, "ne", 0, "found")
        for offset in range(0, _SUMS.size, 8):
            code.store_number(STACK, _SUMS_AT + offset, 0)
        code.do("mov", 1, STACK)
        code.do_number("add", 1, _SUMS_AT)
        code.do_number("mov", 2, 16)
        code.call(bpf.GET_COMM)
        self._update(code, self._sums, _KEY_AT, _SUMS_AT, bpf.NOEXIST)
        self._look_up(code, self._sums, _KEY_AT)
        code.jump_if_number(0, "ne", 0, "found")
        code.store_number(STACK, _NUMBER_AT, 0, 4)
        self._look_up(code, self._lost, _NUMBER_AT)
        code.jump_if_number(0, "eq", 0, "out")
        code.do_number("mov", 1, 1)
        code.add_to_memory(0, 0, 1)
        code.jump("out")
        code.label("found")

    @staticmethod
    def _end(code: Assembler, count_at: int) -> Assembler:
        """Add one to this count in the sums."""
        code.label("count")
        code.do_number("mov", 1, 1)
        code.add_to_memory(0, count_at, 1)
        code.label("out")
        code.do_number("mov", 0, 0)
        code.leave()
        return code

    def _reading(self, at: Tracepoint) -> Assembler:
        code = self._begin(at)
        code.load(7, 6, *at.fields["count"])
        code.load(8, 6, *at.fields["offset"])
        code.load(9, 6, *(at.fields.get("isize") or at.fields["size"]))
        self._look_up(code, self._ends, _KEY_AT)  # a key there is the beginning of ours
        code.jump_if_number(0, "eq", 0, "on disk")
        code.load(1, 0, 0, 8)
        code.jump_if(9, "ge", 1, "on disk")
        code.do("mov", 9, 1)
        code.label("on disk")
        code.jump_if(8, "lt", 9, "inside")
        code.do("mov", 9, 8)  # nothing is left
        code.label("inside")
        code.do("sub", 9, 8)
        code.jump_if(7, "le", 9, "whole")
        code.do("mov", 7, 9)
        code.label("whole")
        self._find(code)
        code.add_to_memory(0, _READ_BYTES, 7)
        return self._end(code, _READS)

    def _writing(self, at: Tracepoint) -> Assembler:
        code = self._begin(at)
        code.load(7, 6, *at.fields["count"])
        code.load(8, 6, *at.fields["offset"])
        code.do("add", 8, 7)
        self._look_up(code, self._ends, _KEY_AT)
        code.jump_if_number(0, "ne", 0, "known")
        code.store(STACK, _NUMBER_AT, 8)
        self._update(code, self._ends, _KEY_AT, _NUMBER_AT, bpf.ANY)
        code.jump("noted")
        code.label("known")
        code.load(1, 0, 0, 8)
        code.jump_if(1, "ge", 8, "noted")
        code.store(0, 0, 8)
        code.label("noted")
        self._find(code)
        code.add_to_memory(0, _WRITTEN, 7)
        return self._end(code, _WRITES)

    def _faulting(self, at: Tracepoint) -> Assembler:
        code = self._begin(at)
        if "index" not in at.fields:
            self._find(code)
            return self._end(code, _FAULTS)
        code.load(7, 6, *at.fields["index"])
        code.do_number("add", 7, 1)  # 0 is none
        self._find(code)
        code.load(1, 0, _ASKED, 8)
        code.store(0, _ASKED, 7)
        code.jump_if(1, "eq", 7, "out")
        return self._end(code, _FAULTS)

    def _mapping(self, at: Tracepoint) -> Assembler:
        code = self._begin(at)
        code.load(7, 6, *at.fields["index"])
        code.do_number("add", 7, 1)
        code.load(8, 6, *at.fields["last_index"])
        code.do_number("add", 8, 1)
        self._find(code)
        code.load(1, 0, _ASKED, 8)
        code.store_number(0, _ASKED, 0)
        code.jump_if(1, "lt", 7, "count")
        code.jump_if(1, "gt", 8, "count")
        code.jump("out")  # the end of one that was counted
        return self._end(code, _FAULTS)

    @staticmethod
    def _look_up(code: Assembler, where: bpf.Map, key_at: int) -> None:
        code.map(1, where.fd)
        code.do("mov", 2, STACK)
        code.do_number("add", 2, key_at)
        code.call(bpf.LOOKUP_ELEM)

    @staticmethod
    def _update(code: Assembler, where: bpf.Map, key_at: int, value_at: int, flags: int) -> None:
        code.map(1, where.fd)
        code.do("mov", 2, STACK)
        code.do_number("add", 2, key_at)
        code.do("mov", 3, STACK)
        code.do_number("add", 3, value_at)
        code.do_number("mov", 4, flags)
        code.call(bpf.UPDATE_ELEM)
