"""Random 4 KiB reads of a shared file and writes of a private one, with one and four threads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environment import Environment
from bench.peers import Peer
from bench.system import BenchError, run
from bench.workload import Metric, Sample, Workload

JOBS = {"read1": ("randread", 1), "read4": ("randread", 4)} | {
    "write1": ("randwrite", 1),
    "write4": ("randwrite", 4),
}


class Random(Workload):
    """fio's psync engine on warm files.

    `--invalidate=0` because fio would otherwise drop the pages of a native file but not those that
    lie behind a FUSE file. The read file is warmed by a sequential read, the written one by its own
    writing: large folios and small ones differ by a factor of two.
    """

    name = "random"
    title = "random 4 KiB, fio psync, warm"
    metrics = (
        Metric("read1", "read, 1 thread", "IO/s", higher_is_better=True),
        Metric("read4", "read, 4 threads", "IO/s", higher_is_better=True),
        Metric("write1", "write, 1 thread", "IO/s", higher_is_better=True),
        Metric("write4", "write, 4 threads", "IO/s", higher_is_better=True),
    )
    peers = (
        "native",
        "overlayfs",
        "cowfs-overlay",
        "fuse-overlayfs",
        "pyfuse3",
        "cowfs",
        "cowfs-off",
    )

    def __init__(self) -> None:
        self.targets = tuple(
            self.speed(f"random 4 KiB {metric.title}", metric.key, "cowfs", "native", 0.90)
            for metric in self.metrics
        )

    def parameters(self, env: Environment) -> dict[str, object]:
        return {
            "read_bytes": env.sizes.random_read,
            "write_bytes": env.sizes.random_write,
            "seconds": env.sizes.seconds,
        }

    def prepare(self, env: Environment) -> None:
        if not shutil.which("fio"):
            raise BenchError("fio is not installed (Debian: fio)")
        env.model("random", env.sizes.random_read)

    @contextmanager
    def stage(self, env: Environment, peer: Peer) -> Iterator[Callable[[int], Sample]]:
        source = env.model("random", env.sizes.random_read)
        with peer.mounted(env, source) as view:
            shared = view.root / "model.bin"
            # a source must stay as it is: what shows it itself writes beside it
            private = view.root / "private.bin"
            if peer.name in ("native", "pyfuse3"):
                with peer.mounted(env, env.folder("empty"), private=True) as beside:
                    yield self._sampler(env, shared, beside.root / "private.bin")
            else:
                yield self._sampler(env, shared, private)

    def _sampler(self, env: Environment, shared: Path, private: Path) -> Callable[[int], Sample]:
        env.probe.read(shared)
        env.probe.fill(private, env.sizes.random_write, seed=3)

        def sample(_number: int) -> Sample:
            taken: Sample = {}
            for key, (kind, threads) in JOBS.items():
                writing = kind == "randwrite"
                if writing:
                    os.sync()  # every writer starts without dirty pages of the one before
                taken[key] = fio(kind, private if writing else shared, threads, env.sizes.seconds)
            return taken

        return sample


def fio(kind: str, path: Path, threads: int, seconds: float) -> float:
    """Operations a second of one fio run."""
    said = run(
        [
            "fio",
            "--name=random",
            f"--filename={path}",
            f"--rw={kind}",
            "--bs=4k",
            "--ioengine=psync",
            "--invalidate=0",
            "--allow_file_create=0",
            "--overwrite=0",
            "--norandommap",
            "--thread",
            f"--numjobs={threads}",
            "--group_reporting",
            "--time_based",
            f"--runtime={int(seconds * 1000)}ms",
            "--output-format=json",
        ]
    )
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return float(job["read" if kind == "randread" else "write"]["iops"])
