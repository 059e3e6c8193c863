"""Reading both sides of a copy back and comparing them by their hashes (XXH3, 128 bits)."""

from __future__ import annotations

import os

import xxhash

from cowfs.trees.filedata import BLOCK

_DONTNEED = os.POSIX_FADV_DONTNEED


def same(source: int, target: int, start: int, end: int) -> bool:
    """Whether two files have the same bytes from `start` up to `end`. OSError.

    What was written is read from the disk, when it is on it: its pages are dropped before.
    """
    os.posix_fadvise(target, start, end - start, _DONTNEED)
    return _digest(source, start, end) == _digest(target, start, end)


def _digest(fd: int, start: int, end: int) -> bytes:
    digest = xxhash.xxh3_128()
    buffer = bytearray(min(BLOCK, max(end - start, 1)))
    with memoryview(buffer) as view:
        while start < end:
            got = os.preadv(fd, [view[: min(BLOCK, end - start)]], start)
            if not got:
                break
            digest.update(view[:got])
            start += got
    return digest.digest() + start.to_bytes(8, "little")  # a file that ends early differs
