"""Eight copies of a large file, read one after another with nothing of it in memory at first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.system import memory_info
from bench.workload import Metric, Sample, Target, Value, Workload

COPIES = 8


class Cold(Workload):
    """Time to read all copies, and by how much the page cache of the machine grew."""

    name = "cold"
    title = "eight copies, cold cache, one after another"
    metrics = (Metric("read", "read all", "s"), Metric("cache", "page cache growth", "B"))
    peers = ("reflink", "overlayfs", "cowfs")

    def __init__(self) -> None:
        self.targets = (
            self.speed("8 copies from a cold cache, speed", "read", "cowfs", "reflink", 4.0),
            Target(
                "8 copies from a cold cache, page cache",
                "reflink",
                Value("cowfs", "cache"),
                Value("reflink", "cache"),
                # an eighth; 2 % more because the whole machine's page cache is counted
                at_most=0.125 * 1.02,
            ),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.cold, "copies": COPIES, "direct_io": env.volume.direct_io}

    def prepare(self, env: Environment) -> None:
        env.model("cold", env.sizes.cold)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.model("cold", env.sizes.cold)
        with ExitStack() as mounts:
            views = [mounts.enter_context(peer.mounted(env, source)) for _ in range(COPIES)]

            def sample(_number: int) -> Sample:
                env.caches.drop()
                before = memory_info()["Cached"]
                start = time.monotonic()
                for view in views:
                    env.probe.read(view.root / "model.bin")
                seconds = time.monotonic() - start
                grown = memory_info()["Cached"] - before
                env.caches.drop()
                return {"read": seconds, "cache": float(grown)}

            yield sample
