"""A plain reflink copy of many small files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.peers.copytools import CopyTool
from bench.workload import Metric, Sample, Workload


class Clone(Workload):
    """cowfs clone and cp --reflink, from the start of the command to its end."""

    name = "clone"
    title = "plain reflink copy of many files"
    metrics = (Metric("copied", "copied", "s"),)
    peers = ("cp-reflink", "cowfs-clone")

    def __init__(self) -> None:
        self.targets = (
            self.speed("reflink copy, 10,000 files", "copied", "cowfs-clone", "cp-reflink", 1.5),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"files": env.sizes.files, "file_bytes": 4096}

    def prepare(self, env: Environment) -> None:
        env.small_files()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        assert isinstance(peer, CopyTool)
        source = env.small_files()

        def sample(_number: int) -> Sample:
            folder = env.folder("clone")
            os.sync()
            start = time.monotonic()
            peer.copy(env, source, folder / "tree")
            seconds = time.monotonic() - start
            shutil.rmtree(folder)
            return {"copied": seconds}

        yield sample
