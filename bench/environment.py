"""What every workload and peer is given: the volume, the probe, the sizes, the commands."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .probe import Probe
from .requests import RequestCounter
from .system import CacheDrops, memory_info, run
from .volume import Volume

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """How large the measured things are; bytes unless said otherwise."""

    model: int  # a file that is read whole
    cold: int  # a file of which eight copies are read
    random_read: int
    random_write: int
    overwrite: int
    imported: int  # a file that is brought in from another volume
    first_write: int  # the large one; the small one has a thousandth
    files: int  # number of small files
    seconds: float  # length of one fio run

    @classmethod
    def full(cls) -> Sizes:
        """The sizes of the targets, less where the memory of this machine cannot hold them."""
        available = memory_info()["MemAvailable"]
        return cls(
            # in memory at once: source, template, reflink copy, and FUSE's own pages of three peers
            model=_at_most(2 * GIB, available // 8),
            cold=_at_most(2 * GIB, available // 10),
            random_read=_at_most(GIB, available // 16),
            random_write=_at_most(512 * MIB, available // 32),
            overwrite=_at_most(512 * MIB, available // 32),
            imported=_at_most(4 * GIB, available // 4),
            first_write=_at_most(2 * GIB, available // 8),
            files=10_000,
            seconds=2,
        )

    @classmethod
    def quick(cls) -> Sizes:
        """Small enough for a smoke test; the numbers mean nothing."""
        return cls(
            model=32 * MIB,
            cold=16 * MIB,
            random_read=16 * MIB,
            random_write=16 * MIB,
            overwrite=16 * MIB,
            imported=64 * MIB,
            first_write=16 * MIB,
            files=300,
            seconds=0.1,
        )


def _at_most(wanted: int, available: int) -> int:
    return max(min(wanted, available) // (64 * MIB), 1) * 64 * MIB


@dataclass
class Environment:
    """One run of the benchmark."""

    volume: Volume
    outside: Path  # a directory on an ext4 volume
    probe: Probe
    requests: RequestCounter
    sizes: Sizes
    rounds: int
    quick: bool
    cowfs: Sequence[str]
    caches: CacheDrops = field(default_factory=CacheDrops)
    kept: set[str] = field(default_factory=lambda: {".cowfs"})  # names on the volume that stay
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def folder(self, purpose: str) -> Path:
        """A new empty directory on the volume."""
        path = self.volume.root / f"{purpose}-{next(self._numbers)}"
        path.mkdir()
        return path

    def mountpoint(self, peer: str) -> Path:
        """A new empty directory beside the volume."""
        path = self.volume.work / f"{peer}-{next(self._numbers)}"
        path.mkdir()
        return path

    def model(self, name: str, size: int) -> Path:
        """A directory with one file `model.bin` of `size` random bytes; made once a name."""
        path = self.volume.root / f"source-{name}"
        if not path.exists():
            path.mkdir()
            self.kept.add(path.name)
            self.probe.fill(path / "model.bin", size, seed=len(name))
            os.sync()
        return path

    def small_files(self) -> Path:
        """A directory of 100 directories (3 in a quick run) with `sizes.files` files of 4 KiB."""
        path = self.volume.root / "source-small"
        if not path.exists():
            path.mkdir()
            self.kept.add(path.name)
            directories = 3 if self.quick else 100
            self.probe.tree(path, directories, self.sizes.files // directories, 4096)
            os.sync()
        return path

    def clone_tree(self, source: Path, target: Path) -> None:
        """A reflink copy, as a user makes one; `target` must not exist."""
        run(["cp", "-a", "--reflink=always", source, target])
