"""An open directory that is being listed, and whether readdir(3) keeps its promise meanwhile.

POSIX: a name that is there from the open to the end is returned exactly once; for one that comes or
goes in between nothing is promised. After seekdir(3) to a place the names behind it come again.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_NAME = 19  # offset of d_name in struct dirent64


class Stream:
    """OSError of opendir(3)."""

    def __init__(self, path: Path) -> None:
        directory = _libc.opendir(os.fsencode(path))
        if not directory:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._directory = ctypes.c_void_p(directory)
        self._seen: list[str] = []
        self._places = [_libc.telldir(self._directory)]
        #: Names that were created, moved or removed since: whoever does it says so here.
        self.touched: set[str] = set()
        try:
            self._at_first = self._there()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        _libc.closedir(self._directory)

    def read(self, count: int) -> bool:
        """Go on by *count* names; whether there are more."""
        for _ in range(count):
            entry = _libc.readdir64(self._directory)
            if not entry:
                return False
            self._seen.append(os.fsdecode(ctypes.string_at(entry + _NAME)))
            self._places.append(_libc.telldir(self._directory))
        return True

    def back(self, place: int) -> None:
        """Go back to where *place* names had been read."""
        place = min(place, len(self._seen))
        _libc.seekdir(self._directory, ctypes.c_long(self._places[place]))
        del self._seen[place:], self._places[place + 1 :]

    def rest(self) -> list[str]:
        """Read to the end; the names that broke the promise."""
        while self.read(1):
            pass
        stable = (self._at_first & self._there()) - self.touched
        return sorted(name for name in stable if self._seen.count(name) != 1)

    def _there(self) -> set[str]:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=_libc.dirfd(self._directory))
        try:
            return set(os.listdir(fd))
        except FileNotFoundError:
            return set()  # the directory was removed
        finally:
            os.close(fd)
