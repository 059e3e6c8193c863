"""Sequential read of a large file whose pages are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import GIB, Environment
from bench.peers import Peer
from bench.system import process_seconds
from bench.workload import Metric, Sample, Workload

REPEATS = 3  # a warm read is short: a sample is the median of these


class SequentialRead(Workload):
    """read(2) in blocks of 1 MiB; every peer's file was warmed by the same read.

    `first` starts without pages of the FUSE inode, with the file behind it in memory: so every byte
    crosses a daemon that passes nothing through, and `cpu` is what that costs it. `again` is the
    read after that. Who has no second set of pages to drop reads warm ones both times.
    """

    name = "seqread"
    title = "sequential read, warm"
    metrics = (
        Metric("first", "first read", "s"),
        Metric("again", "read again", "s"),
        Metric("cpu", "daemon's CPU a GiB, first read", "s"),
    )
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
        what = "sequential read, warm"
        self.targets = (
            self.speed(what, "first", "cowfs", "native", 0.97, ("again", 0.97)),
            self.speed(
                f"{what}, passthrough=off",
                *("first", "cowfs-off", "fuse-overlayfs"),
                1.0,
                ("again", 0.95),
            ),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.model, "block": 1 << 20, "repeats": REPEATS}

    def prepare(self, env: Environment) -> None:
        env.model("model", env.sizes.model)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("model", env.sizes.model)) as view:
            path, daemons = view.root / "model.bin", view.daemons()
            env.probe.read(path)

            def sample(_number: int) -> Sample:
                view.drop(path)
                before = process_seconds(daemons)
                first = env.probe.read(path)
                used = process_seconds(daemons) - before
                again = sorted(env.probe.read(path) for _ in range(REPEATS))[REPEATS // 2]
                taken = {"first": first, "again": again}
                return taken | ({"cpu": used * GIB / env.sizes.model} if daemons else {})

            yield sample
