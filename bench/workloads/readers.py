"""Four large files that are read one after another, and four that are read at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import GIB, Environment
from bench.peers import Peer
from bench.system import process_seconds
from bench.workload import Metric, Sample, Target, Value, Workload

READERS = 4

# Of what the processors could give at most; they are the daemon's and the kernel's too.
SHARE = 0.6


class Readers(Workload):
    """Warm files, not the same one four times: whoever serves them has to do so in parallel.

    A FUSE file's own pages are dropped before each read but `again`, so that every byte crosses the
    daemon.
    """

    name = "readers"
    title = "four readers at once, warm"
    metrics = (
        Metric("turns", "one after another", "s"),
        Metric("once", "at once", "s"),
        Metric("again", "at once, again", "s"),
        Metric("cpu", "daemon's CPU a GiB", "s"),
    )
    peers = ("native", "fuse-overlayfs", "pyfuse3", "cowfs", "cowfs-off")

    def __init__(self) -> None:
        processors = min(READERS, len(os.sched_getaffinity(0)))
        self.targets = (
            Target(
                f"four readers at once, passthrough=off, {processors} processors",
                "one reader",
                Value("cowfs-off", "turns"),
                Value("cowfs-off", "once"),
                at_least=SHARE * processors,
            ),
            self.speed(
                "four readers at once, passthrough=off",
                *("once", "cowfs-off", "fuse-overlayfs"),
                1.0,
                ("again", 0.95),
            ),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": self._size(env), "readers": READERS, "block": 1 << 20}

    def prepare(self, env: Environment) -> None:
        self._source(env)

    def _size(self, env: Environment) -> int:
        return env.sizes.model // READERS

    def _source(self, env: Environment) -> Path:
        path = env.volume.root / "source-readers"
        if not path.exists():
            path.mkdir()
            for number in range(READERS):
                env.probe.fill(path / f"{number}.bin", self._size(env), seed=number + 1)
            os.sync()
        return path

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, self._source(env)) as view:
            paths = [view.root / f"{number}.bin" for number in range(READERS)]
            daemons = view.daemons()
            env.probe.readers(paths)

            def sample(_number: int) -> Sample:
                view.drop(*paths)
                turns = sum(env.probe.read(path) for path in paths)
                view.drop(*paths)
                before = process_seconds(daemons)
                taken = {"turns": turns, "once": env.probe.readers(paths)}
                used = process_seconds(daemons) - before
                taken["again"] = env.probe.readers(paths)
                size = self._size(env) * READERS
                return taken | ({"cpu": used * GIB / size} if daemons else {})

            yield sample
