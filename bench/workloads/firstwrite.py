"""The first write to a file of a copy, small and large."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Target, Value, Workload

FILES = 8  # a round takes the median over so many fresh files of each size


class FirstWrite(Workload):
    """open for writing, 4 KiB at the start, close; the large file holds 1024 times the data.

    A reflink copy was cloned when it was made, so its times are the floor: the write alone.
    """

    name = "firstwrite"
    title = "first write to a file, 4 KiB"
    metrics = (Metric("small", "small file", "s"), Metric("large", "1024 times larger", "s"))
    peers = ("reflink", "overlayfs", "cowfs-overlay", "fuse-overlayfs", "cowfs", "cowfs-off")
    targets = (
        Target(
            "first write to a file 1024 times larger, time",
            "the small file",
            Value("cowfs", "large"),
            Value("cowfs", "small"),
            at_most=2.0,
        ),
    )

    def parameters(self, env: Environment) -> dict[str, object]:
        large = env.sizes.first_write
        return {"small_bytes": large // 1024, "large_bytes": large, "files": FILES}

    def prepare(self, env: Environment) -> None:
        large = env.model("first-write-large", env.sizes.first_write) / "model.bin"
        small = env.model("first-write-small", env.sizes.first_write // 1024) / "model.bin"
        self._source = env.folder("source-first-write")
        for number in range(env.rounds * FILES):
            env.clone_tree(large, self._source / f"large-{number}.bin")
            env.clone_tree(small, self._source / f"small-{number}.bin")
        os.sync()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, self._source, private=True) as view:

            def fresh(size: str, number: int) -> list[Path]:
                files = range(number * FILES, (number + 1) * FILES)
                return [view.root / f"{size}-{file}.bin" for file in files]

            def sample(number: int) -> Sample:
                os.sync()
                return {
                    size: env.probe.first_write(fresh(size, number)) for size in ("small", "large")
                }

            yield sample
