"""Names and attributes: the first pass over a fresh mount, and what later passes cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.workload import Metric, Sample, Target, Value, Workload

LATER = 3


class _Passes(Workload):
    """Every round mounts anew. The volume's own caches are warm, those of the mount are empty."""

    access: str
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
        self.targets = (
            self.speed(f"{self.title}, first pass", "first", "cowfs", "fuse-overlayfs", 1.0),
            Target(
                f"{self.title}, requests in later passes",
                "",
                Value("cowfs", "requests"),
                at_most=0,
                unit="requests",
            ),
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {"files": env.sizes.files, "later_passes": LATER}

    def prepare(self, env: Environment) -> None:
        env.small_files()

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.small_files()
        env.probe.names(self.access, source, source, 1)

        def sample(_number: int) -> Sample:
            with peer.mounted(env, source) as view:
                first, names = env.probe.names(self.access, view.root, source, 1)
                later, _ = env.probe.names(self.access, view.root, source, LATER)
                taken: Sample = {"first": names / first, "later": names / later}
                with env.requests.counting(view.connection) as count:
                    env.probe.names(self.access, view.root, source, 1)
                    counted = count()
                if counted is not None:
                    taken["requests"] = counted
                return taken

        yield sample


class Lookup(_Passes):
    """stat(2) of every file by its name, without listing anything before."""

    name = "lookup"
    title = "lookup + getattr"
    access = "stat"
    metrics = (
        Metric("first", "first pass", "files/s", higher_is_better=True),
        Metric("later", "later passes", "files/s", higher_is_better=True),
        Metric("requests", "requests, later pass", "requests"),
    )


class Readdir(_Passes):
    """Listing every directory; a directory holds 100 files."""

    name = "readdir"
    title = "readdir"
    access = "list"
    metrics = (
        Metric("first", "first pass", "dirs/s", higher_is_better=True),
        Metric("later", "later passes", "dirs/s", higher_is_better=True),
        Metric("requests", "requests, later pass", "requests"),
    )
