"""Memory of the processes that serve one mount."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.environment import Environment
from bench.peers import Peer
from bench.system import BenchError, process_memory
from bench.workload import Metric, Sample, Target, Value, Workload


class Memory(Workload):
    """After every file was looked up; all processes of the mount together, fresh in every round.

    VmRSS counts a page in every process that maps it, so it errs on the high side; Pss divides it.
    """

    name = "memory"
    title = "resident memory of one mount"
    metrics = (Metric("rss", "VmRSS", "B"), Metric("pss", "Pss", "B"))
    peers = ("fuse-overlayfs", "passthrough_hp", "pyfuse3", "cowfs", "cowfs-off")
    targets = (
        Target(
            "resident memory, 10,000 files looked up",
            "",
            Value("cowfs", "rss"),
            at_most=45e6,
            unit="B",
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
            with peer.mounted(env, source) as view:
                env.probe.names("stat", view.root, source, 1)
                used = [process_memory(pid) for pid in view.daemons()]
            if not used:
                raise BenchError(f"the processes of {peer.name} are not known")
            return {"rss": sum(rss for rss, _ in used), "pss": sum(pss for _, pss in used)}

        yield sample
