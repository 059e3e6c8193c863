"""How long it takes to bring a model from ext4 to XFS, until it is on the disk."""

from __future__ import annotations

import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.peers import Peer
from bench.peers.copytools import CopyTool
from bench.workload import Metric, Sample, Workload

LARGE_FILES = 20


class _Import(Workload):
    """The source is in memory as far as it fits, the same for every peer."""

    metrics = (Metric("copied", "on disk", "s"),)
    peers = ("cp", "rsync", "copytree", "cowfs-import")

    @abstractmethod
    def source(self, env: Environment) -> Path:
        """The directory on ext4; made once."""

    def prepare(self, env: Environment) -> None:
        self.source(env)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        assert isinstance(peer, CopyTool)
        source = self.source(env)

        def sample(_number: int) -> Sample:
            folder = env.folder(self.name)
            os.sync()
            start = time.monotonic()
            peer.copy(env, source, folder / "tree")
            os.sync()
            seconds = time.monotonic() - start
            shutil.rmtree(folder)
            return {"copied": seconds}

        yield sample


class ImportLarge(_Import):
    """One file, as large as a part of a model's weights."""

    name = "importlarge"
    title = "import of one large file, ext4 to XFS"

    def __init__(self) -> None:
        self.targets = (self.speed("import, one large file", "copied", "cowfs-import", "cp", 1.0),)

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.imported}

    def source(self, env: Environment) -> Path:
        path = env.outside / "large"
        if not path.exists():
            path.mkdir()
            env.probe.fill(path / "model.bin", env.sizes.imported, seed=1)
        return path


class ImportMixed(_Import):
    """Many small files, and some large ones."""

    name = "importmixed"
    title = "import of many small and 20 large files, ext4 to XFS"

    def __init__(self) -> None:
        self.targets = (
            self.speed("import, 10,000 small files", "copied", "cowfs-import", "cp", 1.0),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {
            "files": env.sizes.files,
            "file_bytes": 4096,
            "large_files": LARGE_FILES,
            "large_bytes": env.sizes.imported // 64,
        }

    def source(self, env: Environment) -> Path:
        path = env.outside / "mixed"
        if not path.exists():
            path.mkdir()
            directories = 3 if env.quick else 100
            env.probe.tree(path, directories, env.sizes.files // directories, 4096)
            for number in range(LARGE_FILES):
                large = path / f"large-{number}.bin"
                env.probe.fill(large, env.sizes.imported // 64, seed=number)
        return path
