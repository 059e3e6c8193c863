"""Sequential read of a large file whose pages are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Workload

REPEATS = 3  # a warm read is short: a sample is the median of these


class SequentialRead(Workload):
    """read(2) in blocks of 1 MiB; every peer's file was warmed by the same read."""

    name = "seqread"
    title = "sequential read, warm"
    metrics = (Metric("read", "read", "s"),)
    peers = (
        "native",
        "reflink",
        "overlayfs",
        "cowfs-overlay",
        "fuse-overlayfs",
        "passthrough_hp",
        "pyfuse3",
        "cowfs",
        "cowfs-off",
    )

    def __init__(self) -> None:
        self.targets = (self.speed("sequential read, warm", "read", "cowfs", "native", 0.97),)

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.model, "block": 1 << 20, "repeats": REPEATS}

    def prepare(self, env: Environment) -> None:
        env.model("model", env.sizes.model)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("model", env.sizes.model)) as view:
            path = view.root / "model.bin"
            env.probe.read(path)

            def sample(_number: int) -> Sample:
                return {"read": sorted(env.probe.read(path) for _ in range(REPEATS))[REPEATS // 2]}

            yield sample
