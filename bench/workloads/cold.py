"""Eight copies of a large file, read one after another with nothing of it in memory at first.

As they are, and after a walk that gave every file another group and mode, as the kubelet's fsGroup
does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.peers import Peer, View
from bench.system import memory_info, run
from bench.workload import Metric, Sample, Target, Value, Workload

COPIES = 8


def walk(root: Path) -> None:
    """Give everything at and below *root* another group and mode."""
    run(["chgrp", "-R", "100", root])
    run(["chmod", "-R", "g+w", root])


class Cold(Workload):
    """Time to read all copies, twice, and by how much the page cache of the machine grew."""

    name = "cold"
    title = "eight copies, cold cache, one after another"
    what = "8 copies from a cold cache"
    metrics = (
        Metric("read", "read all", "s"),
        Metric("again", "read all again", "s"),
        Metric("cache", "page cache growth", "B"),
    )
    peers: tuple[str, ...] = (
        "reflink",
        "overlayfs",
        "cowfs-overlay",
        "fuse-overlayfs",
        "cowfs",
        "cowfs-off",
    )

    def __init__(self) -> None:
        self.targets = (
            self.speed(f"{self.what}, speed", "read", "cowfs", "reflink", 4.0),
            Target(
                f"{self.what}, page cache",
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

    def change(self, root: Path) -> None:
        """What happens to a copy before it is read."""

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.model("cold", env.sizes.cold)
        with ExitStack() as mounts:
            views = [
                mounts.enter_context(peer.mounted(env, source, private=True)) for _ in range(COPIES)
            ]
            for view in views:
                self.change(view.root)

            def sample(_number: int) -> Sample:
                env.caches.drop()
                before = memory_info()["Cached"]
                seconds = [_read_all(env, views) for _ in range(2)]
                grown = memory_info()["Cached"] - before
                env.caches.drop()
                return {"read": seconds[0], "again": seconds[1], "cache": float(grown)}

            yield sample


def _read_all(env: Environment, views: Sequence[View]) -> float:
    start = time.monotonic()
    for view in views:
        env.probe.read(view.root / "model.bin")
    return time.monotonic() - start


class ColdWalked(Cold):
    """The same after the walk."""

    peers = ("reflink", "overlayfs", "cowfs")  # others copy the whole file in the walk

    name = "coldwalked"
    title = "eight copies, cold cache, after chgrp -R and chmod -R of each"
    what = "8 copies after chgrp -R and chmod -R, cold"

    def change(self, root: Path) -> None:
        walk(root)


class Walk(Workload):
    """Time of that walk over a fresh copy of many small files."""

    name = "walk"
    title = "chgrp -R, then chmod -R, of a fresh copy"
    metrics = (Metric("walk", "4,000 files", "s"),)
    peers = ("reflink", "overlayfs", "cowfs-overlay", "fuse-overlayfs", "cowfs", "cowfs-off")
    targets = (
        Target(
            "chgrp -R and chmod -R of 4,000 files",
            "",
            Value("cowfs", "walk"),
            at_most=0.5,
            unit="s",
        ),
    )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"files": env.sizes.files}

    def prepare(self, env: Environment) -> None:
        env.small_files()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.small_files()

        def sample(_number: int) -> Sample:
            with peer.mounted(env, source, private=True) as view:
                start = time.monotonic()
                walk(view.root)
                return {"walk": (time.monotonic() - start) * 4000 / env.sizes.files}

        yield sample
