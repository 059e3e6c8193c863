"""open, read and close of many small files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Workload

PASSES = 3  # the later passes of a sample; their median counts


class OpenClose(Workload):
    """Every file of 4 KiB once in each pass, over a mount that is fresh in every round.

    The first pass looks names up and opens each file for the first time, later ones show what an
    open costs by itself. The volume's own caches are warm.
    """

    name = "openclose"
    title = "open + read + close of 4 KiB files"
    metrics = (
        Metric("later", "second and later passes", "files/s", higher_is_better=True),
        Metric("first", "first pass", "files/s", higher_is_better=True),
        Metric("requests", "requests a file, later", "requests"),
    )
    peers = (
        "native",
        "overlayfs",
        "cowfs-overlay",
        "fuse-overlayfs",
        "passthrough_hp",
        "pyfuse3",
        "cowfs",
        "cowfs-off",
    )

    def __init__(self) -> None:
        what = "open + read + close, 4 KiB files, second pass"
        self.targets = (
            self.speed(what, "later", "cowfs", "fuse-overlayfs", 1.3),
            self.speed(what, "later", "cowfs", "passthrough_hp", 2.0),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"files": env.sizes.files, "file_bytes": 4096, "later_passes": PASSES}

    def prepare(self, env: Environment) -> None:
        env.small_files()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.small_files()
        with peer.mounted(env, source) as view:
            env.probe.names("open", view.root, source, 1)  # what lies below is warm from here on

        def sample(_number: int) -> Sample:
            with peer.mounted(env, source) as view:
                first, names = env.probe.names("open", view.root, source, 1)
                later, _ = env.probe.names("open", view.root, source, PASSES)
                taken: Sample = {"first": names / first, "later": names / later}
                # counted in a pass of its own: a trace takes time
                with env.requests.counting(view.connection) as count:
                    env.probe.names("open", view.root, source, 1)
                    counted = count()
                if counted is not None:
                    taken["requests"] = counted / names
                return taken

        yield sample
