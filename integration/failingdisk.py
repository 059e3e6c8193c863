"""An XFS volume whose disk loses data on demand, as a bad or an overcommitted one does.

The image is a sparse file on a tmpfs of its own. When that is full, what goes to a block of the
image that was never written fails with ENOSPC, which the loop device hands on; the log, and all
metadata that was there before, can be written on. This needs neither device mapper nor fault
injection.

Knows nothing about cowfs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from integration.volumes import MIB, Volume, unmount

_libc = ctypes.CDLL(None, use_errno=True)


class FailingDisk:
    """A volume of `size` bytes in the new directory `directory`: `mountpoint` is its path."""

    def __init__(self, directory: Path, size: int = 256 * MIB) -> None:
        self._memory = directory
        directory.mkdir()
        # Room for the log, what mkfs writes and the tests' own data, and not for the whole volume.
        options = f"size={size // 2},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
        self._volume = Volume.xfs(directory / "xfs", size)
        self.mountpoint = self._volume.mountpoint
        self._ballast = directory / "ballast"

    def fail(self) -> None:
        """From now on data is lost that goes to blocks which were never written."""
        # What metadata there is gets its place on the disk: XFS tries for ever to write it.
        subprocess.run(["fsfreeze", "--freeze", self.mountpoint], check=True)
        subprocess.run(["fsfreeze", "--unfreeze", self.mountpoint], check=True)
        with self._ballast.open("wb") as file:
            space = os.statvfs(file.fileno())
            os.posix_fallocate(file.fileno(), 0, space.f_bfree * space.f_bsize)
            assert os.statvfs(file.fileno()).f_bfree == 0

    def mend(self) -> None:
        """All is well again. What was lost stays lost."""
        self._ballast.unlink(missing_ok=True)

    def write_back(self) -> None:
        """Have everything written that waits in memory, and tell nobody who has a file open."""
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _libc.syncfs(fd)  # says what was lost since the line above
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Unmount everything and delete the image."""
        self.mend()
        self._volume.remove()
        unmount(self._memory)
        self._memory.rmdir()
