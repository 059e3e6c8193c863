"""`cowfs warm`, and the first read of a copy after it, against a read that waits for the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.system import run
from bench.workload import Metric, Sample, Workload


class Warm(Workload):
    """`warm` is the whole command, the start of Python with it."""

    name = "warm"
    title = "cowfs warm, then the first read"
    metrics = (
        Metric("cold", "read, cold", "s"),
        Metric("warm", "cowfs warm", "s"),
        Metric("read", "read after it", "s"),
    )
    peers = ("native", "cowfs", "cowfs-off")

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.cold, "block": 1 << 20, "direct_io": env.volume.direct_io}

    def prepare(self, env: Environment) -> None:
        env.model("cold", env.sizes.cold)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("cold", env.sizes.cold)) as view:
            path = view.root / "model.bin"

            def sample(_number: int) -> Sample:
                env.caches.drop()
                cold = env.probe.read(path)
                env.caches.drop()
                start = time.monotonic()
                run([*env.cowfs, "warm", view.root])
                warm = time.monotonic() - start
                return {"cold": cold, "warm": warm, "read": env.probe.read(path)}

            yield sample
