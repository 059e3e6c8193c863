"""Overwriting a file that is private already, in blocks of 1 MiB."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Workload


class Overwrite(Workload):
    """Each round overwrites a file of its own, whose extents are still shared with the source.

    Its first 4 KiB are written before the clock starts, so the clone is already made. `write` is
    the time until the bytes are in memory, `total` until they are on the volume.
    """

    name = "overwrite"
    title = "overwrite of a private file, 1 MiB blocks"
    metrics = (Metric("write", "write", "s"), Metric("total", "write + fsync", "s"))
    peers = (
        "reflink",
        "overlayfs",
        "cowfs-overlay",
        "fuse-overlayfs",
        "pyfuse3",
        "cowfs",
        "cowfs-off",
    )

    def __init__(self) -> None:
        self.targets = (
            self.speed("overwrite, 1 MiB blocks", "write", "cowfs", "reflink", 0.95),
            self.speed("overwrite and fsync", "total", "cowfs", "reflink", 0.95),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.overwrite, "block": 1 << 20}

    def prepare(self, env: Environment) -> None:
        whole = env.model("overwrite-data", env.sizes.overwrite) / "model.bin"
        self._source = env.folder("source-overwrite")
        for number in range(env.rounds):
            env.clone_tree(whole, self._source / f"round-{number}.bin")

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, self._source, private=True) as view:

            def sample(number: int) -> Sample:
                path = view.root / f"round-{number}.bin"
                env.probe.first_write([path])
                os.sync()
                seconds = env.probe.overwrite(path)
                os.truncate(path, 0)  # the blocks are free for the next sample
                return {"write": seconds["write"], "total": seconds["write"] + seconds["fsync"]}

            yield sample
