"""WILLNEED over a whole large file: what it costs in memory, and the read after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.system import memory_info
from bench.workload import Metric, Sample, Target, Value, Workload

QUIET_SECONDS = 0.5


class WillNeed(Workload):
    """Asked for in pieces of 1 MiB: the kernel cuts longer ones to its read-ahead limit.

    `read` is the first one after it, `again` the one after that, and `warm` one of pages that a
    read from a cold cache has left: those are larger, which makes a difference of its own.
    """

    name = "willneed"
    title = "WILLNEED over a whole file"
    metrics = (
        Metric("cache", "page cache growth", "B"),
        Metric("read", "read after it", "s"),
        Metric("again", "read again", "s"),
        Metric("warm", "warm read", "s"),
    )
    peers = ("native", "cowfs", "cowfs-off")
    targets = (
        Target(
            "WILLNEED, page cache",
            "native",
            Value("cowfs", "cache"),
            Value("native", "cache"),
            at_most=1.02,
        ),
        Target(
            "read after WILLNEED",
            "the next read",
            Value("cowfs", "again"),
            Value("cowfs", "read"),
            at_least=0.9,
        ),
    )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.cold, "direct_io": env.volume.direct_io}

    def prepare(self, env: Environment) -> None:
        env.model("cold", env.sizes.cold)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("cold", env.sizes.cold)) as view:
            path = view.root / "model.bin"

            def sample(_number: int) -> Sample:
                env.caches.drop()
                env.probe.read(path)
                warm = env.probe.read(path)
                env.caches.drop()
                before = memory_info()["Cached"]
                env.probe.will_need(path)
                grown = _settled() - before
                read = env.probe.read(path)
                again = env.probe.read(path)
                return {"cache": float(grown), "read": read, "again": again, "warm": warm}

            yield sample


def _settled() -> int:
    """Bytes of the page cache, when they have stopped to grow."""
    cached, since = memory_info()["Cached"], time.monotonic()
    while time.monotonic() - since < QUIET_SECONDS:
        time.sleep(0.02)
        now = memory_info()["Cached"]
        if abs(now - cached) > 1 << 20:
            cached, since = now, time.monotonic()
    return cached
