"""Volumes on loop devices: made, filled, removed. Knows nothing about cowfs."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30

#: mkfs.xfs since 5.19 makes nothing below 300 MiB, unless it believes that it runs for xfstests.
_SMALL_XFS = {"TEST_DIR": "/", "TEST_DEV": "/", "QA_CHECK_FS": "1"}

#: Of xfs_fs.h: it waits for the end of what is being freed, struct xfs_fs_eofblocks says how.
_XFS_IOC_FREE_EOFBLOCKS = 0x8080583A
_FREE_EOFBLOCKS = struct.pack("=II120x", 1, 1)  # version, XFS_EOF_FLAGS_SYNC


class Volume:
    """A filesystem in a sparse image file, mounted through a loop device."""

    def __init__(self, image: Path, mountpoint: Path) -> None:
        self.image = image
        self.mountpoint = mountpoint

    @classmethod
    def xfs(cls, directory: Path, size: int = 4 * GIB, *, reflink: bool = True) -> Volume:
        """An XFS volume of `size` bytes, at least 16 MiB, in the new directory `directory`."""
        mkfs = ["mkfs.xfs", "-q", "-m", f"reflink={int(reflink)}"]
        return cls._make(directory, size, mkfs, _SMALL_XFS if size < 300 * MIB else {})

    @classmethod
    def btrfs(cls, directory: Path, size: int = 4 * GIB) -> Volume:
        """A btrfs volume of `size` bytes, at least 109 MiB."""
        # mkfs looks at all that is mounted, and fails when another session's volume is shut down.
        patient = 'for try in $(seq 60); do mkfs.btrfs -q "$0" && exit; sleep 1; done; exit 1'
        return cls._make(directory, size, ["sh", "-c", patient], {})

    @classmethod
    def ext4(cls, directory: Path, size: int = GIB) -> Volume:
        """An ext4 volume of `size` bytes: it has no reflink."""
        return cls._make(directory, size, ["mkfs.ext4", "-q", "-F", "-O", "^has_journal"], {})

    @classmethod
    def _make(cls, directory: Path, size: int, mkfs: list[str], env: dict[str, str]) -> Volume:
        directory.mkdir()
        image, mountpoint = directory / "image", directory / "volume"
        mountpoint.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        command = [*mkfs, str(image)]
        subprocess.run(command, check=True, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
        volume = cls(image, mountpoint)
        volume.mount()
        return volume

    def mount(self) -> None:
        """Mount it; the loop device goes away with the mount (autoclear)."""
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mountpoint)], check=True)

    def unmount(self) -> None:
        """Unmount it. Fails when something on it is still in use."""
        unmount(self.mountpoint)

    def remove(self) -> None:
        """Unmount it, once its trash is empty, and delete the image."""
        unmount(self.mountpoint, 60)
        self.image.unlink()
        self.mountpoint.rmdir()
        self.image.parent.rmdir()

    def free(self) -> int:
        """Bytes that root can still write, when what was removed is really free.

        XFS frees removed files in the background, and statfs(2) does not wait for it.
        """
        fd = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _XFS_IOC_FREE_EOFBLOCKS, _FREE_EOFBLOCKS)
        except OSError as error:
            if error.errno != errno.ENOTTY:  # another filesystem
                raise
        finally:
            os.close(fd)
        return self._free()

    def _free(self) -> int:
        space = os.statvfs(self.mountpoint)
        return space.f_bfree * space.f_frsize

    def fill(self, leave: int = 0) -> Path:
        """Fill the volume up to about `leave` bytes, with one file whose path is returned."""
        path = self.mountpoint / "ballast"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for step in (64 * MIB, MIB, 4096):
                while self._free() - step >= leave:
                    try:
                        os.posix_fallocate(fd, os.fstat(fd).st_size, step)
                    except OSError:  # ENOSPC: XFS keeps blocks back for its own use
                        break
        finally:
            os.close(fd)
        return path


def unmount(mountpoint: Path, patience: float = 5) -> None:
    """umount(8) without helpers, again for `patience` seconds while the kernel says EBUSY."""
    deadline = time.monotonic() + patience
    while True:
        done = subprocess.run(["umount", "-i", str(mountpoint)], capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "busy" not in done.stderr or time.monotonic() > deadline:
            raise AssertionError(f"cannot unmount {mountpoint}: {done.stderr.strip()}")
        time.sleep(0.05)


def remove_tree(path: Path) -> None:
    """rm -rf, also of immutable files. Does not leave the filesystem of `path`.

    Tried again for some seconds: the trash of a store may just be emptied by others.
    """
    rm = ["rm", "-rf", "--one-file-system", str(path)]
    deadline = time.monotonic() + 10
    while subprocess.run(rm, stderr=subprocess.DEVNULL).returncode != 0:
        assert time.monotonic() < deadline, f"{path} cannot be removed"
        subprocess.run(["chattr", "-R", "-f", "-i", "-a", str(path)], stderr=subprocess.DEVNULL)
