"""An XFS volume of the benchmark's own, in a sparse image behind a loop device.

The loop device does direct I/O: otherwise the image's pages stay in memory beside the files' own,
and a cold read is neither cold nor counted right.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .system import BenchError, patient_teardown, run, unmount

GIB = 1 << 30


@dataclass(frozen=True)
class Volume:
    """A mounted volume; `work` is a directory beside it, on another filesystem, for mountpoints."""

    root: Path
    work: Path
    device: str
    direct_io: bool
    image_bytes: int


@contextmanager
def xfs_volume(parent: Path, size: int) -> Iterator[Volume]:
    """Make, mount, and at the end remove a volume of up to `size` bytes below `parent`."""
    if os.geteuid() != 0:
        raise BenchError("mounts and loop devices need root: run the benchmark as root")
    free = shutil.disk_usage(parent).free
    size = min(size, free * 8 // 10)
    if size < GIB:
        raise BenchError(f"{parent} has only {free >> 20} MiB free: name a larger place with --dir")
    work = Path(tempfile.mkdtemp(prefix="cowfs-bench-", dir=parent))
    root, image, device = work / "volume", work / "volume.img", ""
    try:
        root.mkdir()
        with image.open("wb") as file:
            file.truncate(size)
        run(["mkfs.xfs", "-q", "-m", "reflink=1", image])
        try:
            device = run(["losetup", "--find", "--show", "--direct-io=on", image]).strip()
        except BenchError:  # the filesystem that holds the image has no direct I/O (tmpfs)
            device = run(["losetup", "--find", "--show", image]).strip()
        run(["mount", "-t", "xfs", device, root])
        yield Volume(root, work, device, _direct(device), size)
    finally:
        with patient_teardown():
            unmount(root)
            if device:
                run(["losetup", "--detach", device])
            shutil.rmtree(work)


@contextmanager
def ext4_volume(parent: Path, size: int) -> Iterator[Path]:
    """An ext4 volume of up to `size` bytes below `parent`, mounted as long as the block runs."""
    root, image = parent / "outside", parent / "outside.img"
    try:
        root.mkdir()
        with image.open("wb") as file:
            file.truncate(min(size, shutil.disk_usage(parent).free * 4 // 10))
        run(["mkfs.ext4", "-q", "-F", image])
        run(["mount", "-o", "loop", image, root])
        yield root
    finally:
        with patient_teardown():
            unmount(root)
            image.unlink(missing_ok=True)


def _direct(device: str) -> bool:
    return (Path("/sys/block") / Path(device).name / "loop/dio").read_text().strip() == "1"
