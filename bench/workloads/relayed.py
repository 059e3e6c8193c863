"""Sequential read of a large file that is not passed through: every byte crosses the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import GIB, Environment
from bench.peers import Peer
from bench.system import process_seconds
from bench.workload import Metric, Sample, Workload


class Relayed(Workload):
    """`read` starts without pages of the FUSE inode, with the backing file in memory.

    `cpu` is that of the daemon meanwhile. `again` is the read right after it: whether the pages
    that FUSE has got by then are used. Native has no second set of pages to drop, so both of its
    reads are of warm pages.
    """

    name = "relayed"
    title = "sequential read through the daemon"
    metrics = (
        Metric("read", "read", "s"),
        Metric("again", "read again", "s"),
        Metric("cpu", "daemon's CPU a GiB", "s"),
    )
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
            path, daemons = view.root / "model.bin", view.daemons()
            env.probe.read(path)

            def sample(_number: int) -> Sample:
                before = process_seconds(daemons)
                read = env.probe.read(path, drop=view.is_fuse)
                used = process_seconds(daemons) - before
                taken = {"read": read, "again": env.probe.read(path)}
                return taken | ({"cpu": used * GIB / env.sizes.model} if daemons else {})

            yield sample
