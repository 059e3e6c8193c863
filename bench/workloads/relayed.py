"""Sequential read of a large file that is not passed through: every byte crosses the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Workload


class Relayed(Workload):
    """`read` starts without pages of the FUSE inode, with the backing file in memory.

    `again` is the read right after it: whether the pages that FUSE has got by then are used. Native
    has no second set of pages to drop, so both of its reads are of warm pages.
    """

    name = "relayed"
    title = "sequential read through the daemon"
    metrics = (Metric("read", "read", "s"), Metric("again", "read again", "s"))
    peers = ("native", "fuse-overlayfs", "pyfuse3", "cowfs-off")

    def __init__(self) -> None:
        what = "sequential read, passthrough=off"
        self.targets = (
            self.speed(what, "read", "cowfs-off", "pyfuse3", 5.0),
            self.speed(what, "read", "cowfs-off", "fuse-overlayfs", 1.5),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.model, "block": 1 << 20}

    def prepare(self, env: Environment) -> None:
        env.model("model", env.sizes.model)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("model", env.sizes.model)) as view:
            path = view.root / "model.bin"
            env.probe.read(path)

            def sample(_number: int) -> Sample:
                return {
                    "read": env.probe.read(path, drop=view.is_fuse),
                    "again": env.probe.read(path),
                }

            yield sample
