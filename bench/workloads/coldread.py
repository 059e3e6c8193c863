"""Sequential read of a large file, nothing of which is in memory, through a daemon and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import GIB, Environment
from bench.peers import Peer
from bench.system import process_seconds
from bench.workload import Metric, Sample, Workload


class ColdRead(Workload):
    """The caches of the whole machine are dropped before every first pass, not before `again`."""

    name = "coldread"
    title = "sequential read, cold"
    metrics = (
        Metric("read", "read", "s"),
        Metric("again", "read again", "s"),
        Metric("touch", "mmap, a byte of each page", "s"),
        Metric("touched", "again", "s"),
        Metric("cpu", "daemon's CPU a GiB", "s"),
    )
    peers = ("native", "fuse-overlayfs", "pyfuse3", "cowfs", "cowfs-off")

    def __init__(self) -> None:
        self.targets = (
            self.speed(
                "sequential read, cold, passthrough=off", "read", "cowfs-off", "native", 0.9
            ),
            self.speed(
                "the read after it, passthrough=off", "again", "cowfs-off", "fuse-overlayfs", 0.95
            ),
            self.speed(
                "mmap, touch every page, after a cold pass, passthrough=off",
                *("touched", "cowfs-off", "fuse-overlayfs"),
                0.95,
            ),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.cold, "block": 1 << 20, "direct_io": env.volume.direct_io}

    def prepare(self, env: Environment) -> None:
        env.model("cold", env.sizes.cold)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("cold", env.sizes.cold)) as view:
            path, daemons = view.root / "model.bin", view.daemons()

            def sample(_number: int) -> Sample:
                env.caches.drop()
                taken = {"touch": env.probe.map(path, 1)["touch"]}
                taken["touched"] = env.probe.map(path, 1)["touch"]
                env.caches.drop()
                before = process_seconds(daemons)
                taken["read"] = env.probe.read(path)
                used = process_seconds(daemons) - before
                taken["again"] = env.probe.read(path)
                return taken | ({"cpu": used * GIB / env.sizes.cold} if daemons else {})

            yield sample
