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
    many faults there are. For `first` the pages of the FUSE inode were dropped, and those of the
    file behind it were not; then a sequential read fills them for the others.
    """

    name = "mmap"
    title = "mmap read, warm"
    metrics = (
        Metric("first", "touch pages, first time", "s"),
        Metric("touch", "again", "s"),
        Metric("read", "read every byte", "s"),
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
        self.targets = (
            self.speed(
                "mmap, touch every page, warm", "first", "cowfs", "native", 0.97, ("touch", 0.97)
            ),
            self.speed("mmap, read every byte, warm", "read", "cowfs", "native", 0.97),
            self.speed(
                "mmap, touch every page, warm, passthrough=off",
                *("first", "cowfs-off", "fuse-overlayfs"),
                0.95,
                ("touch", 0.95),
            ),
            self.speed(
                "mmap, read every byte, warm, passthrough=off",
                *("read", "cowfs-off", "fuse-overlayfs"),
                0.95,
            ),
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
                view.drop(path)
                first = env.probe.map(path, 1)["touch"]
                view.drop(path)
                env.probe.read(path)
                return {"first": first} | env.probe.map(path, REPEATS)

            yield sample
