"""Reading a large warm file through a mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Workload

REPEATS = 3


class MmapRead(Workload):
    """One byte of every page (what page faults cost), and every byte; through fresh mappings.

    The page cache was filled by a sequential read, for every peer alike: its folio sizes decide how
    many faults there are.
    """

    name = "mmap"
    title = "mmap read, warm"
    metrics = (Metric("touch", "touch pages", "s"), Metric("read", "read", "s"))
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
        self.targets = (
            self.speed("mmap, touch every page, warm", "touch", "cowfs", "native", 0.97),
            self.speed("mmap, read every byte, warm", "read", "cowfs", "native", 0.97),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"bytes": env.sizes.model, "repeats": REPEATS}

    def prepare(self, env: Environment) -> None:
        env.model("model", env.sizes.model)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        with peer.mounted(env, env.model("model", env.sizes.model)) as view:
            path = view.root / "model.bin"
            env.probe.read(path)

            def sample(_number: int) -> Sample:
                return dict(env.probe.map(path, REPEATS))

            yield sample
