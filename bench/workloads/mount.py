"""How long it takes until a copy of many files can be used."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.peers import Peer
from bench.peers.cowfs import Cowfs
from bench.workload import Metric, Sample, Target, Value, Workload


class Mount(Workload):
    """From the start of the command to the first answer; cowfs has sealed the source before."""

    name = "mount"
    title = "copy ready, template present"
    metrics = (Metric("ready", "ready", "s"),)
    peers = ("reflink", "overlayfs", "cowfs-overlay", "fuse-overlayfs", "pyfuse3", "cowfs")

    def __init__(self) -> None:
        self.targets = (
            self.speed("mount to ready, 10,000 files", "ready", "cowfs", "reflink", 2.0),
            Target(
                "mount to ready, 10,000 files", "", Value("cowfs", "ready"), at_most=0.35, unit="s"
            ),
            Target(
                "mount to ready, engine=overlay",
                "",
                Value("cowfs-overlay", "ready"),
                at_most=0.1,
                unit="s",
            ),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"files": env.sizes.files, "file_bytes": 4096}

    def prepare(self, env: Environment) -> None:
        env.small_files()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.small_files()
        with peer.mounted(env, source):
            pass  # warms what is warm on a node that does this often; cowfs seals here

        def sample(_number: int) -> Sample:
            os.sync()
            start = time.monotonic()
            with peer.mounted(env, source) as view:
                view.root.stat()
                return {"ready": time.monotonic() - start}

        yield sample


class Seal(Workload):
    """The first mount of a source: everything is cloned. Each round has a store of its own."""

    name = "seal"
    title = "first copy of a source (sealing)"
    metrics = (Metric("ready", "ready", "s"),)
    peers = ("reflink", "cowfs")

    def __init__(self) -> None:
        self.targets = (self.speed("first mount, 10,000 files", "ready", "cowfs", "reflink", 1.0),)

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"files": env.sizes.files, "file_bytes": 4096}

    def prepare(self, env: Environment) -> None:
        env.small_files()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        def sample(_number: int) -> Sample:
            os.sync()
            if isinstance(peer, Cowfs):
                return {"ready": _sealing(env, peer, env.small_files())}
            folder = env.folder("seal")
            start = time.monotonic()
            env.clone_tree(env.small_files(), folder / "tree")
            seconds = time.monotonic() - start
            shutil.rmtree(folder)
            return {"ready": seconds}

        yield sample


def _sealing(env: Environment, peer: Cowfs, source: Path) -> float:
    # the store vanishes with the volume: its files are immutable
    store = env.folder("store") / "cowfs"
    mountpoint = env.mountpoint(peer.name)
    start = time.monotonic()
    try:
        peer.mount(env, source, mountpoint, f"store={store}")
        mountpoint.stat()
        return time.monotonic() - start
    finally:
        peer.unmount(env, mountpoint)
        mountpoint.rmdir()
